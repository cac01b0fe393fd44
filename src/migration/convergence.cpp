#include "migration/convergence.h"

#include <fmt/core.h>

namespace godwit::migration {
namespace {

constexpr int kIdleBeforeTurning = 2;
constexpr int kIdleBeforeGivingUp = 4;

}  // namespace

PassVerdict Convergence::look(const PassFigures& now) {
  if (limits_.strategy == STRATEGY_POSTCOPY) {
    reason_ = "it was asked for";
    return PassVerdict::kPostCopy;
  }
  if (now.pass == last_pass_) return PassVerdict::kGoOn;
  last_pass_ = now.pass;
  const PassVerdict verdict = decide(now);
  left_before_ = now.bytes_left;
  return verdict;
}

PassVerdict Convergence::decide(const PassFigures& now) {
  if (limits_.strategy == STRATEGY_HYBRID && now.pass >= 2) {
    reason_ = "a pass has carried everything once; what was written meanwhile follows";
    return PassVerdict::kPostCopy;
  }
  // The first pass tells nothing of what is written, and the second has no figure before it.
  if (now.pass <= 2) return PassVerdict::kGoOn;
  const bool no_less = now.bytes_left > left_before_ - left_before_ / 10;
  const bool fast = now.dirty_bytes_per_s > now.bytes_per_s / 5 * 4;
  idle_ = left_before_ > 0 && (no_less || fast) ? idle_ + 1 : 0;
  if (idle_ < kIdleBeforeTurning) return PassVerdict::kGoOn;
  const double rest_ns = now.bytes_per_s == 0 ? 1e18
                                              : static_cast<double>(now.bytes_left) * 1e9 /
                                                    static_cast<double>(now.bytes_per_s);
  const std::string why = fmt::format(
      "it writes {} MiB/s, and the link takes {} MiB/s, with {} MiB left after pass {}",
      now.dirty_bytes_per_s >> 20, now.bytes_per_s >> 20, now.bytes_left >> 20, now.pass - 1);
  if (limits_.downtime_ns < limits_.most_downtime_ns &&
      rest_ns <= static_cast<double>(limits_.most_downtime_ns)) {
    limits_.downtime_ns = limits_.most_downtime_ns;
    idle_ = 0;
    reason_ =
        fmt::format("{}: the downtime may be {} ms now", why, limits_.most_downtime_ns / 1'000'000);
    return PassVerdict::kRaiseDowntime;
  }
  if (limits_.post_copy_possible && limits_.strategy == STRATEGY_AUTO) {
    reason_ = why;
    return PassVerdict::kPostCopy;
  }
  if (idle_ < kIdleBeforeGivingUp) return PassVerdict::kGoOn;
  reason_ = why;
  return PassVerdict::kGiveUp;
}

}  // namespace godwit::migration
