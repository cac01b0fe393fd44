// /proc/PID/status (proc_pid_status(5), Linux 6.18): identity, credentials and signals of a task.
#ifndef GODWIT_KERNEL_PROC_STATUS_H_
#define GODWIT_KERNEL_PROC_STATUS_H_

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "base/ids.h"

namespace godwit::kernel {

struct TaskStatus {
  std::string name;    // unescaped
  uint32_t umask = 0;  // absent for zombies (no fs_struct): has_umask is false
  bool has_umask = false;
  char state = 0;  // R S D T t Z X I
  HostPid tgid;    // as the reader's /proc sees it, like pid and ppid
  HostPid pid;
  HostPid ppid;
  HostPid tracer;
  std::array<uint32_t, 4> uid{};  // real, effective, saved, file system
  std::array<uint32_t, 4> gid{};
  std::vector<uint32_t> groups;
  // One number per pid namespace from the reader's inwards: the last is the task's own view.
  std::vector<int32_t> ns_tgid;
  std::vector<int32_t> ns_pid;
  std::vector<int32_t> ns_pgid;
  std::vector<int32_t> ns_sid;
  uint32_t threads = 0;
  uint64_t pending_task = 0;  // bit (n-1) is signal n, in all of these
  uint64_t pending_process = 0;
  uint64_t blocked = 0;
  uint64_t ignored = 0;
  uint64_t caught = 0;
  uint64_t cap_inheritable = 0;
  uint64_t cap_permitted = 0;
  uint64_t cap_effective = 0;
  uint64_t cap_bounding = 0;
  uint64_t cap_ambient = 0;
  bool no_new_privs = false;
  int seccomp = 0;  // 0 off, 1 strict, 2 filter
  uint32_t seccomp_filters = 0;

  // In the task's own pid namespace.
  ImagePid image_pid() const { return {ns_pid.back()}; }
  ImagePid image_tgid() const { return {ns_tgid.back()}; }
  ImagePid image_pgid() const { return {ns_pgid.back()}; }
  ImagePid image_sid() const { return {ns_sid.back()}; }
};

// All of the fields above must be there but Umask, Seccomp and Seccomp_filters; the NS lists have
// at least one and the same number of entries.
absl::StatusOr<TaskStatus> parse_task_status(std::string_view text);
// `task` may be a tid: /proc/TID is there although it is not listed.
absl::StatusOr<TaskStatus> read_task_status(HostPid task);

}  // namespace godwit::kernel

#endif  // GODWIT_KERNEL_PROC_STATUS_H_
