#include "migration/precheck.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace godwit::migration {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

// Two machines that are alike, and a service that fits.
class PrecheckTest : public ::testing::Test {
 protected:
  void SetUp() override {
    Cpu cpu;
    cpu.set_model("CPU one");
    for (const char* each : {"sse2", "avx", "avx2"}) cpu.add_features(each);
    cpu.set_xfeatures(7);
    cpu.set_xsave_bytes(832);
    *needs_.mutable_cpu() = *machine_.mutable_cpu() = cpu;
    Vdso vdso;
    vdso.set_code("code");
    Vdso::Symbol* symbol = vdso.add_symbols();
    symbol->set_name("__vdso_time");
    symbol->set_offset(100);
    *needs_.mutable_vdso() = *machine_.mutable_vdso() = vdso;
    needs_.add_kernel_features("tcx");
    needs_.set_memory_bytes(kGiB);
    needs_.set_disk_bytes(kGiB);
    needs_.set_tasks(10);
    needs_.set_highest_pid(300);
    needs_.set_address("10.0.0.5");
    machine_.set_memory_available(4 * kGiB);
    machine_.set_disk_available(4 * kGiB);
    machine_.set_tasks_available(1000);
    machine_.set_tasks_limit("kernel.threads-max");
    machine_.set_pid_max(32768);
    machine_.add_addresses("10.0.0.1");
  }
  std::vector<std::string> codes() {
    std::vector<std::string> all;
    for (const Reason& each : judge(needs_, machine_, "n2")) {
      EXPECT_EQ(each.object(), "n2");
      EXPECT_FALSE(each.reason().empty());
      EXPECT_FALSE(each.way_out().empty());
      all.push_back(each.code());
    }
    return all;
  }
  std::string first_reason() {
    const auto reasons = judge(needs_, machine_, "n2");
    return reasons.empty() ? "" : reasons[0].reason();
  }

  static constexpr uint64_t kGiB = uint64_t{1} << 30;
  Needs needs_;
  Machine machine_;
};

TEST_F(PrecheckTest, WhatIsAlikeIsFine) { EXPECT_THAT(codes(), IsEmpty()); }

TEST_F(PrecheckTest, MoreThanIsNeededIsFine) {
  machine_.mutable_cpu()->add_features("avx512f");
  auto* missing = machine_.add_missing_features();
  missing->set_name("soft_dirty");  // nobody needs it
  EXPECT_THAT(codes(), IsEmpty());
}

TEST_F(PrecheckTest, AnInstructionThatIsNotThereIsNamed) {
  needs_.mutable_cpu()->add_features("avx512f");
  EXPECT_THAT(codes(), ElementsAre("cpu.features"));
  EXPECT_THAT(first_reason(), HasSubstr("lacks avx512f"));
  for (int i = 0; i < 20; ++i) needs_.mutable_cpu()->add_features("x" + std::to_string(i));
  EXPECT_THAT(first_reason(), HasSubstr("and 13 more"));
}

TEST_F(PrecheckTest, RegisterStateMustBeThereAndOfOneSize) {
  needs_.mutable_cpu()->set_xfeatures(0xe7);
  EXPECT_THAT(codes(), ElementsAre("cpu.xfeatures"));
  needs_.mutable_cpu()->set_xfeatures(7);
  machine_.mutable_cpu()->set_xfeatures(0xe7);
  machine_.mutable_cpu()->set_xsave_bytes(2688);
  EXPECT_THAT(codes(), ElementsAre("cpu.xsave_size"));
}

TEST_F(PrecheckTest, TheVdsoMustBeTheSameCode) {
  machine_.mutable_vdso()->set_code("cold");
  EXPECT_THAT(codes(), ElementsAre("vdso.code"));
  machine_.mutable_vdso()->mutable_symbols(0)->set_offset(200);
  EXPECT_THAT(codes(), ElementsAre("vdso.symbols"));
  EXPECT_THAT(first_reason(), HasSubstr("__vdso_time"));
  machine_.mutable_vdso()->clear_symbols();
  EXPECT_THAT(codes(), ElementsAre("vdso.symbols"));
}

TEST_F(PrecheckTest, AFeatureOfTheKernelIsMissingWithItsReason) {
  auto* missing = machine_.add_missing_features();
  missing->set_name("tcx");
  missing->set_why("Linux 6.6");
  EXPECT_THAT(codes(), ElementsAre("kernel.feature"));
  EXPECT_THAT(first_reason(), HasSubstr("no tcx: Linux 6.6"));
}

TEST_F(PrecheckTest, RoomIsNeededWithAMargin) {
  machine_.set_memory_available(kGiB);
  machine_.set_disk_available(kGiB);
  machine_.set_tasks_available(10);
  machine_.set_pid_max(300);
  EXPECT_THAT(codes(), ElementsAre("memory.room", "disk.room", "pids.room", "pids.max"));
  machine_.set_memory_available(kGiB + kGiB / 16 + (1 << 20));
  machine_.set_disk_available(kGiB + (17 << 20));
  machine_.set_tasks_available(80);
  machine_.set_pid_max(301);
  EXPECT_THAT(codes(), IsEmpty());
}

TEST_F(PrecheckTest, HugePagesComeFromThePoolOfTheirSize) {
  auto* need = needs_.add_huge_pages();
  need->set_page_bytes(2 << 20);
  need->set_pages(5);
  EXPECT_THAT(codes(), ElementsAre("memory.huge_pages"));
  auto* has = machine_.add_huge_pages();
  has->set_page_bytes(kGiB);
  has->set_pages(100);
  EXPECT_THAT(codes(), ElementsAre("memory.huge_pages"));
  has = machine_.add_huge_pages();
  has->set_page_bytes(2 << 20);
  has->set_pages(4);
  EXPECT_THAT(codes(), ElementsAre("memory.huge_pages"));
  EXPECT_THAT(first_reason(), HasSubstr("4 more huge pages of 2048 KiB"));
  has->set_pages(5);
  EXPECT_THAT(codes(), IsEmpty());
}

TEST_F(PrecheckTest, AnAddressOfTheNodeItselfIsTaken) {
  machine_.add_addresses("10.0.0.5");
  EXPECT_THAT(codes(), ElementsAre("address.taken"));
}

// A peer of another version, or one that says nothing, is no machine to go to.
TEST_F(PrecheckTest, AnEmptyAnswerRefuses) {
  machine_.Clear();
  EXPECT_GE(codes().size(), 6u);
}

TEST(ClockTest, OnlyWhatTheAnswersTimeCannotExplainCounts) {
  constexpr int64_t kMs = 1'000'000;
  const auto off = [](int64_t there) { return judge_clock(1000 * kMs, 1300 * kMs, there, "n2"); };
  EXPECT_THAT(off(1000 * kMs), IsEmpty());
  EXPECT_THAT(off(1390 * kMs), IsEmpty());
  EXPECT_THAT(off(910 * kMs), IsEmpty());
  ASSERT_EQ(off(800 * kMs).size(), 1u);
  EXPECT_EQ(off(800 * kMs)[0].code(), "clock.skew");
  EXPECT_THAT(off(800 * kMs)[0].reason(), HasSubstr("0.200 s behind"));
  EXPECT_EQ(off(INT64_MIN).size(), 1u);
  EXPECT_EQ(off(INT64_MAX).size(), 1u);
  EXPECT_THAT(off(2300 * kMs)[0].reason(), HasSubstr("1.000 s ahead of"));
}

}  // namespace
}  // namespace godwit::migration
