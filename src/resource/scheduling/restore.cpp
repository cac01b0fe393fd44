// From outside, by tid, after the credentials have changed: CAP_SYS_NICE.
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <string>

#include "kernel/syscalls.h"
#include "resource/scheduling/sched_attr.h"
#include "resource/scheduling/scheduling.h"
#include "resource/scheduling/scheduling.pb.h"
#include "resource/state_codec.h"

namespace godwit::resource {
namespace {

absl::Status set_policy(const SchedulingState& state, const TaskView& husk) {
  GW_ASSIGN_OR_RETURN(const SchedAttr now, sched_getattr(husk.host_tid));
  SchedAttr attr{};
  attr.size = sizeof attr;
  attr.policy = state.policy();
  attr.flags = state.flags();
  attr.nice = state.nice();
  attr.priority = state.priority();
  attr.runtime = state.runtime_ns();
  attr.deadline = state.deadline_ns();
  attr.period = state.period_ns();
  if (state.util_min() != now.util_min || state.util_max() != now.util_max) {
    // Only where it differs: kernels without CONFIG_UCLAMP_TASK refuse the flags.
    attr.flags |= kSchedFlagUtilClamp;
    attr.util_min = state.util_min();
    attr.util_max = state.util_max();
  }
  if (::syscall(SYS_sched_setattr, husk.host_tid.value, &attr, 0) != 0)
    return errno_status(
        errno, fmt::format("task {}: sched_setattr(policy {}, nice {}, priority {}, runtime {}, "
                           "deadline {}, period {})",
                           husk.tid.value, attr.policy, attr.nice, attr.priority, attr.runtime,
                           attr.deadline, attr.period));
  return absl::OkStatus();
}

absl::Status set_affinity(const std::string& affinity, const TaskView& husk) {
  // "Every CPU": what is more than the machine or the cpuset has, the kernel ignores.
  const std::string mask = affinity.empty() ? std::string(1024, '\xff') : affinity;
  // The kernel takes any length, and zeros for what is missing.
  if (::syscall(SYS_sched_setaffinity, husk.host_tid.value, mask.size(), mask.data()) != 0)
    return errno_status(
        errno, fmt::format("task {}: sched_setaffinity: none of its CPUs is here", husk.tid.value));
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<TaskResource::Check> SchedulingResource::restore(std::string_view bytes,
                                                                const TaskView& husk,
                                                                tracee::Batch&) const {
  GW_ASSIGN_OR_RETURN(const SchedulingState state, parse_state<SchedulingState>(bytes, name()));
  // SCHED_DEADLINE forbids a change of affinity and wants all CPUs (sched(7)): affinity first.
  GW_RETURN_IF_ERROR(set_affinity(state.affinity(), husk));
  GW_RETURN_IF_ERROR(set_policy(state, husk));
  if (::syscall(SYS_ioprio_set, kIoprioWhoProcess, husk.host_tid.value, state.io_priority()) != 0)
    return errno_status(
        errno, fmt::format("task {}: ioprio_set({:#x})", husk.tid.value, state.io_priority()));
  // 0 comes with the policy (SCHED_FIFO, _RR, _DEADLINE since 6.13); writing it would mean "the
  // default". Under any other policy nothing has changed what the husk has.
  SchedulingState known;
  if (husk.known) {
    GW_ASSIGN_OR_RETURN(known, parse_state<SchedulingState>(*husk.known, name()));
  }
  if (state.timer_slack_ns() != 0 && state.timer_slack_ns() != known.timer_slack_ns())
    GW_RETURN_IF_ERROR(
        kernel::write_file(fmt::format("/proc/{}/timerslack_ns", husk.host_tid.value),
                           std::to_string(state.timer_slack_ns())));
  return Check{};
}

absl::StatusOr<TaskResource::Check> OomScoreAdjResource::restore(std::string_view bytes,
                                                                 const TaskView& husk,
                                                                 tracee::Batch& batch) const {
  GW_ASSIGN_OR_RETURN(const OomScoreAdjState state, parse_state<OomScoreAdjState>(bytes, name()));
  batch.meanwhile([adjustment = state.adjustment(), husk]() -> absl::Status {
    const std::string path = fmt::format("/proc/{}/oom_score_adj", husk.host_tgid.value);
    const absl::Status status = kernel::write_file(path, std::to_string(adjustment));
    if (errno_of(status) == EACCES)
      return make_error(absl::StatusCode::kFailedPrecondition,
                        "process {}: oom_score_adj {} is lower than godwit's node was started "
                        "with, which needs CAP_SYS_RESOURCE here",
                        husk.tgid.value, adjustment);
    return status;
  });
  return Check{};
}

}  // namespace godwit::resource
