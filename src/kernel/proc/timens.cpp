#include "kernel/proc/timens.h"

#include <fmt/format.h>

#include <string>

#include "base/status.h"
#include "kernel/proc/text_scanner.h"
#include "kernel/syscalls.h"

namespace godwit::kernel {
namespace {

// "monotonic           -1    500000000": seconds may be negative, nanoseconds not.
bool offset(TextScanner& s, std::string_view clock, int64_t& total_ns) {
  int64_t seconds = 0;
  int64_t ns = 0;
  if (!s.literal(clock)) return false;
  s.skip_blanks();
  if (!s.number(seconds)) return false;
  s.skip_blanks();
  if (!s.number(ns) || !s.literal("\n") || ns < 0 || ns >= 1'000'000'000) return false;
  return !__builtin_mul_overflow(seconds, int64_t{1'000'000'000}, &total_ns) &&
         !__builtin_add_overflow(total_ns, ns, &total_ns);
}

}  // namespace

absl::StatusOr<TimeOffsets> parse_time_offsets(std::string_view text) {
  TimeOffsets offsets;
  TextScanner s(text);
  if (!offset(s, "monotonic", offsets.monotonic_ns) ||
      !offset(s, "boottime", offsets.boottime_ns) || !s.at_end()) {
    return make_error(absl::StatusCode::kInvalidArgument, "timens_offsets: bad text: \"{}\"",
                      text.substr(0, 100));
  }
  return offsets;
}

absl::StatusOr<TimeOffsets> read_time_offsets(HostPid pid) {
  GW_ASSIGN_OR_RETURN(const std::string text,
                      read_file(fmt::format("/proc/{}/timens_offsets", pid.value)));
  return parse_time_offsets(text);
}

}  // namespace godwit::kernel
