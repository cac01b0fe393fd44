// Lists of tasks: /proc/PID/task, /proc/PID/task/TID/children (CONFIG_PROC_CHILDREN) and
// cgroup.procs; the descriptors and the auxiliary vector of a process.
#ifndef GODWIT_KERNEL_PROC_TASKS_H_
#define GODWIT_KERNEL_PROC_TASKS_H_

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "base/ids.h"

namespace godwit::kernel {

// Threads of a process in /proc's order: the leader first while it is alive.
absl::StatusOr<std::vector<HostPid>> read_tasks(HostPid tgid);
// Children of one thread (the children of a process are those of all of its threads).
absl::StatusOr<std::vector<HostPid>> read_children(HostPid tgid, HostPid tid);
// All processes of a cgroup, each once, sorted; not of those below it. `folder` is its full path.
absl::StatusOr<std::vector<HostPid>> read_cgroup_processes(const std::string& folder);
// Blanks or newlines between numbers; a 0 (a process outside of our pid namespace) is an error.
absl::StatusOr<std::vector<HostPid>> parse_pids(std::string_view text);

// The numbers of the open descriptors, ascending.
absl::StatusOr<std::vector<int>> read_descriptors(HostPid pid);

// Pairs of the auxiliary vector up to and with AT_NULL.
using AuxVector = std::vector<std::pair<uint64_t, uint64_t>>;
absl::StatusOr<AuxVector> parse_auxv(std::string_view bytes);
absl::StatusOr<std::string> read_auxv_bytes(HostPid pid);

}  // namespace godwit::kernel

#endif  // GODWIT_KERNEL_PROC_TASKS_H_
