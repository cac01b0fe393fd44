#include "migration/decider.h"

#include <gtest/gtest.h>

namespace godwit::migration {
namespace {

RoundFigures round_of(uint64_t pages, double seconds) {
  return {pages, 0, pages * stream::kPageSize, static_cast<int64_t>(seconds * 1e9)};
}

TEST(DeciderTest, TheFirstRoundIsNeverTheLast) {
  Decider decider({});
  EXPECT_EQ(decider.after_round(round_of(10, 0.001)).verdict, Verdict::kAnotherRound);
}

TEST(DeciderTest, SwitchesOverWhenLittleIsLeft) {
  Decider decider({});
  decider.after_round(round_of(100000, 0.4));
  EXPECT_EQ(decider.after_round(round_of(100, 0.001)).verdict, Verdict::kSwitchOver);
}

TEST(DeciderTest, GoesOnWhileRoundsShrink) {
  Decider decider({});
  decider.after_round(round_of(1000000, 4));
  EXPECT_EQ(decider.after_round(round_of(200000, 0.8)).verdict, Verdict::kAnotherRound);
  EXPECT_EQ(decider.after_round(round_of(40000, 0.16)).verdict, Verdict::kAnotherRound);
  EXPECT_EQ(decider.after_round(round_of(8000, 0.03)).verdict, Verdict::kAnotherRound);
}

TEST(DeciderTest, AStandingRestThatFitsTheLimitIsSent) {
  Decider decider({.max_downtime_ns = 50'000'000});
  decider.after_round(round_of(100000, 0.4));
  decider.after_round(round_of(3000, 0.012));
  const Decision decision = decider.after_round(round_of(3000, 0.012));
  EXPECT_EQ(decision.verdict, Verdict::kSwitchOver);
  EXPECT_GT(decision.expected_downtime_ns, 5'000'000);
  EXPECT_LT(decision.expected_downtime_ns, 50'000'000);
}

TEST(DeciderTest, GivesUpWithTheFiguresWhenItNeverConverges) {
  Decider decider({.max_downtime_ns = 50'000'000, .max_rounds = 5});
  Decision decision;
  for (int i = 0; i < 5; ++i) decision = decider.after_round(round_of(500000, 2));
  EXPECT_EQ(decision.verdict, Verdict::kGiveUp);
  EXPECT_NE(decision.reason.find("--max-downtime"), std::string::npos);
  EXPECT_NE(decision.reason.find("250000 pages a second"), std::string::npos) << decision.reason;
}

}  // namespace
}  // namespace godwit::migration
