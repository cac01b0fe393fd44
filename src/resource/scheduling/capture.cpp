// All but the timer slack by system calls from outside, with the tid: 0.2-0.4 us each.
#include <sched.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <memory>
#include <string>

#include "kernel/slice.h"
#include "kernel/syscalls.h"
#include "resource/scheduling/sched_attr.h"
#include "resource/scheduling/scheduling.h"
#include "resource/scheduling/scheduling.pb.h"
#include "resource/state_codec.h"

namespace godwit::resource {
namespace {

// 8192 CPUs, the most that x86-64 can be built for.
using CpuMask = std::array<unsigned char, 1024>;

absl::StatusOr<CpuMask> affinity_of(HostPid task) {
  CpuMask mask{};
  if (::syscall(SYS_sched_getaffinity, task.value, mask.size(), mask.data()) < 0)
    return errno_status(errno, fmt::format("sched_getaffinity({})", task.value));
  return mask;
}

// "0-3,8,10-11" (cputopology, Documentation/admin-guide/cputopology.rst).
absl::StatusOr<CpuMask> online_cpus() {
  GW_ASSIGN_OR_RETURN(const std::string text,
                      kernel::read_file("/sys/devices/system/cpu/online", 65536));
  CpuMask mask{};
  const char* at = text.data();
  const char* const end = text.data() + text.size();
  while (at < end && *at != '\n') {
    unsigned first = 0;
    std::from_chars_result parsed = std::from_chars(at, end, first);
    unsigned last = first;
    if (parsed.ec == std::errc() && parsed.ptr < end && *parsed.ptr == '-')
      parsed = std::from_chars(parsed.ptr + 1, end, last);
    if (parsed.ec != std::errc() || last < first || last >= mask.size() * 8)
      return make_error(absl::StatusCode::kDataLoss, "/sys/devices/system/cpu/online says \"{}\"",
                        text);
    for (unsigned cpu = first; cpu <= last; ++cpu)
      mask[cpu / 8] = static_cast<unsigned char>(mask[cpu / 8] | 1U << cpu % 8);
    at = parsed.ptr < end && *parsed.ptr == ',' ? parsed.ptr + 1 : parsed.ptr;
  }
  return mask;
}

bool covers(const CpuMask& mask, const CpuMask& wanted) {
  for (size_t i = 0; i < mask.size(); ++i)
    if ((wanted[i] & ~mask[i]) != 0) return false;
  return true;
}

// As of the first look: another one takes 6 us a task in the freeze.
const absl::StatusOr<CpuMask>& known_cpus() {
  static const absl::StatusOr<CpuMask> known = online_cpus();
  return known;
}

absl::StatusOr<std::string> affinity_bytes(HostPid task) {
  GW_ASSIGN_OR_RETURN(const CpuMask mask, affinity_of(task));
  if (known_cpus().ok() && covers(mask, *known_cpus())) return std::string();
  GW_ASSIGN_OR_RETURN(const CpuMask online, online_cpus());
  if (covers(mask, online)) return std::string();
  const auto last = std::find_if(mask.rbegin(), mask.rend(), [](unsigned char c) { return c; });
  return std::string(mask.begin(), last.base());
}

absl::StatusOr<SchedulingState> from_outside(HostPid task) {
  GW_ASSIGN_OR_RETURN(SchedAttr attr, sched_getattr(task));
  const bool fair =
      attr.policy != kSchedFifo && attr.policy != kSchedRr && attr.policy != kSchedDeadline;
  if (fair) {
    // Since 6.12 the slice; the default one must not be nailed down elsewhere.
    if (attr.runtime == static_cast<uint64_t>(absl::ToInt64Nanoseconds(kernel::default_slice())))
      attr.runtime = 0;
  }
  const long io_priority = ::syscall(SYS_ioprio_get, kIoprioWhoProcess, task.value);
  if (io_priority < 0) return errno_status(errno, fmt::format("ioprio_get({})", task.value));

  SchedulingState state;
  state.set_policy(attr.policy);
  state.set_flags(attr.flags);
  state.set_nice(attr.nice);
  state.set_priority(attr.priority);
  state.set_runtime_ns(attr.runtime);
  state.set_deadline_ns(attr.deadline);
  state.set_period_ns(attr.period);
  state.set_util_min(attr.util_min);
  state.set_util_max(attr.util_max);
  state.set_io_priority(static_cast<uint32_t>(io_priority));
  GW_ASSIGN_OR_RETURN(*state.mutable_affinity(), affinity_bytes(task));
  return state;
}

}  // namespace

absl::StatusOr<SchedAttr> sched_getattr(HostPid task) {
  SchedAttr attr{};
  if (::syscall(SYS_sched_getattr, task.value, &attr, sizeof attr, 0) != 0)
    return errno_status(errno, fmt::format("sched_getattr({})", task.value));
  return attr;
}

absl::StatusOr<TaskResource::Collect> SchedulingResource::capture(const TaskView& view,
                                                                  tracee::Batch& batch) const {
  if (view.task == nullptr) {
    GW_ASSIGN_OR_RETURN(SchedulingState state, from_outside(view.host_tid));
    GW_ASSIGN_OR_RETURN(
        const std::string text,
        kernel::read_file(fmt::format("/proc/{}/timerslack_ns", view.host_tid.value), 64));
    uint64_t slack = 0;
    std::from_chars(text.data(), text.data() + text.size(), slack);
    state.set_timer_slack_ns(slack);
    return Collect([bytes = state.SerializeAsString()](
                       const tracee::Batch&) -> absl::StatusOr<std::string> { return bytes; });
  }
  if (view.seen != nullptr)
    return Collect([tid = view.host_tid, slack = view.seen->timer_slack_ns](
                       const tracee::Batch&) -> absl::StatusOr<std::string> {
      GW_ASSIGN_OR_RETURN(SchedulingState state, from_outside(tid));
      state.set_timer_slack_ns(slack);
      return state.SerializeAsString();
    });
  const size_t slack = batch.call(SYS_prctl, {PR_GET_TIMERSLACK, 0, 0, 0, 0});
  const auto state = std::make_shared<SchedulingState>();
  batch.meanwhile([state, tid = view.host_tid]() -> absl::Status {
    GW_ASSIGN_OR_RETURN(*state, from_outside(tid));
    return absl::OkStatus();
  });
  return Collect([state, slack](const tracee::Batch& done) -> absl::StatusOr<std::string> {
    GW_RETURN_IF_ERROR(done.check(slack));
    state->set_timer_slack_ns(static_cast<uint64_t>(done.result(slack)));
    return state->SerializeAsString();
  });
}

absl::Status SchedulingResource::precheck(const TaskView&, std::vector<Refusal>&) const {
  // Not for the freeze: a look at /sys, and four system calls.
  (void)known_cpus();
  (void)kernel::default_slice();
  return absl::OkStatus();
}

absl::StatusOr<TaskResource::Collect> OomScoreAdjResource::capture(const TaskView& view,
                                                                   tracee::Batch& batch) const {
  const auto state = std::make_shared<OomScoreAdjState>();
  batch.meanwhile([state, tgid = view.host_tgid]() -> absl::Status {
    const std::string path = fmt::format("/proc/{}/oom_score_adj", tgid.value);
    GW_ASSIGN_OR_RETURN(const std::string text, kernel::read_file(path, 64));
    int adjustment = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), adjustment);
    if (error != std::errc())
      return make_error(absl::StatusCode::kDataLoss, "{} says \"{}\"", path, text);
    state->set_adjustment(adjustment);
    return absl::OkStatus();
  });
  return Collect([state](const tracee::Batch&) -> absl::StatusOr<std::string> {
    return state->SerializeAsString();
  });
}

absl::Status OomScoreAdjResource::precheck(const TaskView&, std::vector<Refusal>&) const {
  return absl::OkStatus();
}

const TaskResource& scheduling_resource() {
  static const SchedulingResource resource;
  return resource;
}
const TaskResource& oom_score_adj_resource() {
  static const OomScoreAdjResource resource;
  return resource;
}

}  // namespace godwit::resource
