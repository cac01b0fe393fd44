// Linux facts: children of a seized task are not seized by themselves (without PTRACE_O_TRACE*), so
// the tasks are listed again once all known ones are stopped: a stopped task makes no new one.
//
// The parent in vfork(2), or clone(2) with CLONE_VFORK, stops when its child has started a program
// or ended (wait_for_vfork_done(), kernel/fork.c: killable, not interruptible), and a stopped child
// does neither: it is let go until then.
#include "tracee/freeze.h"

#include <sys/stat.h>
#include <sys/syscall.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <map>
#include <set>
#include <utility>

#include "absl/strings/match.h"
#include "base/status.h"
#include "tracee/ptrace_calls.h"

namespace godwit::tracee {
namespace {

// Longer than a stop takes on a machine that is not busy.
constexpr absl::Duration kUsually = absl::Milliseconds(1);
// For a child that starts a program: the parent stands meanwhile.
constexpr absl::Duration kVforkWithin = absl::Milliseconds(500);

bool in_vfork(HostPid tid) {
  if (internal::task_state(tid) != 'D') return false;
  const auto call = internal::read_proc_file(fmt::format("/proc/{}/syscall", tid.value));
  if (!call.ok()) return false;
  constexpr std::array<long, 3> kCalls = {SYS_vfork, SYS_clone, SYS_clone3};
  return std::any_of(kCalls.begin(), kCalls.end(), [&](long number) {
    return absl::StartsWith(*call, fmt::format("{} ", number));
  });
}

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
  TreeStopper(Deadline deadline, PassedBy passed_by)
      : deadline_(deadline), passed_by_(std::move(passed_by)) {}

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
        if (passed_by_ && passed_by_(pid, tid)) continue;
        auto task = SeizedTask::seize(tid);
        if (!task.ok() && gone(task.status())) continue;
        GW_RETURN_IF_ERROR(task.status());
        fresh.push_back({pid, *std::move(task)});
      }
    }
    // One that has ended meanwhile is found out by the wait.
    for (Seized& seized : fresh)
      if (absl::Status asked = seized.task.interrupt(); !asked.ok() && !gone(asked)) return asked;
    const bool any = !fresh.empty();
    while (!fresh.empty()) {
      Seized seized = std::move(fresh.back());
      fresh.pop_back();
      GW_RETURN_IF_ERROR(stop(std::move(seized), fresh));
    }
    return any;
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
  absl::Status stop(Seized seized, std::vector<Seized>& others) {
    if (!internal::stops_until(seized.task.tid(), Deadline::in(kUsually)) &&
        in_vfork(seized.task.tid())) {
      GW_RETURN_IF_ERROR(let_children_go(seized.pid, others));
      if (!internal::stops_until(seized.task.tid(), Deadline::in(kVforkWithin)))
        return make_error(absl::StatusCode::kFailedPrecondition,
                          "task {} waits in vfork(2) for a child that does not start its program; "
                          "try again later",
                          seized.task.tid().value);
    }
    auto task = std::move(seized.task).wait_stopped(deadline_);
    if (!task.ok() && gone(task.status())) return absl::OkStatus();
    GW_RETURN_IF_ERROR(task.status());
    stopped_[seized.pid].push_back(*std::move(task));
    return absl::OkStatus();
  }

  // The next pass stops them again.
  absl::Status let_children_go(HostPid parent, std::vector<Seized>& others) {
    const auto is_child = [&](HostPid pid) {
      const auto of = internal::parent_of(pid);
      return of.ok() && *of == parent;
    };
    for (auto at = stopped_.begin(); at != stopped_.end();) {
      if (!is_child(at->first)) {
        ++at;
        continue;
      }
      for (StoppedTask& task : at->second) {
        seen_.erase(task.tid());
        if (absl::Status let = std::move(task).detach(); !let.ok() && !gone(let)) return let;
      }
      at = stopped_.erase(at);
    }
    for (size_t i = 0; i < others.size();) {
      if (!is_child(others[i].pid)) {
        ++i;
        continue;
      }
      Seized child = std::move(others[i]);
      others.erase(others.begin() + static_cast<ptrdiff_t>(i));
      seen_.erase(child.task.tid());
      // Perhaps in vfork(2) itself.
      if (!internal::stops_until(child.task.tid(), Deadline::in(kUsually)) &&
          in_vfork(child.task.tid()))
        GW_RETURN_IF_ERROR(let_children_go(child.pid, others));
      if (absl::Status let = std::move(child.task).detach(); !let.ok() && !gone(let)) return let;
      i = 0;
    }
    return absl::OkStatus();
  }

  bool all_stopped(HostPid pid) const {
    const auto found = stopped_.find(pid);
    return found != stopped_.end() && found->second.size() == threads_of(pid);
  }

  Deadline deadline_;
  PassedBy passed_by_;
  std::set<HostPid> seen_;
  TasksByProcess stopped_;
};

}  // namespace

absl::StatusOr<FrozenTree> stop_tree(absl::FunctionRef<absl::StatusOr<std::vector<HostPid>>()> list,
                                     Deadline deadline, PassedBy passed_by) {
  TreeStopper stopper(deadline, std::move(passed_by));
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
