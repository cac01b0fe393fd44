// Reading descriptors by views: which belong together is said by the kernel's own addresses, and
// what is proven unchanged is not taken.
#include "base/status.h"
#include "kernel/syscalls.h"
#include "resource/fd_table/fd_table.h"
#include "resource/fd_table/reading.h"

namespace godwit::resource {

// False: there are none of one of them, so that all is to be read without.
absl::StatusOr<bool> Descriptors::read_views(std::span<const FdHolder> processes,
                                             const Hints& hints) {
  std::vector<std::span<const FileView>> all;
  for (const FdHolder& holder : processes) {
    const auto views = hints.views->read(holder.host_tgid);
    if (!views.ok()) return false;
    all.push_back(*views);
  }
  size_t count = 0;
  for (const auto& views : all) count += views.size();
  descriptions_.reserve(count);
  absl::flat_hash_map<uint64_t, size_t> by_file;
  by_file.reserve(count);
  seen_lockable_.emplace();
  for (size_t i = 0; i < processes.size(); ++i) {
    tables_[processes[i].tgid];
    for (const FileView& view : all[i]) {
      const auto known = by_file.find(view.file);
      size_t index = 0;
      if (known != by_file.end()) {
        index = known->second;
      } else {
        GW_ASSIGN_OR_RETURN(index, add_seen(processes[i], view, hints));
        by_file.emplace(view.file, index);
      }
      const auto fd = static_cast<int>(view.fd);
      add_entry(processes[i], fd, index);
      if (view.locks != 0)
        seen_lockable_->push_back({processes[i].tgid, processes[i].host_tgid, fd, index});
    }
  }
  return true;
}

absl::StatusOr<size_t> Descriptors::add_seen(const FdHolder& holder, const FileView& view,
                                             const Hints& hints) {
  const auto fd = static_cast<int>(view.fd);
  Description one;
  const auto known =
      view.is_tcp != 0 ? hints.known->find(id_of_socket(view.inode)) : hints.known->end();
  if (known != hints.known->end() &&
      known->second.kind->stands(known->second.file, view, *hints.context)) {
    const OpenFile& before = known->second.file;
    one.file.id = before.id;
    one.file.tgid = holder.tgid;
    one.file.host_tgid = holder.host_tgid;
    one.file.remote_fd = fd;
    one.file.link = before.link;
    one.file.stat = before.stat;
    one.file.status_flags = before.status_flags;
    one.file.settled_before = before.settled;
    one.file.view = &view;
    one.kind = known->second.kind;
    one.known = &known->second;
  } else {
    GW_ASSIGN_OR_RETURN(one.duplicate, kernel::pidfd_getfd(holder.pidfd, fd));
    GW_ASSIGN_OR_RETURN(one.file, file_of(holder, fd, one.duplicate.get()));
  }
  by_inode_[{one.file.stat.st_dev, one.file.stat.st_ino}].indexes.push_back(descriptions_.size());
  descriptions_.push_back(std::move(one));
  return descriptions_.size() - 1;
}

absl::Status Descriptors::see(FileViews& views) {
  absl::flat_hash_map<uint64_t, size_t> by_id;
  for (size_t i = 0; i < descriptions_.size(); ++i) by_id.emplace(descriptions_[i].file.id, i);
  for (const FdHolder& holder : processes_) {
    GW_ASSIGN_OR_RETURN(const std::span<const FileView> all, views.read(holder.host_tgid));
    for (const FileView& view : all) {
      if (view.is_tcp == 0) continue;
      const auto found = by_id.find(id_of_socket(view.inode));
      if (found == by_id.end()) continue;
      Description& one = descriptions_[found->second];
      one.file.view = &view;
      one.same = one.known != nullptr && one.known->tcp && *one.known->tcp == view.tcp;
    }
  }
  return absl::OkStatus();
}

absl::Status Descriptors::take(size_t index) {
  Description& one = descriptions_[index];
  for (const FdHolder& holder : processes_) {
    if (holder.tgid != one.file.tgid) continue;
    GW_ASSIGN_OR_RETURN(one.duplicate, kernel::pidfd_getfd(holder.pidfd, one.file.remote_fd));
    one.file.fd = one.duplicate.get();
    one.file.settled = one.file.settled_before;  // which stands
    one.same = false;
    return absl::OkStatus();
  }
  return make_error(absl::StatusCode::kInternal, "process {} was not read", one.file.tgid.value);
}

absl::Status Descriptors::for_untaken(absl::FunctionRef<absl::Status(int)> use) const {
  absl::Status first;
  for (const Description& one : descriptions_) {
    if (one.duplicate) continue;
    for (const FdHolder& holder : processes_) {
      if (holder.tgid != one.file.tgid) continue;
      const auto fd = kernel::pidfd_getfd(holder.pidfd, one.file.remote_fd);
      first.Update(fd.ok() ? use(fd->get()) : fd.status());
      break;
    }
  }
  return first;
}

}  // namespace godwit::resource
