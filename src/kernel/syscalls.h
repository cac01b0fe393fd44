// Thin wrappers: the man page's name, a status instead of errno. EINTR policy is stated per call;
// unless said otherwise a call is retried.
#ifndef GODWIT_KERNEL_SYSCALLS_H_
#define GODWIT_KERNEL_SYSCALLS_H_

#include <fcntl.h>
#include <linux/sched.h>
#include <sys/types.h>

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/ids.h"
#include "base/unique_fd.h"

namespace godwit::kernel {

absl::StatusOr<UniqueFd> pidfd_open(HostPid pid);
// A duplicate of descriptor `fd` of the process behind `pidfd` (Linux 5.6).
absl::StatusOr<UniqueFd> pidfd_getfd(int pidfd, int fd);
absl::StatusOr<UniqueFd> open(const std::string& path, int flags, mode_t mode = 0);
absl::StatusOr<UniqueFd> openat(int dirfd, const std::string& path, int flags, mode_t mode = 0);
absl::StatusOr<std::string> readlinkat(int dirfd, const std::string& path);
// Whole text of a file of /proc or /sys, or of an ordinary small one; `limit` bytes at most.
absl::StatusOr<std::string> read_file(const std::string& path, size_t limit = size_t{64} << 20);
absl::Status write_file(const std::string& path, std::string_view text);  // O_WRONLY, no create
// Names in a folder without "." and "..", sorted by number where all are numbers, else by bytes.
absl::StatusOr<std::vector<std::string>> list_folder(const std::string& path);
// Both ends O_CLOEXEC besides `flags` (O_DIRECT, O_NONBLOCK): read end first.
struct Pipe {
  UniqueFd read;
  UniqueFd write;
};
absl::StatusOr<Pipe> pipe2(int flags);
// F_DUPFD_CLOEXEC: the same open file description.
absl::StatusOr<UniqueFd> duplicate(int fd);
// One fcntl(2) with an int argument.
absl::StatusOr<int> fcntl_int(int fd, int command, int argument = 0);
absl::StatusOr<UniqueFd> memfd_create(const std::string& name, unsigned flags);
// kcmp(KCMP_FILE): do both descriptors refer to one open file description?
absl::Status kcmp_same_file(HostPid a, int fd_a, HostPid b, int fd_b, bool& same);
// kcmp(KCMP_VM): do both processes have one memory?
absl::Status kcmp_same_memory(HostPid a, HostPid b, bool& same);

// Sends or receives one message with descriptors over a unix socket (SCM_RIGHTS). At most 253.
absl::Status send_with_fds(int socket, std::string_view bytes, const std::vector<int>& fds);
struct Received {
  std::string bytes;
  std::vector<UniqueFd> fds;
};
// kOutOfRange when the peer has closed. Received descriptors are O_CLOEXEC.
absl::StatusOr<Received> receive_with_fds(int socket, size_t max_bytes);

}  // namespace godwit::kernel

#endif  // GODWIT_KERNEL_SYSCALLS_H_
