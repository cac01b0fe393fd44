#include "migration/forecast.h"

#include <fmt/core.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <tuple>
#include <utility>

namespace godwit::migration {
namespace {

constexpr double kWorthwhileSeconds = 0.0002;
constexpr double kWorthwhileShare = 1.0 / 50;  // of the round's duration
// A window that has caught next to all of a set says only that it is written at least so fast.
constexpr double kMostCaught = 0.995;
// Fewer than these in both windows: chance has too much of a part.
constexpr uint64_t kTellingHotPages = 16;
// Pages that follow on faults come one by one and between others.
constexpr double kPushShare = 0.8;  // of the link's rate
// Faults cost the program; and once it has begun there is no way back.
constexpr int64_t kOnFaultsShare = 10;
constexpr int64_t kTotalShare = 20;
constexpr int64_t kRiskNs = 20'000'000;

int64_t ns_of(double seconds) { return std::llround(seconds * 1e9); }

void hold(Forecast& forecast, const DeciderLimits& limits) {
  forecast.holds_downtime = forecast.downtime_ns <= limits.max_downtime_ns;
  forecast.holds_total = limits.max_total_ns == 0 || forecast.total_ns <= limits.max_total_ns;
  if (!forecast.holds_downtime)
    forecast.reason = fmt::format("about {:.0f} ms of downtime, the limit is {:.0f} ms",
                                  static_cast<double>(forecast.downtime_ns) * 1e-6,
                                  static_cast<double>(limits.max_downtime_ns) * 1e-6);
  else if (!forecast.holds_total)
    forecast.reason = fmt::format("about {:.1f} s in all, the limit is {:.1f} s",
                                  static_cast<double>(forecast.total_ns) * 1e-9,
                                  static_cast<double>(limits.max_total_ns) * 1e-9);
}

int64_t cost_of(const Forecast& forecast) {
  const int64_t risk = forecast.on_faults_ns > 0 ? kRiskNs : 0;
  return forecast.downtime_ns + forecast.on_faults_ns / kOnFaultsShare +
         forecast.total_ns / kTotalShare + risk;
}

constexpr std::array<std::pair<std::string_view, Strategy>, 5> kNames = {
    std::pair{"auto", STRATEGY_AUTO},
    {"cold", STRATEGY_COLD},
    {"precopy", STRATEGY_PRECOPY},
    {"postcopy", STRATEGY_POSTCOPY},
    {"hybrid", STRATEGY_HYBRID}};

}  // namespace

std::string strategy_name(Strategy strategy) {
  for (const auto& [name, value] : kNames)
    if (value == strategy) return std::string(name);
  return "";
}

Strategy strategy_of(std::string_view name) {
  if (name.empty()) return STRATEGY_AUTO;
  for (const auto& [known, value] : kNames)
    if (known == name) return value;
  return STRATEGY_INVALID;
}

WriteModel::WriteModel(double pages, double seconds, double set_pages)
    : set_pages_(set_pages > 0 ? std::max(set_pages, pages) : 0) {
  pages_per_s_ = pages / seconds;
  if (set_pages_ <= 0) return;
  const double caught = std::min(pages / set_pages_, kMostCaught);
  pages_per_s_ = -set_pages_ * std::log1p(-caught) / seconds;
}

WriteModel WriteModel::of_rate(double pages_per_s, double set_pages) {
  WriteModel model;
  model.pages_per_s_ = pages_per_s;
  model.set_pages_ = set_pages;
  return model;
}

double WriteModel::pages_after(double seconds) const {
  if (set_pages_ <= 0) return pages_per_s_ * seconds;
  return set_pages_ * -std::expm1(-pages_per_s_ * seconds / set_pages_);
}

double set_pages_of(const RoundFigures& round) {
  if (round.hot_pages < kTellingHotPages) return 0;
  const auto hot = static_cast<double>(round.hot_pages);
  const auto written = static_cast<double>(round.written_pages);
  const double before = static_cast<double>(round.warm_pages) + 2 * hot - written;
  const auto all = static_cast<double>(round.cold_pages + round.warm_pages + round.hot_pages);
  return std::min(std::max(written, before) * std::min(written, before) / hot, all);
}

bool worth_a_round(double now_s, double then_s, double round_s) {
  const double saves = now_s - then_s;
  return saves >= kWorthwhileSeconds && saves >= round_s * kWorthwhileShare;
}

Forecast forecast_precopy(const Standing& now, const DeciderLimits& limits) {
  Forecast forecast;
  forecast.strategy = STRATEGY_PRECOPY;
  double elapsed = now.elapsed_s;
  double window = now.round_s;
  double left = now.writes.pages_after(window);
  for (uint32_t rounds = now.rounds; rounds < limits.max_rounds; ++rounds) {
    const double next = now.cost.lead_s + left / now.pages_per_s + now.cost.overhead_s;
    const double then = now.writes.pages_after(next);
    if (!worth_a_round(left / now.last_pages_per_s, then / now.last_pages_per_s, next)) break;
    elapsed += next;
    left = then;
  }
  forecast.downtime_ns = limits.fixed_downtime_ns + ns_of(left / now.last_pages_per_s);
  forecast.total_ns = ns_of(elapsed) + forecast.downtime_ns;
  hold(forecast, limits);
  return forecast;
}

Forecast forecast_post_copy(Strategy strategy, double pages_left, const Standing& now,
                            const DeciderLimits& limits) {
  Forecast forecast;
  forecast.strategy = strategy;
  forecast.downtime_ns = limits.fixed_downtime_ns;
  forecast.on_faults_ns = ns_of(pages_left / (now.last_pages_per_s * kPushShare));
  forecast.total_ns = ns_of(now.elapsed_s) + forecast.downtime_ns + forecast.on_faults_ns;
  hold(forecast, limits);
  if (!limits.post_copy_possible) forecast.reason = "post-copy is not possible here";
  return forecast;
}

Forecast forecast_cold(double pages, const Standing& now, const DeciderLimits& limits) {
  Forecast forecast;
  forecast.strategy = STRATEGY_COLD;
  forecast.downtime_ns = limits.fixed_downtime_ns + ns_of(pages / now.last_pages_per_s);
  forecast.total_ns = ns_of(now.elapsed_s) + forecast.downtime_ns;
  hold(forecast, limits);
  return forecast;
}

const Forecast* best_of(const std::vector<Forecast>& forecasts) {
  const auto rank = [](const Forecast& f) {
    const bool firm = f.feasible() && f.on_faults_ns == 0 && f.strategy == STRATEGY_PRECOPY;
    return std::tuple(!f.holds_downtime, !f.holds_total, !firm, cost_of(f));
  };
  const Forecast* best = nullptr;
  for (const Forecast& each : forecasts)
    if (best == nullptr || rank(each) < rank(*best)) best = &each;
  return best;
}

}  // namespace godwit::migration
