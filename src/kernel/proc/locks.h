// Lines of /proc/locks and of "lock:" in /proc/PID/fdinfo/N (proc_locks(5); lock_get_status() in
// fs/locks.c, Linux 6.18):
//
//   1: POSIX  ADVISORY  WRITE 1234 fd:00:12345 0 EOF
//   2: OFDLCK ADVISORY  READ -1 fd:00:12345 10 19
//   3: FLOCK  ADVISORY  WRITE 1234 fd:00:12345 0 EOF
//   4: LEASE  ACTIVE    READ 1234 fd:00:12345 0 EOF
//   1: -> POSIX ...                                      waits for number 1; not in fdinfo
//
// fdinfo has a record lock (POSIX) only for the process that owns it and the description by which
// it was taken; the others for every holder of the description.
#ifndef GODWIT_KERNEL_PROC_LOCKS_H_
#define GODWIT_KERNEL_PROC_LOCKS_H_

#include <cstdint>
#include <string_view>

#include "absl/container/flat_hash_set.h"
#include "absl/status/statusor.h"
#include "base/ids.h"

namespace godwit::kernel {

struct FileLock {
  enum class Kind { kInvalid, kPosix, kOpenFile, kFlock, kLease };
  static constexpr int64_t kToTheEnd = 0;
  Kind kind = Kind::kInvalid;
  bool exclusive = false;
  bool waits = false;
  HostPid pid;  // who took it; -1: kOpenFile
  int64_t start = 0;
  int64_t length = kToTheEnd;  // bytes
};

// kInvalidArgument: not such a line.
absl::StatusOr<FileLock> parse_lock(std::string_view line);

// The processes that own record locks (POSIX), as the /proc of this process numbers them; from all
// lines that parse_lock() understands.
absl::StatusOr<absl::flat_hash_set<HostPid>> record_lock_owners();

}  // namespace godwit::kernel

#endif  // GODWIT_KERNEL_PROC_LOCKS_H_
