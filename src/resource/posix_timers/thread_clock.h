// CPU clocks as clock ids (include/linux/posix-timers_types.h): ~pid << 3 | per-thread << 2 | kind.
#ifndef GODWIT_RESOURCE_POSIX_TIMERS_THREAD_CLOCK_H_
#define GODWIT_RESOURCE_POSIX_TIMERS_THREAD_CLOCK_H_

#include <cstdint>

namespace godwit::resource {

// CLOCK_THREAD_CPUTIME_ID of whichever thread called timer_create: per thread, pid 0.
constexpr bool is_own_thread_clock(int32_t clock) {
  return clock < 0 && (clock & 4) != 0 && ~(clock >> 3) == 0;
}
static_assert(is_own_thread_clock(-2) && !is_own_thread_clock(-6) && !is_own_thread_clock(3));

}  // namespace godwit::resource

#endif  // GODWIT_RESOURCE_POSIX_TIMERS_THREAD_CLOCK_H_
