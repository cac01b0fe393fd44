#include "migration/convergence.h"

#include <gtest/gtest.h>

namespace godwit::migration {
namespace {

constexpr uint64_t kMiB = uint64_t{1} << 20;

PassFigures stuck(uint64_t pass) { return {pass, 200 * kMiB, 100 * kMiB, 150 * kMiB}; }

TEST(Convergence, LetsShrinkingPassesGoOn) {
  Convergence it({STRATEGY_AUTO, true, 50'000'000, 50'000'000});
  uint64_t left = 400 * kMiB;
  for (uint64_t pass = 1; pass < 12; ++pass, left /= 2)
    EXPECT_EQ(it.look({pass, left, 100 * kMiB, 40 * kMiB}), PassVerdict::kGoOn) << pass;
}

TEST(Convergence, TurnsToPostCopyAfterTwoIdlePasses) {
  Convergence it({STRATEGY_AUTO, true, 50'000'000, 50'000'000});
  for (uint64_t pass = 1; pass <= 3; ++pass) {
    EXPECT_EQ(it.look(stuck(pass)), PassVerdict::kGoOn) << pass;
    EXPECT_EQ(it.look(stuck(pass)), PassVerdict::kGoOn) << "counts once";
  }
  EXPECT_EQ(it.look(stuck(4)), PassVerdict::kPostCopy);
  EXPECT_NE(it.reason().find("150 MiB/s"), std::string::npos) << it.reason();
}

TEST(Convergence, RaisesTheDowntimeFirstIfAllFits) {
  Convergence it({STRATEGY_AUTO, true, 50'000'000, 3'000'000'000});
  for (uint64_t pass = 1; pass <= 3; ++pass) EXPECT_EQ(it.look(stuck(pass)), PassVerdict::kGoOn);
  EXPECT_EQ(it.look(stuck(4)), PassVerdict::kRaiseDowntime);
  EXPECT_EQ(it.look(stuck(5)), PassVerdict::kGoOn);
  EXPECT_EQ(it.look(stuck(6)), PassVerdict::kPostCopy) << "it did not help";
}

TEST(Convergence, DoesNotRaiseItInVain) {
  Convergence it({STRATEGY_AUTO, true, 50'000'000, 1'000'000'000});
  for (uint64_t pass = 1; pass <= 3; ++pass) it.look(stuck(pass));
  EXPECT_EQ(it.look(stuck(4)), PassVerdict::kPostCopy);
}

TEST(Convergence, GivesUpWithoutPostCopy) {
  Convergence it({STRATEGY_PRECOPY, false, 50'000'000, 50'000'000});
  for (uint64_t pass = 1; pass <= 5; ++pass)
    EXPECT_EQ(it.look(stuck(pass)), PassVerdict::kGoOn) << pass;
  EXPECT_EQ(it.look(stuck(6)), PassVerdict::kGiveUp);
}

TEST(Convergence, FollowsWhatWasAskedFor) {
  Convergence at_once({STRATEGY_POSTCOPY, true});
  EXPECT_EQ(at_once.look({1, kMiB, 0, 0}), PassVerdict::kPostCopy);
  Convergence hybrid({STRATEGY_HYBRID, true});
  EXPECT_EQ(hybrid.look({1, kMiB, 0, 0}), PassVerdict::kGoOn);
  EXPECT_EQ(hybrid.look({2, kMiB, 0, 0}), PassVerdict::kPostCopy);
}

}  // namespace
}  // namespace godwit::migration
