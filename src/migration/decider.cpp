#include "migration/decider.h"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>

namespace godwit::migration {
namespace {

// Rounds smaller than this say little about the link's rate: one wait on a busy machine is much of
// their time.
constexpr uint64_t kTellingBytes = uint64_t{8} << 20;
constexpr double kUsualOverheadSeconds = 0.001;
// One round that a busy machine has made long says little.
constexpr uint32_t kBrokenPromises = 3;
// Nor does one forecast, unless it is far off.
constexpr uint32_t kBrokenLimits = 2;
constexpr int64_t kFarOff = 2;
constexpr uint32_t kMostHybridRounds = 4;
// Each step halves what it had.
constexpr uint32_t kFirstThrottlePercent = 50;
constexpr uint32_t kLeastThrottlePercent = 6;
// What a limit has done shows in the round after the next one: that sends what was written
// meanwhile.
constexpr uint32_t kThrottleShows = 2;
constexpr double kHybridShare = 0.5;  // of what is left, that a round must take away

double seconds_of(int64_t ns) { return std::max(1e-6, static_cast<double>(ns) * 1e-9); }
double ms_of(int64_t ns) { return static_cast<double>(ns) * 1e-6; }
double pages_of(double bytes) { return bytes / static_cast<double>(stream::kPageSize); }

}  // namespace

Decider::Decider(DeciderLimits limits)
    : limits_(limits),
      strategy_(limits.strategy == STRATEGY_AUTO ? STRATEGY_PRECOPY : limits.strategy),
      because_(limits.strategy == STRATEGY_AUTO ? "rounds first: nothing is known of it yet"
                                                : "it was asked for") {}

void Decider::turn_to(Strategy strategy, std::string because) {
  strategy_ = strategy;
  because_ = std::move(because);
}

Decision Decider::before(const Estimate& estimate, int64_t elapsed_ns) {
  standing_.elapsed_s = static_cast<double>(elapsed_ns) * 1e-9;
  Decision decision;
  double rate = limits_.link_bytes_per_s;
  const auto limit = static_cast<double>(limits_.bandwidth_bytes_per_s);
  if (limit > 0) rate = rate > 0 ? std::min(rate, limit) : limit;
  decision.bytes_per_s = rate;
  decision.dirty_pages_per_s = limits_.dirty_pages_per_s;
  decision.expected_pages = estimate.resident_pages - estimate.zero_pages;
  if (rate > 0) {
    const auto pages = static_cast<double>(decision.expected_pages);
    Standing first = standing_;
    first.pages_per_s = pages_of(rate);
    first.last_pages_per_s = pages_of(std::max(rate, limits_.link_bytes_per_s));
    first.writes = WriteModel::of_rate(limits_.dirty_pages_per_s, pages);
    first.rounds = 1;
    first.round_s = pages / first.pages_per_s;
    Standing second = first;
    first.elapsed_s += first.round_s;
    second.round_s = first.writes.pages_after(first.round_s) / first.pages_per_s;
    second.elapsed_s = first.elapsed_s + second.round_s;
    decision.forecasts.push_back(forecast_precopy(first, limits_));
    decision.forecasts.push_back(forecast_post_copy(
        STRATEGY_HYBRID, second.writes.pages_after(second.round_s), second, limits_));
    Standing now = first;
    now.elapsed_s = standing_.elapsed_s;
    decision.forecasts.push_back(forecast_post_copy(STRATEGY_POSTCOPY, pages, now, limits_));
    decision.forecasts.push_back(forecast_cold(pages, now, limits_));
    if (limits_.strategy == STRATEGY_AUTO) choose_before(decision);
  }
  decision.verdict = strategy_ == STRATEGY_COLD       ? Verdict::kSwitchOver
                     : strategy_ == STRATEGY_POSTCOPY ? Verdict::kPostCopy
                                                      : Verdict::kAnotherRound;
  decision.reason = because_;
  finish(decision, true);
  return decision;
}

// Figures of an earlier move may be of another load: only the size of its memory and the rate of
// the link, which change little, are reason enough to do without rounds. What it writes is
// measured.
void Decider::choose_before(const Decision& decision) {
  const Forecast& precopy = decision.forecasts.front();
  if (precopy.feasible()) {
    because_ = "rounds are expected to hold the limits";
    return;
  }
  because_ = fmt::format("rounds first, to see what it writes now; by earlier figures: {}",
                         precopy.reason);
  if (precopy.holds_total) return;
  std::vector<Forecast> possible;
  for (const Forecast& each : decision.forecasts)
    if (each.strategy == STRATEGY_PRECOPY ||
        (each.feasible() && (each.strategy == STRATEGY_COLD || limits_.post_copy_possible)))
      possible.push_back(each);
  const Forecast* best = best_of(possible);
  if (best->strategy != STRATEGY_PRECOPY)
    turn_to(best->strategy, fmt::format("by rounds: {}", precopy.reason));
}

void Decider::learn(const RoundFigures& round) {
  const double sending = seconds_of(round.duration_ns - round.lead_ns);
  const auto bytes = static_cast<double>(round.bytes);
  if (round.bytes >= kTellingBytes || bytes_per_s_ == 0)
    bytes_per_s_ = std::max(1.0, bytes / sending);
  standing_.pages_per_s = pages_of(bytes_per_s_);
  // The freeze is not limited; what it could send is known from elsewhere or not at all.
  const double unlimited = limits_.bandwidth_bytes_per_s > 0 ? limits_.link_bytes_per_s : 0;
  standing_.last_pages_per_s = pages_of(std::max(bytes_per_s_, unlimited));
  if (round.bytes >= kTellingBytes) return;
  const double overhead = std::max(0.0, sending - bytes / bytes_per_s_);
  least_overhead_s_ = small_rounds_++ == 0 ? overhead : std::min(least_overhead_s_, overhead);
}

// The least of two rounds; a single one may have been held up.
double Decider::overhead() const {
  return small_rounds_ > 1 ? least_overhead_s_ : std::min(least_overhead_s_, kUsualOverheadSeconds);
}

Decider::Rest Decider::rest_after(double round_seconds) const {
  Rest rest;
  rest.pages = standing_.writes.pages_after(round_seconds);
  rest.seconds = rest.pages / standing_.last_pages_per_s;
  return rest;
}

bool Decider::breaks_total(double more_seconds) const {
  return limits_.max_total_ns > 0 &&
         standing_.elapsed_s + more_seconds > static_cast<double>(limits_.max_total_ns) * 1e-9;
}

Decision Decider::after_round(const RoundFigures& round) {
  ++standing_.rounds;
  standing_.round_s = seconds_of(round.duration_ns);
  standing_.elapsed_s += standing_.round_s;
  learn(round);
  Decision decision;
  decision.bytes_per_s = bytes_per_s_;
  if (standing_.rounds == 1) {
    previous_ns_ = round.duration_ns;
    previous_expected_ = round.pages;
    decision.expected_pages = round.pages;
    // What it left is not known yet; a second round may take as long.
    const bool late = strategy_ == STRATEGY_HYBRID && breaks_total(standing_.round_s);
    decision.verdict = late ? Verdict::kPostCopy : Verdict::kAnotherRound;
    decision.reason = late ? "another round might break the limit of the total time (--max-total)"
                           : "the first round carries everything";
    finish(decision, false);
    return decision;
  }
  look_at(round);
  decision.dirty_pages_per_s = standing_.writes.pages_per_s();
  const Rest now = rest_after(standing_.round_s);
  decision.expected_pages = static_cast<uint64_t>(now.pages);
  decision.expected_downtime_ns = limits_.fixed_downtime_ns + std::llround(now.seconds * 1e9);
  const bool broken = decision.expected_pages >= previous_expected_;
  broken_promises_ = broken ? broken_promises_ + 1 : 0;
  previous_expected_ = decision.expected_pages;

  const Strategy followed = strategy_;
  if (strategy_ == STRATEGY_PRECOPY)
    decision.forecasts.push_back(forecast_precopy(standing_, limits_));
  decision.forecasts.push_back(forecast_post_copy(STRATEGY_HYBRID, now.pages, standing_, limits_));
  if (strategy_ == STRATEGY_PRECOPY) reconsider(decision);
  if (strategy_ == STRATEGY_HYBRID)
    hybrid(now, decision);
  else
    precopy(now, decision);
  finish(decision, standing_.rounds == 2 || strategy_ != followed);
  return decision;
}

// What this round sent was written during the one before; what is written during this one waits.
void Decider::look_at(const RoundFigures& round) {
  standing_.writes =
      WriteModel(static_cast<double>(round.pages), seconds_of(previous_ns_), set_pages_of(round));
  previous_ns_ = round.duration_ns;
  standing_.cost.lead_s = seconds_of(round.lead_ns);
  standing_.cost.overhead_s = overhead();
}

double Decider::next_round(const Rest& now) const {
  return standing_.cost.lead_s + now.pages / standing_.pages_per_s + standing_.cost.overhead_s;
}

// Whether rounds alone will do.
void Decider::reconsider(const Decision& decision) {
  const Forecast& precopy = decision.forecasts.front();
  broken_limits_ = precopy.feasible() ? 0 : broken_limits_ + 1;
  if (limits_.strategy != STRATEGY_AUTO || !limits_.post_copy_possible) return;
  const bool fits = decision.expected_downtime_ns <= limits_.max_downtime_ns;
  if (broken_promises_ >= kBrokenPromises && !fits)
    turn_to(STRATEGY_HYBRID, "rounds have left more than was expected three times in a row");
  else if (broken_limits_ >= kBrokenLimits ||
           (broken_limits_ > 0 && precopy.downtime_ns > kFarOff * limits_.max_downtime_ns))
    turn_to(STRATEGY_HYBRID,
            fmt::format("it writes {:.0f} pages a second and the link carries {:.0f}; by rounds "
                        "alone: {}",
                        decision.dirty_pages_per_s, standing_.pages_per_s, precopy.reason));
}

std::string Decider::does_not_converge(const Decision& decision) const {
  return fmt::format(
      "it dirties {:.0f} pages a second and the link carries {:.0f}: about {:.0f} ms of downtime, "
      "the limit is {:.0f} ms (--max-downtime); raise it, or use --strategy {}",
      decision.dirty_pages_per_s, standing_.pages_per_s, ms_of(decision.expected_downtime_ns),
      ms_of(limits_.max_downtime_ns), limits_.post_copy_possible ? "hybrid" : "cold");
}

// The last resort before giving up. False: there is none.
bool Decider::throttle(Decision& decision, const std::string& why) {
  if (!limits_.throttle) return false;
  const bool waiting =
      throttle_percent_ != 0 && standing_.rounds < throttled_in_round_ + kThrottleShows;
  if (!waiting && throttle_percent_ != 0 && throttle_percent_ / 2 < kLeastThrottlePercent)
    return false;
  decision.verdict = Verdict::kAnotherRound;
  broken_promises_ = 0;
  if (!waiting) {
    throttle_percent_ = throttle_percent_ == 0 ? kFirstThrottlePercent : throttle_percent_ / 2;
    throttled_in_round_ = standing_.rounds;
  }
  decision.reason =
      fmt::format("its CPU time is limited to {} % (--throttle): {}", throttle_percent_, why);
  return true;
}

void Decider::precopy(const Rest& now, Decision& decision) {
  const double next = next_round(now);
  const Rest then = rest_after(next);
  const bool promises =
      worth_a_round(now.seconds, then.seconds, next) && broken_promises_ < kBrokenPromises;
  const bool fits = decision.expected_downtime_ns <= limits_.max_downtime_ns;
  const bool last = standing_.rounds >= limits_.max_rounds;
  const bool late = breaks_total(next + then.seconds + seconds_of(limits_.fixed_downtime_ns));
  if (promises && !last && !late) {
    decision.verdict = Verdict::kAnotherRound;
    decision.reason = fmt::format("about {} pages are left; a round of {:.0f} ms leaves {:.0f}",
                                  decision.expected_pages, next * 1e3, then.pages);
  } else if (fits) {
    decision.verdict = Verdict::kSwitchOver;
    decision.reason = fmt::format(
        "about {} pages are left, which cost {:.1f} ms; another round {}", decision.expected_pages,
        now.seconds * 1e3, late ? "would break the limit of the total time" : "gains too little");
  } else if (limits_.strategy == STRATEGY_AUTO && limits_.post_copy_possible && (last || late)) {
    turn_to(STRATEGY_HYBRID, late ? "another round would break the limit of the total time"
                                  : "rounds alone did not come below the limit of the downtime");
    hybrid(now, decision);
  } else if (!late && (last || (!promises && broken_limits_ >= kBrokenLimits)) &&
             throttle(decision, does_not_converge(decision))) {
    return;
  } else if (last) {
    decision.verdict = Verdict::kGiveUp;
    decision.reason = does_not_converge(decision);
  } else if (late) {
    decision.verdict = Verdict::kGiveUp;
    decision.reason = fmt::format(
        "another round takes {:.0f} ms and would break the limit of the total time, {:.1f} s "
        "(--max-total); {}",
        next * 1e3, static_cast<double>(limits_.max_total_ns) * 1e-9, does_not_converge(decision));
  } else {
    decision.verdict = Verdict::kAnotherRound;
    decision.reason = "more than the downtime limit allows is left";
  }
}

void Decider::hybrid(const Rest& now, Decision& decision) {
  const double next = next_round(now);
  const Rest then = rest_after(next);
  const bool gains = then.pages < now.pages * kHybridShare;
  const bool late = breaks_total(next + then.seconds + seconds_of(limits_.fixed_downtime_ns));
  const bool another = gains && !late && standing_.rounds < kMostHybridRounds;
  decision.verdict = another ? Verdict::kAnotherRound : Verdict::kPostCopy;
  decision.expected_downtime_ns = limits_.fixed_downtime_ns;
  if (another)
    decision.reason = fmt::format("about {} pages are left; a round of {:.0f} ms leaves {:.0f}",
                                  decision.expected_pages, next * 1e3, then.pages);
  else
    decision.reason =
        fmt::format("about {} pages follow; another round {}", decision.expected_pages,
                    late    ? "would break the limit of the total time"
                    : gains ? "would be one too many"
                            : "would leave as many");
}

void Decider::finish(Decision& decision, bool anew) {
  decision.strategy = strategy_;
  decision.chosen_because = because_;
  decision.throttle_percent = throttle_percent_;
  for (const Forecast& each : decision.forecasts) {
    if (each.strategy != strategy_) continue;
    prediction_.downtime_ns = each.downtime_ns;
    if (anew) prediction_.total_ns = each.total_ns;
  }
}

DeciderLimits limits_of(const MoverStart& start) {
  DeciderLimits limits;
  limits.strategy = start.strategy();
  if (start.max_downtime_ns() > 0) limits.max_downtime_ns = start.max_downtime_ns();
  limits.max_total_ns = start.max_total_ns();
  if (start.fixed_downtime_ns() > 0) limits.fixed_downtime_ns = start.fixed_downtime_ns();
  limits.post_copy_possible = start.post_copy_possible();
  limits.throttle = start.throttle();
  limits.bandwidth_bytes_per_s = static_cast<uint64_t>(start.bandwidth_bytes_per_s());
  limits.link_bytes_per_s = static_cast<double>(start.link_bytes_per_s());
  limits.dirty_pages_per_s = static_cast<double>(start.dirty_pages_per_s());
  return limits;
}

void describe(const Decision& decision, const Prediction& prediction, Statistics& statistics) {
  statistics.Clear();
  statistics.set_strategy(strategy_name(decision.strategy));
  statistics.set_chosen_because(decision.chosen_because);
  statistics.set_predicted_downtime_ns(prediction.downtime_ns);
  statistics.set_predicted_total_ns(prediction.total_ns);
  statistics.set_bytes_per_s(static_cast<uint64_t>(decision.bytes_per_s));
  statistics.set_dirty_pages_per_s(static_cast<uint64_t>(decision.dirty_pages_per_s));
  for (const Forecast& each : decision.forecasts) {
    StrategyForecast* forecast = statistics.add_forecasts();
    forecast->set_strategy(strategy_name(each.strategy));
    forecast->set_downtime_ns(each.downtime_ns);
    forecast->set_total_ns(each.total_ns);
    forecast->set_feasible(each.feasible() && each.reason.empty());
    forecast->set_reason(each.reason);
  }
}

}  // namespace godwit::migration
