#include <sys/syscall.h>
#include <sys/time.h>

#include <string>

#include "resource/itimers/itimers.h"
#include "resource/itimers/itimers.pb.h"
#include "resource/state_codec.h"

namespace godwit::resource {
namespace {

constexpr int kTimers = 3;  // ITIMER_REAL, ITIMER_VIRTUAL, ITIMER_PROF

uint64_t microseconds(const timeval& tv) {
  return static_cast<uint64_t>(tv.tv_sec) * 1'000'000 + static_cast<uint64_t>(tv.tv_usec);
}

}  // namespace

absl::StatusOr<TaskResource::Collect> ItimersResource::capture(const TaskView& view,
                                                               tracee::Batch& batch) const {
  if (view.task == nullptr)
    return make_error(absl::StatusCode::kFailedPrecondition, "{} of running process {}", name(),
                      view.host_tgid.value);
  const tracee::Batch::Data all = batch.reserve(kTimers * sizeof(itimerval));
  std::vector<size_t> calls;
  for (int which = 0; which < kTimers; ++which)
    calls.push_back(batch.call(
        SYS_getitimer,
        {which, slice(all, static_cast<size_t>(which) * sizeof(itimerval), sizeof(itimerval))}));
  return Collect([=](const tracee::Batch& done) -> absl::StatusOr<std::string> {
    ItimersState state;
    bool armed = false;
    for (int which = 0; which < kTimers; ++which) {
      GW_RETURN_IF_ERROR(done.check(calls[static_cast<size_t>(which)]));
      const auto timer = value_in<itimerval>(done, all, static_cast<size_t>(which));
      IntervalTimer& one = *state.add_timers();
      one.set_interval_us(microseconds(timer.it_interval));
      one.set_value_us(microseconds(timer.it_value));
      armed = armed || one.interval_us() != 0 || one.value_us() != 0;
    }
    return armed ? state.SerializeAsString() : std::string();
  });
}

absl::Status ItimersResource::precheck(const TaskView&, std::vector<Refusal>&) const {
  return absl::OkStatus();
}

const TaskResource& itimers_resource() {
  static const ItimersResource resource;
  return resource;
}

}  // namespace godwit::resource
