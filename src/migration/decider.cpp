#include "migration/decider.h"

#include <fmt/core.h>

#include <algorithm>

namespace godwit::migration {
namespace {

// Fewer pages than this are sent faster than a freeze takes anyway.
constexpr uint64_t kFewPages = 256;
// Rounds shorter than this say nothing about the link's rate.
constexpr uint64_t kTellingBytes = uint64_t{1} << 20;

}  // namespace

Decision Decider::after_round(const RoundFigures& round) {
  const uint64_t previous = rounds_.empty() ? round.pages : rounds_.back().pages;
  const int64_t previous_ns = rounds_.empty() ? 0 : rounds_.back().duration_ns;
  rounds_.push_back(round);
  const double seconds = std::max(1e-6, static_cast<double>(round.duration_ns) * 1e-9);
  const double sending =
      std::max(1e-6, static_cast<double>(round.duration_ns - round.lead_ns) * 1e-9);
  if (round.bytes >= kTellingBytes || bytes_per_s_ == 0)
    bytes_per_s_ = std::max(1.0, static_cast<double>(round.bytes) / sending);

  Decision decision;
  decision.bytes_per_s = bytes_per_s_;
  // What this round sent was dirtied during the one before; what is dirtied during this one waits.
  if (rounds_.size() > 1)
    decision.dirty_pages_per_s =
        static_cast<double>(round.pages) / std::max(1e-6, static_cast<double>(previous_ns) * 1e-9);
  decision.expected_pages =
      rounds_.size() > 1
          ? std::min(round.pages, static_cast<uint64_t>(decision.dirty_pages_per_s * seconds))
          : round.pages;
  decision.expected_downtime_ns =
      limits_.fixed_downtime_ns +
      static_cast<int64_t>(static_cast<double>(decision.expected_pages * stream::kPageSize) /
                           bytes_per_s_ * 1e9);

  const bool shrinks = round.pages + round.pages / 10 < previous;
  if (rounds_.size() == 1) {
    decision.verdict = Verdict::kAnotherRound;
    decision.reason = "the first round carries everything";
  } else if (decision.expected_pages <= kFewPages) {
    decision.verdict = Verdict::kSwitchOver;
    decision.reason = fmt::format("about {} pages are left", decision.expected_pages);
  } else if (shrinks && rounds_.size() < limits_.max_rounds) {
    decision.verdict = Verdict::kAnotherRound;
    decision.reason = fmt::format("{} pages in this round, {} before", round.pages, previous);
  } else if (decision.expected_downtime_ns <= limits_.max_downtime_ns) {
    decision.verdict = Verdict::kSwitchOver;
    decision.reason = fmt::format("rounds no longer shrink; {} pages cost about {:.1f} ms",
                                  decision.expected_pages,
                                  static_cast<double>(decision.expected_downtime_ns) * 1e-6);
  } else if (rounds_.size() >= limits_.max_rounds) {
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
