#include "kernel/proc/limits.h"

#include <fmt/format.h>

#include <string>

#include "base/status.h"
#include "kernel/proc/text_scanner.h"
#include "kernel/syscalls.h"

namespace godwit::kernel {
namespace {

// lnames[] of fs/proc/base.c.
constexpr std::string_view kNames[] = {
    "Max cpu time",       "Max file size",     "Max data size",         "Max stack size",
    "Max core file size", "Max resident set",  "Max processes",         "Max open files",
    "Max locked memory",  "Max address space", "Max file locks",        "Max pending signals",
    "Max msgqueue size",  "Max nice priority", "Max realtime priority", "Max realtime timeout"};
static_assert(std::size(kNames) == RLIM_NLIMITS);
static_assert(RLIMIT_CPU == 0 && RLIMIT_FSIZE == 1 && RLIMIT_DATA == 2 && RLIMIT_STACK == 3 &&
              RLIMIT_CORE == 4 && RLIMIT_RSS == 5 && RLIMIT_NPROC == 6 && RLIMIT_NOFILE == 7 &&
              RLIMIT_MEMLOCK == 8 && RLIMIT_AS == 9 && RLIMIT_LOCKS == 10 &&
              RLIMIT_SIGPENDING == 11 && RLIMIT_MSGQUEUE == 12 && RLIMIT_NICE == 13 &&
              RLIMIT_RTPRIO == 14 && RLIMIT_RTTIME == 15);

bool read_value(TextScanner& s, rlim_t& value) {
  s.skip_blanks();
  if (s.literal("unlimited")) {
    value = RLIM_INFINITY;
  } else if (!s.number(value)) {
    return false;
  }
  return s.peek() == ' ';
}

}  // namespace

absl::StatusOr<Limits> parse_limits(std::string_view text) {
  Limits limits{};
  TextScanner s(text);
  if (!s.line().starts_with("Limit ")) {
    return make_error(absl::StatusCode::kInvalidArgument, "limits: no heading");
  }
  for (size_t i = 0; i < limits.size(); ++i) {
    TextScanner line(s.line());
    if (!line.literal(kNames[i]) || !read_value(line, limits[i].rlim_cur) ||
        !read_value(line, limits[i].rlim_max)) {
      return make_error(absl::StatusCode::kInvalidArgument, "limits: bad line for \"{}\"",
                        kNames[i]);
    }
  }
  if (!s.at_end()) {
    return make_error(absl::StatusCode::kInvalidArgument, "limits: a limit that is not known: {}",
                      s.line().substr(0, 100));
  }
  return limits;
}

absl::StatusOr<Limits> read_limits(HostPid pid) {
  GW_ASSIGN_OR_RETURN(const std::string text, read_file(fmt::format("/proc/{}/limits", pid.value)));
  return parse_limits(text);
}

}  // namespace godwit::kernel
