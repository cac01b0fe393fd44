// /proc/PID/timers (proc_pid_timers(5), Linux 3.10): the POSIX timers of a process. What is left of
// each only the process itself can ask (timer_gettime(2)).
#ifndef GODWIT_KERNEL_PROC_TIMERS_H_
#define GODWIT_KERNEL_PROC_TIMERS_H_

#include <cstdint>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "base/ids.h"

namespace godwit::kernel {

enum class TimerNotify { kInvalid, kSignal, kNone, kThread };

struct PosixTimer {
  int32_t id = 0;
  int32_t signal = 0;
  uint64_t sigev_value = 0;  // sival_ptr as a number
  TimerNotify notify = TimerNotify::kInvalid;
  bool to_thread = false;  // SIGEV_THREAD_ID: `target` is a tid
  HostPid target;          // as the reader's /proc sees it
  int32_t clock = 0;
};

// Ordered by id (the kernel lists the newest first).
absl::StatusOr<std::vector<PosixTimer>> parse_timers(std::string_view text);
absl::StatusOr<std::vector<PosixTimer>> read_timers(HostPid pid);

}  // namespace godwit::kernel

#endif  // GODWIT_KERNEL_PROC_TIMERS_H_
