// Linux facts: children of a seized task are not seized by themselves (without PTRACE_O_TRACE*), so
// the tasks are listed again once all known ones are stopped: a stopped task makes no new one.
#include "tracee/freeze.h"

#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <map>
#include <set>
#include <utility>

#include "base/status.h"
#include "tracee/ptrace_calls.h"

namespace godwit::tracee {
namespace {

bool gone(const absl::Status& status) { return errno_of(status) == ESRCH; }

struct Seized {
  HostPid pid;
  SeizedTask task;
};

using TasksByProcess = std::map<HostPid, std::vector<StoppedTask>>;

// Links of /proc/PID/task: two, and one a thread (proc_task_getattr, fs/proc/base.c): a fifth of
// the time that listing it takes. 0: it has gone.
size_t threads_of(HostPid pid) {
  struct stat info {};
  if (::stat(fmt::format("/proc/{}/task", pid.value).c_str(), &info) != 0) return 0;
  return info.st_nlink < 2 ? 0 : static_cast<size_t>(info.st_nlink) - 2;
}

class TreeStopper {
 public:
  explicit TreeStopper(Deadline deadline) : deadline_(deadline) {}

  // One reading: false when it showed no task that is not stopped already.
  absl::StatusOr<bool> pass(const std::vector<HostPid>& pids) {
    // All are seized before the first is interrupted: a program that stands still in parts waits
    // for the rest.
    std::vector<Seized> fresh;
    for (const HostPid pid : pids) {
      if (all_stopped(pid)) continue;
      GW_ASSIGN_OR_RETURN(const std::vector<HostPid> tids, internal::tasks_of(pid));
      for (const HostPid tid : tids) {
        if (!seen_.insert(tid).second) continue;
        auto task = SeizedTask::seize(tid);
        if (!task.ok() && gone(task.status())) continue;
        GW_RETURN_IF_ERROR(task.status());
        fresh.push_back({pid, *std::move(task)});
      }
    }
    // One that has ended meanwhile is found out by the wait.
    for (Seized& seized : fresh)
      if (absl::Status asked = seized.task.interrupt(); !asked.ok() && !gone(asked)) return asked;
    for (Seized& seized : fresh) {
      auto task = std::move(seized.task).wait_stopped(deadline_);
      if (!task.ok() && gone(task.status())) continue;
      GW_RETURN_IF_ERROR(task.status());
      stopped_[seized.pid].push_back(*std::move(task));
    }
    return !fresh.empty();
  }

  FrozenTree result(const std::vector<HostPid>& order) && {
    FrozenTree tree;
    for (const HostPid pid : order) {
      const auto found = stopped_.find(pid);
      if (found == stopped_.end()) continue;
      StoppedProcess process{.pid = pid, .tasks = std::move(found->second)};
      stopped_.erase(found);
      // The leader first, the others by their age, as far as the numbers tell.
      std::sort(process.tasks.begin(), process.tasks.end(),
                [&](const StoppedTask& a, const StoppedTask& b) {
                  return std::pair(a.tid() != pid, a.tid()) < std::pair(b.tid() != pid, b.tid());
                });
      tree.processes.push_back(std::move(process));
    }
    return tree;
  }

 private:
  bool all_stopped(HostPid pid) const {
    const auto found = stopped_.find(pid);
    return found != stopped_.end() && found->second.size() == threads_of(pid);
  }

  Deadline deadline_;
  std::set<HostPid> seen_;
  TasksByProcess stopped_;
};

}  // namespace

absl::StatusOr<FrozenTree> stop_tree(absl::FunctionRef<absl::StatusOr<std::vector<HostPid>>()> list,
                                     Deadline deadline) {
  TreeStopper stopper(deadline);
  for (;;) {
    GW_ASSIGN_OR_RETURN(const std::vector<HostPid> pids, list());
    GW_ASSIGN_OR_RETURN(const bool more, stopper.pass(pids));
    if (!more) return std::move(stopper).result(pids);
    if (deadline.passed()) {
      return make_error(absl::StatusCode::kDeadlineExceeded,
                        "the tree makes tasks faster than they can be stopped");
    }
  }
}

void release_tree(FrozenTree tree) { tree.processes.clear(); }

}  // namespace godwit::tracee
