// What timers there are, only /proc/PID/timers says (5 us); how much is left of each, only
// timer_gettime(2) by the process itself.
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <string>

#include "kernel/proc/status.h"
#include "kernel/proc/timers.h"
#include "resource/posix_timers/posix_timers.h"
#include "resource/posix_timers/posix_timers.pb.h"
#include "resource/posix_timers/thread_clock.h"
#include "resource/state_codec.h"

namespace godwit::resource {
namespace {

absl::StatusOr<uint32_t> notify_of(const kernel::PosixTimer& timer) {
  const uint32_t flag = timer.to_thread ? SIGEV_THREAD_ID : 0;
  switch (timer.notify) {
    case kernel::TimerNotify::kSignal:
      return SIGEV_SIGNAL | flag;
    case kernel::TimerNotify::kNone:
      return SIGEV_NONE | flag;
    case kernel::TimerNotify::kThread:
      return SIGEV_THREAD | flag;
    case kernel::TimerNotify::kInvalid:
      break;
  }
  return make_error(absl::StatusCode::kDataLoss, "timer {} has no kind of notification", timer.id);
}

uint64_t nanoseconds(const timespec& ts) {
  return static_cast<uint64_t>(ts.tv_sec) * 1'000'000'000 + static_cast<uint64_t>(ts.tv_nsec);
}

// A timer on the CPU time of the thread that made it: of several, nobody says which.
absl::StatusOr<bool> has_unknown_thread(HostPid process,
                                        const std::vector<kernel::PosixTimer>& timers) {
  if (std::none_of(timers.begin(), timers.end(),
                   [](const kernel::PosixTimer& t) { return is_own_thread_clock(t.clock); }))
    return false;
  GW_ASSIGN_OR_RETURN(const kernel::TaskStatus status, kernel::read_task_status(process));
  return status.threads > 1;
}

absl::StatusOr<PosixTimersState> outside_state(HostPid process) {
  GW_ASSIGN_OR_RETURN(const std::vector<kernel::PosixTimer> timers, kernel::read_timers(process));
  GW_ASSIGN_OR_RETURN(const bool unknown, has_unknown_thread(process, timers));
  if (unknown)
    return make_error(absl::StatusCode::kFailedPrecondition,
                      "process {}: a timer runs on the CPU time of one of its threads, unknown "
                      "which",
                      process.value);
  PosixTimersState state;
  for (const kernel::PosixTimer& timer : timers) {
    PosixTimerState& one = *state.add_timers();
    one.set_id(timer.id);
    one.set_clock(timer.clock);
    GW_ASSIGN_OR_RETURN(const uint32_t notify, notify_of(timer));
    one.set_notify(notify);
    one.set_signal(timer.signal);
    one.set_value(timer.sigev_value);
    if (timer.to_thread) {
      // Our number for it; the husk's thread goes by its own.
      GW_ASSIGN_OR_RETURN(const kernel::TaskStatus target, kernel::read_task_status(timer.target));
      one.set_thread(target.image_pid().value);
    }
  }
  return state;
}

}  // namespace

absl::StatusOr<TaskResource::Collect> PosixTimersResource::capture(const TaskView& view,
                                                                   tracee::Batch& batch) const {
  if (view.task == nullptr)
    return make_error(absl::StatusCode::kFailedPrecondition, "{} of running process {}", name(),
                      view.host_tgid.value);
  GW_ASSIGN_OR_RETURN(const PosixTimersState state, outside_state(view.host_tgid));
  const size_t count = static_cast<size_t>(state.timers_size());
  if (count == 0)
    return Collect([](const tracee::Batch&) -> absl::StatusOr<std::string> { return ""; });
  const tracee::Batch::Data all = batch.reserve(count * sizeof(itimerspec));
  std::vector<size_t> calls;
  for (size_t i = 0; i < count; ++i)
    calls.push_back(
        batch.call(SYS_timer_gettime, {state.timers(static_cast<int>(i)).id(),
                                       slice(all, i * sizeof(itimerspec), sizeof(itimerspec))}));
  return Collect([=](const tracee::Batch& done) -> absl::StatusOr<std::string> {
    PosixTimersState full = state;
    for (size_t i = 0; i < count; ++i) {
      GW_RETURN_IF_ERROR(done.check(calls[i]));
      const auto left = value_in<itimerspec>(done, all, i);
      PosixTimerState& one = *full.mutable_timers(static_cast<int>(i));
      one.set_interval_ns(nanoseconds(left.it_interval));
      one.set_remaining_ns(nanoseconds(left.it_value));
    }
    return full.SerializeAsString();
  });
}

absl::Status PosixTimersResource::precheck(const TaskView& view,
                                           std::vector<Refusal>& refusals) const {
  const std::string object = fmt::format("process {}", view.tgid.value);
  const absl::StatusOr<std::vector<kernel::PosixTimer>> timers =
      kernel::read_timers(view.host_tgid);
  // Else it has ended, which is its caller's to know.
  if (errno_of(timers.status()) == ENOENT &&
      errno_of(kernel::read_timers(HostPid{::getpid()}).status()) == ENOENT) {
    refusals.push_back({.code = "posix_timers.unreadable",
                        .object = object,
                        .reason = "its POSIX timers cannot be read: no /proc/PID/timers",
                        .way_out = "use a kernel built with CONFIG_CHECKPOINT_RESTORE"});
    return absl::OkStatus();
  }
  GW_RETURN_IF_ERROR(timers.status());
  GW_ASSIGN_OR_RETURN(const bool unknown, has_unknown_thread(view.host_tgid, *timers));
  if (unknown)
    refusals.push_back({.code = "posix_timers.thread_clock",
                        .object = object,
                        .reason = "a timer of it runs on the CPU time of one of its threads, and "
                                  "the kernel does not say which",
                        .way_out = "create the timer with the clock of pthread_getcpuclockid()"});
  return absl::OkStatus();
}

const TaskResource& posix_timers_resource() {
  static const PosixTimersResource resource;
  return resource;
}

}  // namespace godwit::resource
