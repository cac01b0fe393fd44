#include <sys/syscall.h>
#include <sys/time.h>

#include <string>

#include "resource/itimers/itimers.h"
#include "resource/itimers/itimers.pb.h"
#include "resource/state_codec.h"

namespace godwit::resource {
namespace {

timeval time_of(uint64_t microseconds) {
  return {.tv_sec = static_cast<time_t>(microseconds / 1'000'000),
          .tv_usec = static_cast<suseconds_t>(microseconds % 1'000'000)};
}

}  // namespace

absl::StatusOr<TaskResource::Check> ItimersResource::restore(std::string_view bytes,
                                                             const TaskView&,
                                                             tracee::Batch& batch) const {
  GW_ASSIGN_OR_RETURN(const ItimersState state, parse_state<ItimersState>(bytes, name()));
  std::vector<size_t> calls;
  int which = 0;  // ITIMER_REAL is 0, ITIMER_VIRTUAL 1, ITIMER_PROF 2
  for (const IntervalTimer& timer : state.timers()) {
    itimerval value{};
    value.it_interval = time_of(timer.interval_us());
    // An ITIMER_REAL that has expired starts again when its SIGALRM is taken, and has no time left
    // until then; setitimer(2) with no time would drop the interval. A second SIGALRM merges with
    // the pending one.
    const bool expired = which == ITIMER_REAL && timer.value_us() == 0 && timer.interval_us() != 0;
    value.it_value = time_of(expired ? 1 : timer.value_us());
    calls.push_back(batch.call(SYS_setitimer, {which++, batch.data(bytes_of(value)), 0}));
  }
  return Check([calls](const tracee::Batch& done) {
    for (const size_t call : calls) GW_RETURN_IF_ERROR(done.check(call));
    return absl::OkStatus();
  });
}

}  // namespace godwit::resource
