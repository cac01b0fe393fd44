#include <dirent.h>
#include <fcntl.h>
#include <linux/kcmp.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>

#include "absl/cleanup/cleanup.h"
#include "base/status.h"
#include "kernel/proc/fdinfo.h"
#include "kernel/syscalls.h"
#include "resource/fd_table/fd_table.h"
#include "resource/registry.h"

namespace godwit::resource {
namespace {

absl::StatusOr<std::vector<int>> open_descriptors(HostPid pid) {
  const std::string path = fmt::format("/proc/{}/fd", pid.value);
  DIR* dir = ::opendir(path.c_str());
  if (dir == nullptr) return errno_status(errno, fmt::format("opendir({})", path));
  absl::Cleanup close_dir = [dir] { ::closedir(dir); };
  std::vector<int> fds;
  while (const dirent* entry = ::readdir(dir))
    if (entry->d_name[0] != '.') fds.push_back(std::atoi(entry->d_name));
  std::sort(fds.begin(), fds.end());
  return fds;
}

// The same number for the same description in every epoch as long as its first holder keeps it;
// never 0. Another id for an unchanged description only costs making it again.
uint64_t id_of(const OpenFile& file) {
  if (S_ISSOCK(file.stat.st_mode)) return (uint64_t{1} << 62) | file.stat.st_ino;
  return (static_cast<uint64_t>(file.tgid.value) << 32) | static_cast<uint32_t>(file.remote_fd + 1);
}

// Of the duplicate, since a running program may have closed its own or used the number again; but
// locks of processes show only to their owner (show_fd_locks() in fs/locks.c).
absl::StatusOr<std::string> fdinfo_text(const OpenFile& file) {
  GW_ASSIGN_OR_RETURN(std::string text, kernel::read_fdinfo_text(HostPid{::getpid()}, file.fd));
  const auto own = kernel::read_fdinfo_text(file.host_tgid, file.remote_fd);
  if (!own.ok()) return text;
  for (size_t at = own->find("lock:"); at != std::string::npos; at = own->find("lock:", at + 1)) {
    const std::string line = own->substr(at, own->find('\n', at) - at) + "\n";
    if (text.find(line) == std::string::npos) text += line;
  }
  return text;
}

}  // namespace

absl::StatusOr<Descriptors> Descriptors::read(std::span<const FdHolder> processes) {
  Descriptors result;
  // A running program closes descriptors, and its processes end, between a listing and a look.
  const auto has_gone = [](const absl::Status& status) {
    const int error = errno_of(status);
    return error == EBADF || error == ENOENT || error == ESRCH;
  };
  for (const FdHolder& holder : processes) {
    const auto fds = open_descriptors(holder.host_tgid);
    if (!fds.ok()) {
      if (has_gone(fds.status())) continue;
      return fds.status();
    }
    result.tables_[holder.tgid];
    for (int fd : *fds) {
      const absl::Status added = result.add(holder, fd);
      if (!added.ok() && !has_gone(added)) return added;
    }
  }
  for (Description& description : result.descriptions_) {
    OpenFile& file = description.file;
    file.id = id_of(file);
    for (const FileKind* kind : file_kinds())
      if (kind->recognise(file)) {
        description.kind = kind;
        break;
      }
    if (description.kind == nullptr || description.kind->needs_fdinfo()) {
      GW_ASSIGN_OR_RETURN(file.fdinfo, fdinfo_text(file));
    }
  }
  for (auto& [tgid, table] : result.tables_)
    for (auto& entry : *table.mutable_entries())
      entry.set_description(result.descriptions_[entry.description()].file.id);
  return result;
}

absl::Status Descriptors::add(const FdHolder& holder, int fd) {
  auto duplicate = kernel::pidfd_getfd(holder.pidfd, fd);
  // O_PATH descriptors too: pidfd_getfd takes them as they are.
  if (!duplicate.ok()) return duplicate.status();
  GW_ASSIGN_OR_RETURN(const size_t index, find_or_add(holder, fd, *std::move(duplicate)));
  auto* entry = tables_[holder.tgid].add_entries();
  entry->set_fd(fd);
  entry->set_description(index);  // becomes the id when all are known
  return absl::OkStatus();
}

absl::StatusOr<size_t> Descriptors::find_or_add(const FdHolder& holder, int fd,
                                                UniqueFd duplicate) {
  OpenFile file;
  file.fd = duplicate.get();
  file.tgid = holder.tgid;
  file.host_tgid = holder.host_tgid;
  file.remote_fd = fd;
  if (::fstat(file.fd, &file.stat) != 0) return errno_status(errno, fmt::format("fstat({})", fd));
  file.status_flags = ::fcntl(file.fd, F_GETFL);
  auto& same_inode = by_inode_[{file.stat.st_dev, file.stat.st_ino}];
  for (size_t index : same_inode) {
    const OpenFile& other = descriptions_[index].file;
    if (other.status_flags != file.status_flags) continue;
    const long order = ::syscall(SYS_kcmp, other.host_tgid.value, holder.host_tgid.value, KCMP_FILE,
                                 other.remote_fd, fd);
    if (order < 0)
      return errno_status(errno,
                          fmt::format("kcmp({}, {}, KCMP_FILE, {}, {})", other.host_tgid.value,
                                      holder.host_tgid.value, other.remote_fd, fd));
    if (order == 0) return index;
  }
  if (S_ISSOCK(file.stat.st_mode)) {
    file.link = fmt::format("socket:[{}]", file.stat.st_ino);
  } else {
    GW_ASSIGN_OR_RETURN(file.link,
                        kernel::readlinkat(AT_FDCWD, fmt::format("/proc/self/fd/{}", file.fd)));
  }
  same_inode.push_back(descriptions_.size());
  descriptions_.push_back({std::move(file), std::move(duplicate), nullptr});
  return descriptions_.size() - 1;
}

absl::Status Descriptors::read_close_on_exec(std::span<const FdHolder> processes) {
  for (const FdHolder& holder : processes) {
    for (auto& entry : *tables_[holder.tgid].mutable_entries()) {
      const auto info = kernel::read_fdinfo(holder.host_tgid, entry.fd());
      if (info.ok()) entry.set_close_on_exec((info->flags & O_CLOEXEC) != 0);
    }
  }
  return absl::OkStatus();
}

std::vector<size_t> Descriptors::add_close_on_exec_calls(ImagePid tgid,
                                                         tracee::Batch& batch) const {
  std::vector<size_t> calls;
  for (const auto& entry : table(tgid).entries())
    calls.push_back(batch.call(SYS_fcntl, {entry.fd(), F_GETFD}));
  return calls;
}

absl::Status Descriptors::set_close_on_exec(ImagePid tgid, const tracee::Batch& batch,
                                            std::span<const size_t> calls) {
  FdTableState& state = tables_[tgid];
  for (int i = 0; i < state.entries_size(); ++i) {
    GW_RETURN_IF_ERROR(batch.check(calls[static_cast<size_t>(i)]));
    state.mutable_entries(i)->set_close_on_exec(
        (batch.result(calls[static_cast<size_t>(i)]) & FD_CLOEXEC) != 0);
  }
  return absl::OkStatus();
}

const FdTableState& Descriptors::table(ImagePid tgid) const {
  static const FdTableState none;
  const auto found = tables_.find(tgid);
  return found == tables_.end() ? none : found->second;
}

uint64_t Descriptors::description_at(ImagePid tgid, int fd) const {
  const auto table = tables_.find(tgid);
  if (table == tables_.end()) return 0;
  for (const auto& entry : table->second.entries())
    if (entry.fd() == fd) return entry.description();
  return 0;
}

std::vector<const OpenFile*> Descriptors::with_inode(dev_t dev, ino_t ino) const {
  std::vector<const OpenFile*> files;
  const auto found = by_inode_.find({dev, ino});
  if (found == by_inode_.end()) return files;
  for (size_t index : found->second) files.push_back(&descriptions_[index].file);
  return files;
}

}  // namespace godwit::resource
