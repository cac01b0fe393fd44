// Stopping a whole process tree and holding it.
#ifndef GODWIT_TRACEE_FREEZE_H_
#define GODWIT_TRACEE_FREEZE_H_

#include <functional>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "base/clock.h"
#include "base/ids.h"
#include "tracee/task.h"

namespace godwit::tracee {

// The tasks of one thread group, leader first. Zombie leaders are not here.
struct StoppedProcess {
  HostPid pid;
  std::vector<StoppedTask> tasks;
};

struct FrozenTree {
  std::vector<StoppedProcess> processes;
};

// Seizes every task of the processes that `list` names (tgids, read again until two readings agree
// and every task is stopped: tasks may be born meanwhile), interrupts them all before it waits for
// any. Zombies are skipped, and tasks that `passed_by` says so of. On error everything runs on.
using PassedBy = std::function<bool(HostPid pid, HostPid tid)>;
absl::StatusOr<FrozenTree> stop_tree(absl::FunctionRef<absl::StatusOr<std::vector<HostPid>>()> list,
                                     Deadline deadline, PassedBy passed_by = {});

// Lets all run: detaches every task.
void release_tree(FrozenTree tree);

}  // namespace godwit::tracee

#endif  // GODWIT_TRACEE_FREEZE_H_
