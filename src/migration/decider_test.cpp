#include "migration/decider.h"

#include <gtest/gtest.h>

namespace godwit::migration {
namespace {

RoundFigures round_of(uint64_t pages, double seconds, double lead_seconds = 0) {
  return {pages, 0, pages * stream::kPageSize, static_cast<int64_t>(seconds * 1e9),
          static_cast<int64_t>(lead_seconds * 1e9)};
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

// 4 GiB at 20,000 pages a second over 250,000 pages a second; the scan takes 5 ms.
TEST(DeciderTest, ALimitThatIsMetIsNotTheGoal) {
  Decider decider({.max_downtime_ns = 50'000'000});
  decider.after_round(round_of(1'000'000, 4.005, 0.005));
  decider.after_round(round_of(80'000, 0.325, 0.005));
  // 6,500 pages would go in 26 ms.
  Decision decision = decider.after_round(round_of(6'500, 0.031, 0.005));
  EXPECT_EQ(decision.verdict, Verdict::kAnotherRound) << decision.reason;
  EXPECT_LT(decision.expected_downtime_ns, 50'000'000);
  decision = decider.after_round(round_of(620, 0.0075, 0.005));
  EXPECT_EQ(decision.verdict, Verdict::kSwitchOver) << decision.reason;
  EXPECT_LT(decision.expected_pages, 200);
}

TEST(DeciderTest, ARoundThatWasHeldUpIsFollowedByAnother) {
  Decider decider({});
  decider.after_round(round_of(1'000'000, 4.005, 0.005));
  decider.after_round(round_of(80'000, 0.325, 0.005));
  decider.after_round(round_of(6'500, 0.031, 0.005));
  // 40 ms: 800 pages are left now, 3.2 ms; the next round leaves 160.
  Decision decision = decider.after_round(round_of(620, 0.040, 0.005));
  EXPECT_EQ(decision.verdict, Verdict::kAnotherRound) << decision.reason;
  decision = decider.after_round(round_of(800, 0.0072, 0.005));
  EXPECT_EQ(decision.verdict, Verdict::kSwitchOver) << decision.reason;
}

TEST(DeciderTest, LittleLessIsNotWorthARound) {
  Decider decider({});
  decider.after_round(round_of(1'000'000, 4.005, 0.005));
  decider.after_round(round_of(10'000, 0.045, 0.005));
  // 112 pages, 0.45 ms; the next round would take 5.9 ms and leave 15: 0.4 ms, fifteen times less.
  EXPECT_EQ(decider.after_round(round_of(112, 0.0055, 0.005)).verdict, Verdict::kSwitchOver);
  // A scan of 200 ms for less than 2 ms.
  Decider slow({});
  slow.after_round(round_of(1'000'000, 4.2, 0.2));
  EXPECT_EQ(slow.after_round(round_of(2'000, 0.208, 0.2)).verdict, Verdict::kSwitchOver);
}

TEST(DeciderTest, PromisesThatAreBrokenAreNotBelievedForEver) {
  Decider decider({});
  decider.after_round(round_of(100'000, 0.4));
  int rounds = 0;
  // It dirties more the less there is to send: what was reckoned never comes true.
  double seconds = 0.02;
  uint64_t pages = 1'000;
  Decision decision;
  do {
    decision = decider.after_round(round_of(pages, seconds, 0.001));
    pages += 1'000;
    seconds *= 1.5;
    ++rounds;
  } while (decision.verdict == Verdict::kAnotherRound && rounds < 30 &&
           decision.expected_downtime_ns < 50'000'000);
  EXPECT_LE(rounds, 6);
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
