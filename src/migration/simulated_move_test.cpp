// The decider led through moves of simulated workloads, and what it predicted held against what
// came out.
#include <fmt/core.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "migration/decider.h"

namespace godwit::migration {
namespace {

constexpr double kMiB = 1 << 20;
constexpr double kPage = stream::kPageSize;

// Writes to random pages of a set, or to one page after the other of it, and now and then to any
// page of all.
struct Workload {
  std::string name;
  double mib = 1024;
  double writes_per_s = 0;
  double set_mib = 1024;
  bool in_order = false;
  double anywhere = 0;  // share of the writes that go to any page
};

struct Link {
  double mib_per_s = 500;
  double lead_s = 0.004;       // of a round
  double overhead_s = 0.0006;  // of a round
  double fixed_s = 0.0012;     // of a freeze
};

struct Outcome {
  Verdict verdict = Verdict::kInvalid;
  Decision decision;
  Prediction prediction;
  uint32_t rounds = 0;
  double downtime_s = 0;
  double total_s = 0;
  double on_faults_s = 0;
};

class Simulation {
 public:
  Simulation(const Workload& workload, const Link& link)
      : workload_(workload),
        link_(link),
        written_(static_cast<size_t>(workload.mib * kMiB / kPage)),
        random_(written_.size()) {}

  Outcome run(DeciderLimits limits) {
    Decider decider(limits);
    Outcome outcome;
    const auto pages = static_cast<double>(written_.size());
    outcome.total_s = 0.05;
    outcome.decision =
        decider.before({written_.size(), 0}, static_cast<int64_t>(outcome.total_s * 1e9));
    double left = pages;
    RoundFigures figures{.pages = written_.size(), .cold_pages = written_.size()};
    while (outcome.decision.verdict == Verdict::kAnotherRound) {
      const double send_s = left * kPage / (link_.mib_per_s * kMiB);
      const double round_s = link_.lead_s + send_s + link_.overhead_s;
      figures.bytes = figures.pages * stream::kPageSize;
      figures.duration_ns = static_cast<int64_t>(round_s * 1e9);
      figures.lead_ns = static_cast<int64_t>(link_.lead_s * 1e9);
      outcome.total_s += round_s;
      ++outcome.rounds;
      // The scan came first: what is written from here on is for the next one.
      outcome.decision = decider.after_round(figures);
      window(round_s, figures);
      left = static_cast<double>(figures.pages);
    }
    outcome.verdict = outcome.decision.verdict;
    outcome.prediction = decider.prediction();
    if (outcome.verdict == Verdict::kGiveUp) return outcome;
    outcome.downtime_s = link_.fixed_s;
    const double rest_s = left * kPage / (link_.mib_per_s * kMiB);
    if (outcome.verdict == Verdict::kPostCopy)
      outcome.on_faults_s = rest_s * 1.2;  // in small requests
    else
      outcome.downtime_s += rest_s;
    outcome.total_s += outcome.downtime_s + outcome.on_faults_s;
    return outcome;
  }

 private:
  void window(double seconds, RoundFigures& figures) {
    ++windows_;
    const auto writes = static_cast<uint64_t>(workload_.writes_per_s * seconds);
    const auto set =
        std::min(written_.size(), static_cast<size_t>(workload_.set_mib * kMiB / kPage));
    uint64_t now = 0;
    uint64_t both = 0;
    for (uint64_t i = 0; i < writes; ++i) {
      size_t page = 0;
      if (workload_.anywhere > 0 &&
          std::uniform_real_distribution(0.0, 1.0)(random_) < workload_.anywhere)
        page = random_() % written_.size();
      else
        page = workload_.in_order ? next_++ % set : random_() % set;
      if (written_[page] == windows_) continue;
      ++now;
      if (windows_ > 1 && written_[page] == windows_ - 1) ++both;
      written_[page] = windows_;
    }
    figures.pages = now;
    figures.hot_pages = both;
    figures.warm_pages = now + before_ - 2 * both;
    figures.cold_pages = written_.size() - figures.hot_pages - figures.warm_pages;
    figures.written_pages = now;
    before_ = now;
  }

  Workload workload_;
  Link link_;
  std::vector<uint32_t> written_;  // in which window last
  std::mt19937_64 random_;
  uint32_t windows_ = 0;
  uint64_t before_ = 0;
  size_t next_ = 0;
};

std::vector<Workload> workloads() {
  return {
      {"idle", 512},
      {"few writes", 1024, 200, 1024},
      {"small hot set", 1024, 20'000, 32},
      {"small hot set, in order", 1024, 20'000, 32, true},
      {"large set", 1024, 20'000, 768},
      {"large set, in order", 1024, 20'000, 768, true},
      {"hot set and background", 1024, 20'000, 64, false, 0.05},
      {"busy", 1024, 60'000, 512},
      {"busy, in order", 1024, 60'000, 512, true},
      {"faster than any link here", 1024, 600'000, 768},
      {"small and busy", 128, 40'000, 96},
  };
}

double error_of(double predicted, double real) { return std::abs(predicted - real) / real; }

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

TEST(SimulatedMoveTest, WhatIsPredictedComesTrue) {
  std::vector<double> downtime_errors, total_errors;
  fmt::print("{:<28}{:>6}{:>9}{:>5}{:>11}{:>11}{:>11}{:>11}\n", "workload", "MiB/s", "strategy",
             "n", "downtime", "predicted", "total", "predicted");
  for (const Workload& workload : workloads())
    for (const double rate : {120.0, 400.0, 1200.0}) {
      DeciderLimits limits;
      limits.strategy = STRATEGY_AUTO;
      limits.post_copy_possible = true;
      const Outcome outcome = Simulation(workload, {.mib_per_s = rate}).run(limits);
      const double downtime_s = static_cast<double>(outcome.prediction.downtime_ns) * 1e-9;
      const double total_s = static_cast<double>(outcome.prediction.total_ns) * 1e-9;
      fmt::print("{:<28}{:>6}{:>9}{:>5}{:>8.2f} ms{:>8.2f} ms{:>9.2f} s{:>9.2f} s\n", workload.name,
                 rate, strategy_name(outcome.decision.strategy), outcome.rounds,
                 outcome.downtime_s * 1e3, downtime_s * 1e3, outcome.total_s, total_s);
      ASSERT_NE(outcome.verdict, Verdict::kGiveUp) << workload.name << outcome.decision.reason;
      EXPECT_LE(outcome.downtime_s, 0.05) << workload.name << " at " << rate;
      downtime_errors.push_back(error_of(downtime_s, outcome.downtime_s));
      total_errors.push_back(error_of(total_s, outcome.total_s));
    }
  ASSERT_GE(downtime_errors.size(), 20u);
  fmt::print("median error: downtime {:.1f} %, total {:.1f} %\n", 100 * median(downtime_errors),
             100 * median(total_errors));
  EXPECT_LE(median(downtime_errors), 0.2);
  EXPECT_LE(median(total_errors), 0.2);
}

TEST(SimulatedMoveTest, PrecopyIsPreferredWhereItHoldsTheLimits) {
  DeciderLimits limits;
  limits.strategy = STRATEGY_AUTO;
  limits.post_copy_possible = true;
  const Outcome outcome =
      Simulation({"large set", 1024, 20'000, 768}, {.mib_per_s = 1200}).run(limits);
  EXPECT_EQ(outcome.verdict, Verdict::kSwitchOver);
  EXPECT_EQ(outcome.decision.strategy, STRATEGY_PRECOPY);
}

TEST(SimulatedMoveTest, WhatIsFasterThanTheLinkMovesAllTheSame) {
  const Workload fast{"fast", 512, 200'000, 512};
  DeciderLimits limits;
  limits.strategy = STRATEGY_AUTO;
  limits.post_copy_possible = true;
  const Outcome moved = Simulation(fast, {.mib_per_s = 120}).run(limits);
  EXPECT_EQ(moved.verdict, Verdict::kPostCopy);
  EXPECT_EQ(moved.decision.strategy, STRATEGY_HYBRID);
  EXPECT_LE(moved.rounds, 3u);
  EXPECT_NE(moved.decision.chosen_because.find("pages a second"), std::string::npos)
      << moved.decision.chosen_because;
  // Without post-copy there is no way but to say so.
  limits.post_copy_possible = false;
  const Outcome stayed = Simulation(fast, {.mib_per_s = 120}).run(limits);
  EXPECT_EQ(stayed.verdict, Verdict::kGiveUp);
  EXPECT_NE(stayed.decision.reason.find("--max-downtime"), std::string::npos);
}

TEST(SimulatedMoveTest, TheLimitOfTheTotalTimeIsKept) {
  // Converges slowly: rounds would go on for some 10 s.
  const Workload slow{"slow", 1024, 80'000, 1024};
  const Link link{.mib_per_s = 400};
  DeciderLimits limits;
  limits.strategy = STRATEGY_PRECOPY;
  const Outcome free = Simulation(slow, link).run(limits);
  limits.max_total_ns = 4'000'000'000;
  const Outcome precopy = Simulation(slow, link).run(limits);
  limits.strategy = STRATEGY_AUTO;
  limits.post_copy_possible = true;
  const Outcome chosen = Simulation(slow, link).run(limits);
  limits.strategy = STRATEGY_HYBRID;
  const Outcome hybrid = Simulation(slow, link).run(limits);
  EXPECT_GT(free.total_s, 5);
  EXPECT_EQ(precopy.verdict, Verdict::kGiveUp);
  EXPECT_NE(precopy.decision.reason.find("--max-total"), std::string::npos)
      << precopy.decision.reason;
  EXPECT_LE(precopy.total_s, 4.5);
  EXPECT_EQ(chosen.verdict, Verdict::kPostCopy);
  EXPECT_EQ(hybrid.verdict, Verdict::kPostCopy);
}

TEST(SimulatedMoveTest, HybridLeavesLittleBehind) {
  DeciderLimits limits;
  limits.strategy = STRATEGY_HYBRID;
  limits.post_copy_possible = true;
  const Outcome outcome = Simulation({"busy", 1024, 20'000, 1024}, {.mib_per_s = 400}).run(limits);
  EXPECT_EQ(outcome.verdict, Verdict::kPostCopy);
  EXPECT_GE(outcome.rounds, 2u);
  EXPECT_LE(outcome.rounds, 4u);
  EXPECT_LT(outcome.on_faults_s, 0.1);
}

}  // namespace
}  // namespace godwit::migration
