// timerfd_create(2). fdinfo has the clock, the flags and the ticks; it does not advance a periodic
// timer that has expired, timerfd_gettime(2) does (as a read would, the ticks are kept). So that is
// asked first, and fdinfo afterwards, both through our own duplicate.
#include <fmt/format.h>
#include <sys/timerfd.h>

#include "base/clock.h"
#include "kernel/proc/text_scanner.h"
#include "resource/file_description.h"
#include "resource/timerfd/timerfd.h"
#include "resource/timerfd/timerfd.pb.h"
#include "resource/timerfd/timerfd_internal.h"

namespace godwit::resource {
namespace {

// A timer may fire between two looks at it: look again. One that fires faster than that for ever
// is taken as it is.
constexpr int kLooks = 16;

int64_t ns_of(const timespec& t) { return int64_t{t.tv_sec} * 1'000'000'000 + t.tv_nsec; }

struct Look {
  kernel::FdInfo info;
  int64_t at_ns = 0;  // on CLOCK_MONOTONIC of this machine, when `remaining_ns` held
  int64_t remaining_ns = 0;
  int64_t interval_ns = 0;
};

absl::StatusOr<itimerspec> get_time(int fd) {
  itimerspec value{};
  if (::timerfd_gettime(fd, &value) != 0) {
    return errno_status(errno, fmt::format("timerfd_gettime({})", fd));
  }
  return value;
}

absl::StatusOr<Look> look_at(int fd, clockid_t* base,
                             bool (*set_base)(const kernel::FdInfo&, clockid_t*)) {
  Look look;
  for (int i = 0; i < kLooks; ++i) {
    GW_ASSIGN_OR_RETURN(const itimerspec first, get_time(fd));
    GW_ASSIGN_OR_RETURN(const std::string text,
                        kernel::read_file(fmt::format("/proc/self/fdinfo/{}", fd)));
    GW_ASSIGN_OR_RETURN(look.info, kernel::parse_fdinfo(text));
    if (!set_base(look.info, base)) {
      return make_error(absl::StatusCode::kFailedPrecondition, "timerfd: fdinfo is not understood");
    }
    GW_ASSIGN_OR_RETURN(const itimerspec second, get_time(fd));
    look.at_ns = clock_ns(*base);
    look.remaining_ns = ns_of(second.it_value);
    look.interval_ns = ns_of(second.it_interval);
    const int64_t before = ns_of(first.it_value);
    if ((before == 0) == (look.remaining_ns == 0) && look.remaining_ns <= before) break;
  }
  return look;
}

bool flags_of(const kernel::FdInfo& info, uint32_t& flags) {
  const auto text = info.find("settime");  // "settime flags: 01": octal
  if (!text) return false;
  kernel::TextScanner s(*text);
  return s.literal("flags: ") && s.number(flags, 8) && s.at_end();
}

bool base_of(const kernel::FdInfo& info, clockid_t* base) {
  const auto clock = info.number("clockid");
  uint32_t flags = 0;
  if (!clock || *clock > CLOCK_TAI || !flags_of(info, flags)) return false;
  *base = timerfd_base_clock(static_cast<clockid_t>(*clock), (flags & TFD_TIMER_ABSTIME) != 0);
  return true;
}

}  // namespace

const FileKind& timerfd_kind() {
  static const TimerfdKind kind;
  return kind;
}

clockid_t timerfd_base_clock(clockid_t clock, bool absolute) {
  if (clock == CLOCK_REALTIME && !absolute) return CLOCK_MONOTONIC;
  // Without a real-time clock device the alarm clocks can be used, but not read.
  if (clock == CLOCK_REALTIME_ALARM) return CLOCK_REALTIME;
  if (clock == CLOCK_BOOTTIME_ALARM) return CLOCK_BOOTTIME;
  return clock;
}

int64_t capsule_offset_ns(clockid_t base, const kernel::TimeOffsets& offsets) {
  if (base == CLOCK_MONOTONIC) return offsets.monotonic_ns;
  if (base == CLOCK_BOOTTIME) return offsets.boottime_ns;
  return 0;
}

int64_t capsule_now_ns(clockid_t base, const kernel::TimeOffsets& offsets) {
  return clock_ns(base) + capsule_offset_ns(base, offsets);
}

bool TimerfdKind::recognise(const OpenFile& file) const {
  return file.link == "anon_inode:[timerfd]";
}

absl::Status TimerfdKind::precheck(const OpenFile&, const CaptureContext&,
                                   std::vector<Refusal>&) const {
  return absl::OkStatus();
}

absl::StatusOr<std::string> TimerfdKind::capture(const OpenFile& file,
                                                 const CaptureContext& context) const {
  GW_ASSIGN_OR_RETURN(const kernel::TimeOffsets offsets,
                      kernel::read_time_offsets(context.init_pid()));
  clockid_t base = CLOCK_MONOTONIC;
  GW_ASSIGN_OR_RETURN(const Look look, look_at(file.fd, &base, base_of));
  const auto ticks = look.info.number("ticks");
  uint32_t flags = 0;
  if (!ticks || !flags_of(look.info, flags)) {
    return make_error(absl::StatusCode::kFailedPrecondition, "{}: fdinfo is not understood",
                      object_of(file));
  }
  TimerfdState state;
  state.set_clock(static_cast<int32_t>(look.info.number("clockid").value_or(0)));
  state.set_flags(static_cast<uint32_t>(file.status_flags));
  state.set_settime_flags(flags);
  state.set_armed(look.remaining_ns != 0);
  if (state.armed()) {
    state.set_expiry_ns(look.at_ns + capsule_offset_ns(base, offsets) + look.remaining_ns);
  }
  state.set_interval_ns(look.interval_ns);
  state.set_ticks(*ticks);
  return state.SerializeAsString();
}

}  // namespace godwit::resource
