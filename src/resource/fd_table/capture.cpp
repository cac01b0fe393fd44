#include <dirent.h>
#include <fcntl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "base/status.h"
#include "kernel/proc/fdinfo.h"
#include "kernel/syscalls.h"
#include "resource/fd_table/fd_table.h"
#include "resource/fd_table/reading.h"
#include "resource/registry.h"
#include "resource/socket_options/options.h"

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

// A file of a unix socket's name can be opened with O_PATH: that is no socket.
bool is_socket(const OpenFile& file) {
  return S_ISSOCK(file.stat.st_mode) && (file.status_flags & O_PATH) == 0;
}

// The same number for the same description in every epoch as long as its first holder keeps it;
// never 0. Another id for an unchanged description only costs making it again.
uint64_t id_of(const OpenFile& file) {
  if (is_socket(file)) return id_of_socket(file.stat.st_ino);
  return (static_cast<uint64_t>(file.tgid.value) << 32) | static_cast<uint32_t>(file.remote_fd + 1);
}

const FileKind* find_kind_of(OpenFile& file) {
  if (is_socket(file)) file.socket = socket_identity(file.fd);
  for (const FileKind* kind : file_kinds())
    if (kind->recognise(file)) return kind;
  return nullptr;
}

absl::StatusOr<std::string> read_at(int dir, int number) {
  GW_ASSIGN_OR_RETURN(const UniqueFd fd, kernel::openat(dir, std::to_string(number), O_RDONLY));
  std::string text(4096, '\0');
  size_t used = 0;
  while (true) {
    const ssize_t n = ::read(fd.get(), text.data() + used, text.size() - used);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return errno_status(errno, fmt::format("read(fdinfo of {})", number));
    used += static_cast<size_t>(n);
    // One record (single_open(), fs/proc/fd.c): what does not fill the buffer is its end.
    if (used < text.size()) break;
    text.resize(2 * used);
  }
  text.resize(used);
  return text;
}

// Our own folders of /proc, where our duplicates are: a path from the root costs as much again as
// the look itself.
struct OwnFolders {
  UniqueFd fd;
  UniqueFd fdinfo;
  static absl::StatusOr<OwnFolders> open() {
    OwnFolders own;
    GW_ASSIGN_OR_RETURN(own.fd, kernel::open("/proc/self/fd", O_RDONLY | O_DIRECTORY));
    GW_ASSIGN_OR_RETURN(own.fdinfo, kernel::open("/proc/self/fdinfo", O_RDONLY | O_DIRECTORY));
    return own;
  }
};

absl::Status look_at(Descriptors::Description& description, const OwnFolders& folders) {
  OpenFile& file = description.file;
  if (is_socket(file)) {
    file.link = fmt::format("socket:[{}]", file.stat.st_ino);
  } else {
    GW_ASSIGN_OR_RETURN(file.link, kernel::readlinkat(folders.fd.get(), std::to_string(file.fd)));
  }
  description.kind = find_kind_of(file);
  if (description.kind == nullptr || description.kind->needs_fdinfo()) {
    // Of the duplicate, since a running program may have closed its own or used the number again.
    GW_ASSIGN_OR_RETURN(file.fdinfo, read_at(folders.fdinfo.get(), file.fd));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status look_at_one(Descriptors::Description& description) {
  GW_ASSIGN_OR_RETURN(const OwnFolders folders, OwnFolders::open());
  return look_at(description, folders);
}

uint64_t id_of_socket(uint64_t inode) { return (uint64_t{1} << 62) | inode; }

absl::StatusOr<OpenFile> file_of(const FdHolder& holder, int fd, int duplicate) {
  OpenFile file;
  file.fd = duplicate;
  file.tgid = holder.tgid;
  file.host_tgid = holder.host_tgid;
  file.remote_fd = fd;
  if (::fstat(duplicate, &file.stat) != 0) return errno_status(errno, fmt::format("fstat({})", fd));
  file.status_flags = ::fcntl(duplicate, F_GETFL);
  file.id = id_of(file);
  return file;
}

absl::StatusOr<Descriptors> Descriptors::read(std::span<const FdHolder> processes,
                                              const Hints& hints) {
  static const FileRanks none;
  Descriptors result;
  result.processes_.assign(processes.begin(), processes.end());
  result.before_ = hints.ranks != nullptr ? hints.ranks : &none;
  if (hints.views != nullptr) {
    GW_ASSIGN_OR_RETURN(const bool seen, result.read_views(processes, hints));
    if (seen) return result;
  }
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
  result.before_ = nullptr;
  return result;
}

absl::Status Descriptors::look(RunAll run_all) {
  GW_ASSIGN_OR_RETURN(const OwnFolders folders, OwnFolders::open());
  std::vector<absl::Status> looked(descriptions_.size());
  run_all(looked.size(), [&](size_t i) { looked[i] = look_at(descriptions_[i], folders); });
  *next_to_settle_ = descriptions_.size();  // few enough to be read by capture() alone
  for (const absl::Status& status : looked) GW_RETURN_IF_ERROR(status);
  return absl::OkStatus();
}

absl::Status Descriptors::settle(const CaptureContext& context, const KnownFiles& before) {
  GW_ASSIGN_OR_RETURN(const OwnFolders folders, OwnFolders::open());
  for (size_t i = (*next_to_settle_)++; i < descriptions_.size(); i = (*next_to_settle_)++) {
    Description& one = descriptions_[i];
    if (!one.duplicate) continue;  // stands
    GW_RETURN_IF_ERROR(look_at(one, folders));
    if (one.kind == nullptr || !one.kind->concurrent()) continue;
    if (const auto known = before.find(one.file.id); known != before.end())
      one.file.settled_before = known->second.file.settled;
    one.file.settled = one.kind->settle(one.file, context);
    if (one.kind->still()) one.still = one.kind->capture(one.file, context);
  }
  return absl::OkStatus();
}

Descriptors::KnownFiles Descriptors::take_known() {
  KnownFiles all;
  for (Description& one : descriptions_)
    if (!one.file.settled.empty()) {
      const uint64_t id = one.file.id;
      one.file.settled_before = {};
      const FileView* view = std::exchange(one.file.view, nullptr);  // which may be read anew
      all[id] = {std::move(one.file), one.kind,
                 view != nullptr ? std::optional(view->tcp) : std::nullopt};
    }
  return all;
}

absl::Status Descriptors::add(const FdHolder& holder, int fd) {
  auto duplicate = kernel::pidfd_getfd(holder.pidfd, fd);
  // O_PATH descriptors too: pidfd_getfd takes them as they are.
  if (!duplicate.ok()) return duplicate.status();
  GW_ASSIGN_OR_RETURN(const size_t index, find_or_add(holder, fd, *std::move(duplicate)));
  add_entry(holder, fd, index);
  return absl::OkStatus();
}

void Descriptors::add_entry(const FdHolder& holder, int fd, size_t index) {
  auto* entry = tables_[holder.tgid].add_entries();
  entry->set_fd(fd);
  entry->set_description(descriptions_[index].file.id);
}

absl::StatusOr<size_t> Descriptors::find_or_add(const FdHolder& holder, int fd,
                                                UniqueFd duplicate) {
  GW_ASSIGN_OR_RETURN(OpenFile file, file_of(holder, fd, duplicate.get()));
  const size_t index = descriptions_.size();
  auto& [indexes, order] = by_inode_[{file.stat.st_dev, file.stat.st_ino}];
  if (is_socket(file)) {
    // A socket's inode belongs to one description.
    if (!indexes.empty()) return indexes.front();
  } else {
    const auto rank = before_->find({holder.tgid, fd});
    GW_ASSIGN_OR_RETURN(
        const std::optional<size_t> same,
        order.find_or_add(file.fd, index,
                          rank == before_->end() ? std::nullopt : std::optional(rank->second)));
    if (same) return *same;
  }
  indexes.push_back(index);
  descriptions_.push_back({std::move(file), std::move(duplicate), nullptr, std::nullopt, nullptr});
  return index;
}

FileRanks Descriptors::ranks() const {
  FileRanks ranks;
  absl::flat_hash_map<uint64_t, uint32_t> of_description;
  for (const auto& [inode, same] : by_inode_) {
    const auto& files = same.order.files();
    if (files.size() < 2) continue;
    for (size_t i = 0; i < files.size(); ++i)
      of_description[descriptions_[files[i].index].file.id] = static_cast<uint32_t>(i);
  }
  if (of_description.empty()) return ranks;
  for (const auto& [tgid, table] : tables_)
    for (const auto& entry : table.entries()) {
      const auto rank = of_description.find(entry.description());
      if (rank != of_description.end()) ranks[{tgid, entry.fd()}] = rank->second;
    }
  return ranks;
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

std::vector<size_t> add_close_on_exec_calls(std::span<const int> fds, tracee::Batch& batch) {
  std::vector<size_t> calls;
  calls.reserve(fds.size());
  for (const int fd : fds) calls.push_back(batch.call(SYS_fcntl, {fd, F_GETFD}));
  return calls;
}

std::vector<int> Descriptors::numbers(ImagePid tgid) const {
  std::vector<int> fds;
  for (const auto& entry : table(tgid).entries()) fds.push_back(entry.fd());
  return fds;
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

size_t Descriptors::largest_table() const {
  int most = 0;
  for (const auto& [tgid, table] : tables_) most = std::max(most, table.entries_size());
  return static_cast<size_t>(most);
}

uint64_t Descriptors::description_at(ImagePid tgid, int fd) const {
  const auto table = tables_.find(tgid);
  if (table == tables_.end()) return 0;
  const auto& entries = table->second.entries();
  const auto found = std::lower_bound(
      entries.begin(), entries.end(), fd,
      [](const FdTableState::Entry& entry, int number) { return entry.fd() < number; });
  return found == entries.end() || found->fd() != fd ? 0 : found->description();
}

std::vector<const OpenFile*> Descriptors::with_inode(dev_t dev, ino_t ino) const {
  std::vector<const OpenFile*> files;
  const auto found = by_inode_.find({dev, ino});
  if (found == by_inode_.end()) return files;
  files.reserve(found->second.indexes.size());
  for (const size_t index : found->second.indexes) files.push_back(&descriptions_[index].file);
  return files;
}

}  // namespace godwit::resource
