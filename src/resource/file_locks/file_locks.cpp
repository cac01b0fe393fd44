#include "resource/file_locks/file_locks.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <sys/syscall.h>

#include <algorithm>
#include <span>
#include <string>

#include "base/status.h"
#include "kernel/proc/locks.h"
#include "kernel/proc/mountinfo.h"
#include "resource/file_description.h"

namespace godwit::resource {
namespace {

using Kind = kernel::FileLock::Kind;

absl::StatusOr<std::vector<kernel::FileLock>> locks_of(const kernel::FdInfo& info) {
  std::vector<kernel::FileLock> locks;
  for (const auto& line : info.lines) {
    if (line.key != "lock") continue;
    GW_ASSIGN_OR_RETURN(locks.emplace_back(), kernel::parse_lock(line.value));
  }
  return locks;
}

FileLock state_of(const kernel::FileLock& lock) {
  FileLock state;
  state.set_exclusive(lock.exclusive);
  state.set_start(lock.start);
  state.set_length(lock.length);
  return state;
}

// The kernel lists them as they were taken; the same locks shall give the same bytes.
FileLocks sorted(FileLocks locks) {
  std::sort(locks.begin(), locks.end(), [](const FileLock& a, const FileLock& b) {
    return std::pair(a.start(), a.length()) < std::pair(b.start(), b.length());
  });
  return locks;
}

struct flock to_kernel(const FileLock& lock) {
  struct flock wanted {};
  wanted.l_type = lock.exclusive() ? F_WRLCK : F_RDLCK;
  wanted.l_whence = SEEK_SET;
  wanted.l_start = lock.start();
  wanted.l_len = lock.length();
  return wanted;
}

// The writable layer and /dev/shm, which is a part of it (capsule/root_fs.h): nobody else's.
absl::StatusOr<bool> on_own_mount(const kernel::FdInfo& info, const CaptureContext& context) {
  GW_ASSIGN_OR_RETURN(const auto mounts, kernel::read_mountinfo(context.init_pid()));
  return std::any_of(mounts.begin(), mounts.end(), [&](const kernel::Mount& mount) {
    return mount.id == info.mnt_id && (mount.point == "/" || mount.point == "/dev/shm");
  });
}

}  // namespace

absl::StatusOr<DescriptionLocks> description_locks(const kernel::FdInfo& info) {
  GW_ASSIGN_OR_RETURN(const auto locks, locks_of(info));
  DescriptionLocks result;
  for (const kernel::FileLock& lock : locks) {
    if (lock.kind == Kind::kOpenFile) *result.open_file.Add() = state_of(lock);
    if (lock.kind == Kind::kFlock) *result.flock.Add() = state_of(lock);
  }
  result.open_file = sorted(std::move(result.open_file));
  return result;
}

absl::StatusOr<FileLocks> process_locks(const kernel::FdInfo& info) {
  GW_ASSIGN_OR_RETURN(const auto locks, locks_of(info));
  FileLocks result;
  for (const kernel::FileLock& lock : locks)
    if (lock.kind == Kind::kPosix) *result.Add() = state_of(lock);
  return sorted(std::move(result));
}

absl::Status refuse_lease(const OpenFile& file, const kernel::FdInfo& info,
                          std::vector<Refusal>& refusals) {
  GW_ASSIGN_OR_RETURN(const auto locks, locks_of(info));
  for (const kernel::FileLock& lock : locks) {
    if (lock.kind != Kind::kLease) continue;
    refuse(file, "fd.lease", "it holds a lease (F_SETLEASE), which others may be breaking",
           "let the program give the lease back before the move", refusals);
    break;
  }
  return absl::OkStatus();
}

absl::Status refuse_shared_locks(const OpenFile& file, const kernel::FdInfo& info,
                                 const CaptureContext& context, std::vector<Refusal>& refusals) {
  GW_ASSIGN_OR_RETURN(const auto locks, locks_of(info));
  if (locks.empty() && !file.process_locks) return absl::OkStatus();
  GW_ASSIGN_OR_RETURN(const bool own, on_own_mount(info, context));
  if (!own) {
    refuse(file, "fd.lock",
           "it holds a lock of a file on a mount that other nodes share, where both nodes would "
           "have to hold it at once",
           "let the program release the lock, or keep the file outside of --bind", refusals);
  }
  return absl::OkStatus();
}

absl::Status take_open_file_locks(int fd, const FileLocks& locks) {
  for (const FileLock& lock : locks) {
    struct flock wanted = to_kernel(lock);
    if (::fcntl(fd, F_OFD_SETLK, &wanted) == 0) continue;
    const std::string what = fmt::format("F_OFD_SETLK of bytes {}+{}", lock.start(), lock.length());
    if (errno == EAGAIN || errno == EACCES)
      return make_error(absl::StatusCode::kUnavailable, "{}: somebody else holds a lock there",
                        what);
    return errno_status(errno, what);
  }
  return absl::OkStatus();
}

void add_flock_calls(int remote_fd, const FileLocks& flocks, tracee::Batch& batch) {
  for (const FileLock& lock : flocks)
    batch.call(SYS_flock, {remote_fd, (lock.exclusive() ? LOCK_EX : LOCK_SH) | LOCK_NB}, true);
}

void add_process_lock_call(int remote_fd, const FileLock& lock, tracee::Batch& batch) {
  const struct flock wanted = to_kernel(lock);
  const auto data = batch.data(std::as_bytes(std::span(&wanted, 1)));
  batch.call(SYS_fcntl, {remote_fd, F_SETLK, data}, true);
}

}  // namespace godwit::resource
