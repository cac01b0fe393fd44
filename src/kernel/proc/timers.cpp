#include "kernel/proc/timers.h"

#include <fmt/format.h>

#include <algorithm>
#include <string>

#include "base/status.h"
#include "kernel/proc/text_scanner.h"
#include "kernel/syscalls.h"

namespace godwit::kernel {
namespace {

bool read_timer(TextScanner& s, PosixTimer& t) {
  if (!s.literal("ID: ") || !s.number(t.id) || !s.literal("\nsignal: ") || !s.number(t.signal) ||
      !s.literal("/")) {
    return false;
  }
  // %px: no 0x; a null pointer has all its zeros.
  if (!s.number(t.sigev_value, 16) || !s.literal("\nnotify: ")) return false;
  if (s.literal("signal/")) {
    t.notify = TimerNotify::kSignal;
  } else if (s.literal("none/")) {
    t.notify = TimerNotify::kNone;
  } else if (s.literal("thread/")) {
    t.notify = TimerNotify::kThread;
  } else {
    return false;
  }
  t.to_thread = s.literal("tid.");
  if (!t.to_thread && !s.literal("pid.")) return false;
  return s.number(t.target.value) && s.literal("\nClockID: ") && s.number(t.clock) &&
         s.literal("\n");
}

}  // namespace

absl::StatusOr<std::vector<PosixTimer>> parse_timers(std::string_view text) {
  std::vector<PosixTimer> timers;
  for (TextScanner s(text); !s.at_end();) {
    PosixTimer timer;
    if (!read_timer(s, timer)) {
      return make_error(absl::StatusCode::kInvalidArgument, "timers: bad text at \"{}\"",
                        s.rest().substr(0, 60));
    }
    timers.push_back(timer);
  }
  std::sort(timers.begin(), timers.end(),
            [](const PosixTimer& a, const PosixTimer& b) { return a.id < b.id; });
  return timers;
}

absl::StatusOr<std::vector<PosixTimer>> read_timers(HostPid pid) {
  GW_ASSIGN_OR_RETURN(const std::string text, read_file(fmt::format("/proc/{}/timers", pid.value)));
  return parse_timers(text);
}

}  // namespace godwit::kernel
