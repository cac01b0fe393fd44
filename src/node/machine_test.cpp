// Destinations that lack something: what is asked for is more than this machine has.
#include "node/machine.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>

#include "node/earlier_moves.h"

namespace godwit::node {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

class MachineTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    auto facts = find_machine_facts();
    ASSERT_TRUE(facts.ok()) << facts.status();
    facts_ = new MachineFacts(*std::move(facts));
  }
  static void TearDownTestSuite() { delete facts_; }

  // Of a service that has started here and is small, but for `change`.
  static api::PrepareReplicaReply ask(const std::function<void(migration::Needs&)>& change) {
    migration::Needs needs;
    *needs.mutable_cpu() = facts_->cpu;
    *needs.mutable_vdso() = facts_->vdso;
    needs.set_kernel(facts_->kernel);
    needs.set_memory_bytes(1 << 20);
    needs.set_tasks(1);
    needs.set_highest_pid(2);
    needs.set_address("192.0.2.77");
    change(needs);
    api::PrepareReplicaRequest request;
    request.set_needs(needs.SerializeAsString());
    api::PrepareReplicaReply reply;
    const absl::Status judged = judge_needs(*facts_, {"/tmp", "test"}, "n2", request, reply);
    EXPECT_TRUE(judged.ok()) << judged;
    return reply;
  }
  static std::vector<std::string> codes(const std::function<void(migration::Needs&)>& change) {
    std::vector<std::string> all;
    const api::PrepareReplicaReply reply = ask(change);
    for (const api::Refusal& each : reply.refusals()) {
      EXPECT_EQ(each.object(), "n2");
      all.push_back(each.code());
    }
    return all;
  }

  static MachineFacts* facts_;
};
MachineFacts* MachineTest::facts_ = nullptr;

TEST_F(MachineTest, WhatRunsHereMayComeHere) {
  const api::PrepareReplicaReply reply = ask([](migration::Needs&) {});
  EXPECT_THAT(reply.refusals(), IsEmpty());
  migration::Machine machine;
  ASSERT_TRUE(machine.ParseFromString(reply.machine()));
  EXPECT_GT(machine.memory_available(), 1u << 20);
  EXPECT_GT(machine.disk_available(), 1u << 20);
  EXPECT_GT(machine.pid_max(), 300u);
  EXPECT_GT(machine.tasks_available(), 10u);
  EXPECT_LT(machine.tasks_available(), machine.pid_max());
  EXPECT_THAT(machine.addresses(), Contains("127.0.0.1"));
  EXPECT_GT(machine.realtime_ns(), 0);
}

TEST_F(MachineTest, ADestinationThatLacksSomethingSaysWhat) {
  EXPECT_THAT(codes([](migration::Needs& n) { n.mutable_cpu()->add_features("avx9000"); }),
              ElementsAre("cpu.features"));
  EXPECT_THAT(codes([](migration::Needs& n) { n.mutable_cpu()->set_xfeatures(UINT64_MAX); }),
              ElementsAre("cpu.xfeatures"));
  EXPECT_THAT(codes([](migration::Needs& n) { n.mutable_cpu()->set_xsave_bytes(1); }),
              ElementsAre("cpu.xsave_size"));
  EXPECT_THAT(
      codes([](migration::Needs& n) { n.mutable_vdso()->mutable_symbols(0)->set_offset(1); }),
      IsEmpty());  // as long as the code is the same
  EXPECT_THAT(codes([](migration::Needs& n) {
                n.mutable_vdso()->mutable_symbols(0)->set_offset(1);
                n.mutable_vdso()->mutable_code()->back() ^= 1;
              }),
              ElementsAre("vdso.symbols"));
  EXPECT_THAT(codes([](migration::Needs& n) { n.set_memory_bytes(uint64_t{1} << 50); }),
              ElementsAre("memory.room"));
  EXPECT_THAT(codes([](migration::Needs& n) { n.set_disk_bytes(uint64_t{1} << 60); }),
              ElementsAre("disk.room"));
  EXPECT_THAT(codes([](migration::Needs& n) { n.set_tasks(1 << 30); }), ElementsAre("pids.room"));
  EXPECT_THAT(codes([](migration::Needs& n) { n.set_highest_pid(1 << 30); }),
              ElementsAre("pids.max"));
  EXPECT_THAT(codes([](migration::Needs& n) { n.set_address("127.0.0.1"); }),
              ElementsAre("address.taken"));
}

TEST_F(MachineTest, AFeatureThatTheKernelHasNotIsNamed) {
  MachineFacts old = *facts_;
  old.features.tcx = {false, "bpf(BPF_LINK_CREATE, TCX), Linux 6.6"};
  old.features.uffd_wp_async = {false, "Linux 6.7"};
  migration::Needs needs;
  *needs.mutable_cpu() = facts_->cpu;
  *needs.mutable_vdso() = facts_->vdso;
  needs.add_kernel_features("tcx");
  api::PrepareReplicaRequest request;
  request.set_needs(needs.SerializeAsString());
  api::PrepareReplicaReply reply;
  ASSERT_TRUE(judge_needs(old, {"/tmp", "test"}, "n2", request, reply).ok());
  ASSERT_EQ(reply.refusals_size(), 1);
  EXPECT_EQ(reply.refusals(0).code(), "kernel.feature");
  EXPECT_THAT(reply.refusals(0).reason(), HasSubstr("Linux 6.6"));
  // Only a source needs the other one.
  const auto here = missing_at_source(old, "n1");
  ASSERT_EQ(here.size(), 1u);
  EXPECT_EQ(here[0].object(), "n1");
  EXPECT_THAT(here[0].reason(), HasSubstr("uffd_wp_async"));
}

TEST_F(MachineTest, NeedsThatDoNotParseAreAnError) {
  api::PrepareReplicaRequest request;
  api::PrepareReplicaReply reply;
  EXPECT_FALSE(judge_needs(*facts_, {"/tmp", "test"}, "n2", request, reply).ok());
  request.set_needs("\xff\xff");
  EXPECT_FALSE(judge_needs(*facts_, {"/tmp", "test"}, "n2", request, reply).ok());
}

api::ServiceRecord moved(const std::string& name, const std::string& from, const std::string& to,
                         uint64_t bytes_per_s, int64_t finished) {
  api::ServiceRecord record;
  record.set_name(name);
  api::MigrationStatistics* move = record.mutable_last_migration();
  move->set_source(from);
  move->set_destination(to);
  move->set_rounds(3);
  move->set_bytes_per_s(bytes_per_s);
  move->set_bytes_wire(uint64_t{1} << 30);
  move->set_dirty_pages_per_s(bytes_per_s / 10);
  move->set_finished_unix_ns(finished);
  return record;
}

TEST(EarlierMovesTest, TheLinkIsKnownByTheLatestMoveEitherWay) {
  std::vector<api::ServiceRecord> records = {moved("a", "n1", "n2", 100, 1),
                                             moved("b", "n2", "n1", 200, 2),
                                             moved("c", "n1", "n3", 300, 3)};
  const EarlierFigures figures = earlier_figures(records, "a", "n1", "n2");
  EXPECT_EQ(figures.link_bytes_per_s, 200);
  EXPECT_THAT(figures.link_from, HasSubstr("b"));
  EXPECT_TRUE(figures.dirty_known);
  EXPECT_EQ(figures.dirty_pages_per_s, 10);
  records[1].mutable_last_migration()->set_bandwidth_limited(true);
  EXPECT_EQ(earlier_figures(records, "a", "n1", "n2").link_bytes_per_s, 100);
  records[0].mutable_last_migration()->set_bytes_wire(1 << 20);
  EXPECT_EQ(earlier_figures(records, "a", "n1", "n2").link_bytes_per_s, 0);
}

TEST(EarlierMovesTest, AFreezeTellsWhatTheNextOneCostsBesideItsPages) {
  std::vector<api::ServiceRecord> records = {moved("a", "n1", "n2", 100, 1)};
  const auto fixed = [&] { return earlier_figures(records, "a", "n1", "n2").fixed_downtime_ns; };
  const int64_t usual = fixed();
  api::MigrationStatistics* move = records[0].mutable_last_migration();
  move->set_fixed_downtime_ns(2'500'000);
  move->set_predicted_downtime_ns(3'000'000);
  move->set_freeze_ns(5'000'000);
  EXPECT_NE(usual, 4'500'000);
  EXPECT_EQ(fixed(), 4'500'000);
  move->set_freeze_ns(1'000'000'000);
  EXPECT_EQ(fixed(), 30'000'000);
  move->set_strategy("cold");
  EXPECT_EQ(fixed(), usual);
}

TEST(EarlierMovesTest, WithoutAMoveNothingIsKnown) {
  api::ServiceRecord record;
  record.set_name("a");
  const EarlierFigures figures = earlier_figures({record}, "a", "n1", "n2");
  EXPECT_EQ(figures.link_bytes_per_s, 0);
  EXPECT_FALSE(figures.dirty_known);
}

}  // namespace
}  // namespace godwit::node
