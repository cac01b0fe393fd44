#include "migration/decider.h"

#include <fmt/core.h>

#include <algorithm>

namespace godwit::migration {
namespace {

// Rounds smaller than this say little about the link's rate: one wait on a busy machine is much of
// their time.
constexpr uint64_t kTellingBytes = uint64_t{8} << 20;
constexpr double kWorthwhileSeconds = 0.0002;
constexpr double kWorthwhileShare = 1.0 / 50;  // of the round's duration
constexpr double kUsualOverheadSeconds = 0.001;
// One round that a busy machine has made long says little.
constexpr uint32_t kBrokenPromises = 3;

double seconds_of(int64_t ns) { return std::max(1e-6, static_cast<double>(ns) * 1e-9); }

}  // namespace

void Decider::learn(const RoundFigures& round) {
  const double sending = seconds_of(round.duration_ns - round.lead_ns);
  const auto bytes = static_cast<double>(round.bytes);
  if (round.bytes >= kTellingBytes || bytes_per_s_ == 0)
    bytes_per_s_ = std::max(1.0, bytes / sending);
  if (round.bytes >= kTellingBytes) return;
  const double overhead = std::max(0.0, sending - bytes / bytes_per_s_);
  least_overhead_s_ = small_rounds_++ == 0 ? overhead : std::min(least_overhead_s_, overhead);
}

// The least of two rounds; a single one may have been held up.
double Decider::overhead() const {
  return small_rounds_ > 1 ? least_overhead_s_ : std::min(least_overhead_s_, kUsualOverheadSeconds);
}

Decider::Forecast Decider::rest_after(double round_seconds, double dirty_pages_per_s) const {
  Forecast forecast;
  forecast.pages = dirty_pages_per_s * round_seconds;
  forecast.seconds = forecast.pages * static_cast<double>(stream::kPageSize) / bytes_per_s_;
  return forecast;
}

Decision Decider::after_round(const RoundFigures& round) {
  ++rounds_;
  learn(round);
  Decision decision;
  decision.bytes_per_s = bytes_per_s_;
  if (rounds_ == 1) {
    previous_ns_ = round.duration_ns;
    previous_expected_ = round.pages;
    decision.expected_pages = round.pages;
    decision.verdict = Verdict::kAnotherRound;
    decision.reason = "the first round carries everything";
    return decision;
  }
  // What this round sent was dirtied during the one before; what is dirtied during this one waits.
  decision.dirty_pages_per_s = static_cast<double>(round.pages) / seconds_of(previous_ns_);
  previous_ns_ = round.duration_ns;
  const Forecast now = rest_after(seconds_of(round.duration_ns), decision.dirty_pages_per_s);
  const double next_round = seconds_of(round.lead_ns) + now.seconds + overhead();
  const Forecast then = rest_after(next_round, decision.dirty_pages_per_s);
  decision.expected_pages = static_cast<uint64_t>(now.pages);
  decision.expected_downtime_ns =
      limits_.fixed_downtime_ns + static_cast<int64_t>(now.seconds * 1e9);

  const bool broken = decision.expected_pages >= previous_expected_;
  broken_promises_ = broken ? broken_promises_ + 1 : 0;
  previous_expected_ = decision.expected_pages;
  const double saves = now.seconds - then.seconds;
  const bool promises = saves >= kWorthwhileSeconds && saves >= next_round * kWorthwhileShare &&
                        broken_promises_ < kBrokenPromises;
  const bool fits = decision.expected_downtime_ns <= limits_.max_downtime_ns;
  const bool last = rounds_ >= limits_.max_rounds;
  if (promises && !last) {
    decision.verdict = Verdict::kAnotherRound;
    decision.reason = fmt::format("about {} pages are left; a round of {:.0f} ms leaves {:.0f}",
                                  decision.expected_pages, next_round * 1e3, then.pages);
  } else if (fits) {
    decision.verdict = Verdict::kSwitchOver;
    decision.reason =
        fmt::format("about {} pages are left, which cost {:.1f} ms; another round gains too little",
                    decision.expected_pages, now.seconds * 1e3);
  } else if (last) {
    decision.verdict = Verdict::kGiveUp;
    decision.reason = fmt::format(
        "it dirties {:.0f} pages a second and the link carries {:.0f}: about {:.0f} ms of "
        "downtime, "
        "the limit is {:.0f} ms (--max-downtime); raise it, or use --strategy cold",
        decision.dirty_pages_per_s, bytes_per_s_ / static_cast<double>(stream::kPageSize),
        static_cast<double>(decision.expected_downtime_ns) * 1e-6,
        static_cast<double>(limits_.max_downtime_ns) * 1e-6);
  } else {
    decision.verdict = Verdict::kAnotherRound;
    decision.reason = "more than the downtime limit allows is left";
  }
  return decision;
}

}  // namespace godwit::migration
