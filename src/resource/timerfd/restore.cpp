// The timer goes on as if it had never stopped: what came due on the way is due now, and counted.
#include <fmt/format.h>
#include <sys/ioctl.h>
#include <sys/timerfd.h>

#include "base/clock.h"
#include "kernel/abi/timerfd.h"
#include "resource/file_description.h"
#include "resource/state_codec.h"
#include "resource/timerfd/timerfd.pb.h"
#include "resource/timerfd/timerfd_internal.h"

namespace godwit::resource {
namespace {

// settime() clears the ticks, so they are set after it: a timer that expires between the two would
// lose one. Then the clock shows it, and it is done again; faster than this no timer is kept exact.
constexpr int kAttempts = 16;

timespec spec_of(int64_t ns) {
  return {static_cast<time_t>(ns / 1'000'000'000), static_cast<long>(ns % 1'000'000'000)};
}

// Counts the expirations up to `now`; afterwards the next one lies ahead, or the timer is off.
void catch_up(TimerfdState& state, int64_t now_ns) {
  if (!state.armed() || state.expiry_ns() > now_ns) return;
  if (state.interval_ns() == 0) {
    state.set_armed(false);
    state.set_ticks(state.ticks() + 1);
    return;
  }
  const int64_t times = 1 + (now_ns - state.expiry_ns()) / state.interval_ns();
  state.set_ticks(state.ticks() + static_cast<uint64_t>(times));
  state.set_expiry_ns(state.expiry_ns() + times * state.interval_ns());
}

absl::Status arm(int fd, TimerfdState state, RestoreContext& context) {
  GW_ASSIGN_OR_RETURN(const kernel::TimeOffsets offsets,
                      kernel::read_time_offsets(context.init_pid()));
  const bool absolute = (state.settime_flags() & TFD_TIMER_ABSTIME) != 0;
  const clockid_t base = timerfd_base_clock(state.clock(), absolute);
  for (int attempt = 0;; ++attempt) {
    const int64_t now = capsule_now_ns(base, offsets);
    catch_up(state, now);
    itimerspec value{};
    value.it_interval = spec_of(state.interval_ns());
    if (state.armed()) {
      // We are outside of the capsule's time namespace: absolute times on this machine's clock.
      value.it_value = spec_of(absolute ? state.expiry_ns() - capsule_offset_ns(base, offsets)
                                        : state.expiry_ns() - now);
    }
    if (::timerfd_settime(fd, static_cast<int>(state.settime_flags()), &value, nullptr) != 0) {
      return errno_status(errno, fmt::format("timerfd_settime({}, {:#x}, {} ns)", fd,
                                             state.settime_flags(), state.expiry_ns() - now));
    }
    if (state.ticks() == 0) return absl::OkStatus();
    uint64_t ticks = state.ticks();
    if (::ioctl(fd, kernel::abi::kTfdIocSetTicks, &ticks) != 0) {
      return errno_status(errno, fmt::format("ioctl({}, TFD_IOC_SET_TICKS, {})", fd, ticks));
    }
    if (!state.armed() || capsule_now_ns(base, offsets) < state.expiry_ns() ||
        attempt == kAttempts) {
      return absl::OkStatus();
    }
  }
}

absl::StatusOr<TimerfdState> parse(std::string_view bytes) {
  GW_ASSIGN_OR_RETURN(auto state, parse_state<TimerfdState>(bytes, "timerfd"));
  constexpr int64_t kMost = int64_t{1} << 62;
  if (state.interval_ns() < 0 || state.interval_ns() > kMost || state.expiry_ns() > kMost ||
      state.expiry_ns() < -kMost) {
    return make_error(absl::StatusCode::kDataLoss, "timerfd: times out of range");
  }
  return state;
}

}  // namespace

absl::StatusOr<UniqueFd> TimerfdKind::create(uint64_t, std::string_view bytes,
                                             RestoreContext& context) const {
  GW_ASSIGN_OR_RETURN(const TimerfdState state, parse(bytes));
  UniqueFd fd(::timerfd_create(state.clock(), TFD_CLOEXEC));
  if (!fd) return errno_status(errno, fmt::format("timerfd_create({})", state.clock()));
  GW_RETURN_IF_ERROR(arm(fd.get(), state, context));
  GW_RETURN_IF_ERROR(set_status_flags(fd.get(), static_cast<int>(state.flags())));
  return fd;
}

absl::StatusOr<bool> TimerfdKind::update(int fd, std::string_view before_bytes,
                                         std::string_view now_bytes,
                                         RestoreContext& context) const {
  GW_ASSIGN_OR_RETURN(const TimerfdState before, parse(before_bytes));
  GW_ASSIGN_OR_RETURN(const TimerfdState now, parse(now_bytes));
  if (before.clock() != now.clock()) return false;
  GW_RETURN_IF_ERROR(arm(fd, now, context));
  GW_RETURN_IF_ERROR(set_status_flags(fd, static_cast<int>(now.flags())));
  return true;
}

absl::StatusOr<FileKind::Check> TimerfdKind::finish(int, std::string_view, ImagePid, int,
                                                    tracee::Batch&, RestoreContext&) const {
  return Check();
}

std::string TimerfdKind::describe(std::string_view bytes) const {
  const auto state = parse_state<TimerfdState>(bytes, name());
  if (!state.ok()) return "timerfd (unreadable)";
  return fmt::format("timerfd clock {} {}, interval {} ns, {} expirations to read", state->clock(),
                     state->armed() ? "armed" : "off", state->interval_ns(), state->ticks());
}

}  // namespace godwit::resource
