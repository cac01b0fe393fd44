// A daemon's parts that need neither root nor another process.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <thread>

#include "base/status.h"
#include "node/busy.h"
#include "node/journal.h"
#include "node/launch.h"
#include "node/records.h"
#include "node/session_pump.h"
#include "store/sqlite_store.h"

namespace godwit::node {
namespace {

class NodeTest : public ::testing::Test {
 protected:
  void SetUp() override {
    char name[] = "/tmp/godwit-node-XXXXXX";
    ASSERT_NE(::mkdtemp(name), nullptr);
    folder_ = name;
    store_ = *store::SqliteStore::open(folder_ + "/store.db");
    records_ = std::make_unique<Records>(store_.get());
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  VersionedService made(const std::string& name, const std::string& owner) {
    VersionedService service;
    service.record.set_name(name);
    service.record.set_owner(owner);
    EXPECT_TRUE(records_->put(service).ok());
    return service;
  }
  std::string folder_;
  std::unique_ptr<store::SqliteStore> store_;
  std::unique_ptr<Records> records_;
};

TEST_F(NodeTest, ANameIsTakenOnce) {
  made("x", "n1");
  VersionedService second;
  second.record.set_name("x");
  EXPECT_TRUE(absl::IsAborted(records_->put(second)));
  EXPECT_TRUE(absl::IsNotFound(records_->service("y").status()));
}

TEST_F(NodeTest, OfSourceAndDestinationOnlyOneChangesTheOwner) {
  VersionedService at_source = made("x", "n1");
  VersionedService at_destination = *records_->service("x");
  at_destination.record.set_owner("n2");
  at_source.record.set_generation(2);  // the fence of a rollback
  ASSERT_TRUE(records_->put(at_source).ok());
  EXPECT_TRUE(absl::IsAborted(records_->put(at_destination)));
  EXPECT_EQ(records_->service("x")->record.owner(), "n1");
}

TEST_F(NodeTest, UpdateTriesAgainAfterAnother) {
  made("x", "n1");
  int calls = 0;
  const auto updated = records_->update("x", [&](api::ServiceRecord& record) {
    if (++calls == 1) {
      VersionedService other = *records_->service("x");
      other.record.set_address("10.0.0.1");
      EXPECT_TRUE(records_->put(other).ok());
    }
    record.set_exit_code(7);
    return absl::OkStatus();
  });
  ASSERT_TRUE(updated.ok());
  EXPECT_EQ(calls, 2);
  EXPECT_EQ(updated->record.address(), "10.0.0.1");
  EXPECT_EQ(updated->record.exit_code(), 7);
  const auto given_up =
      records_->update("x", [](api::ServiceRecord&) { return absl::CancelledError("no"); });
  EXPECT_TRUE(absl::IsCancelled(given_up.status()));
}

TEST_F(NodeTest, AddressesBelongToOneService) {
  EXPECT_TRUE(records_->claim_address("10.0.0.1", "a").ok());
  EXPECT_TRUE(records_->claim_address("10.0.0.1", "a").ok());
  EXPECT_TRUE(absl::IsAlreadyExists(records_->claim_address("10.0.0.1", "b")));
  EXPECT_TRUE(records_->release_address("10.0.0.1", "b").ok());
  EXPECT_TRUE(absl::IsAlreadyExists(records_->claim_address("10.0.0.1", "b")));
  EXPECT_TRUE(records_->release_address("10.0.0.1", "a").ok());
  EXPECT_TRUE(records_->claim_address("10.0.0.1", "b").ok());
}

TEST_F(NodeTest, TheJournalForgetsNothingAndNoHalves) {
  const Journal journal(folder_);
  EXPECT_TRUE(journal.all()->empty());
  api::MigrationJournal entry;
  entry.set_id("abc");
  entry.set_service("x");
  ASSERT_TRUE(journal.write(entry).ok());
  entry.set_mover_pid(42);
  ASSERT_TRUE(journal.write(entry).ok());
  std::ofstream(folder_ + "/migrations/def.new") << "half";
  const auto all = journal.all();
  ASSERT_TRUE(all.ok()) << all.status();
  ASSERT_EQ(all->size(), 1u);
  EXPECT_EQ(all->front().mover_pid(), 42);
  EXPECT_TRUE(journal.remove("abc").ok());
  EXPECT_TRUE(journal.remove("abc").ok());
  EXPECT_TRUE(journal.all()->empty());
  std::ofstream(folder_ + "/migrations/ghi") << "\xff\xff\xff";
  EXPECT_FALSE(journal.all().ok());
}

TEST(BusyTest, OneAtATimeAndTheOtherIsToldWhy) {
  Busy busy;
  auto hold = busy.try_hold("x", "being moved to n2");
  ASSERT_TRUE(hold.ok());
  const auto second = busy.try_hold("x", "being stopped");
  EXPECT_EQ(second.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(second.status().message()), ::testing::HasSubstr("being moved to n2"));
  EXPECT_TRUE(busy.try_hold("y", "being stopped").ok());

  std::thread waiter(
      [&] { EXPECT_TRUE(busy.hold("x", "being stopped", Deadline::in(absl::Seconds(30))).ok()); });
  hold->release();
  waiter.join();
  EXPECT_TRUE(busy.try_hold("x", "again").ok());
}

TEST(PoolTest, DefaultsToTheUpperHalfWithoutTheBroadcast) {
  const auto pool = parse_pool("10.77.0.0/16", "");
  ASSERT_TRUE(pool.ok());
  EXPECT_EQ(pool->first, 0x0a4d8000u);
  EXPECT_EQ(pool->last, 0x0a4dfffeu);
  EXPECT_EQ(pool->prefix, 16);
}

TEST(PoolTest, RefusesWhatIsNotInside) {
  EXPECT_TRUE(parse_pool("10.77.0.0/16", "10.77.0.128-10.77.0.227").ok());
  for (const char* bad : {"10.77.0.128", "10.78.0.1-10.78.0.2", "10.77.0.9-10.77.0.1",
                          "10.77.0.0-10.77.0.5", "10.77.255.0-10.77.255.255", "x-y"})
    EXPECT_FALSE(parse_pool("10.77.0.0/16", bad).ok()) << bad;
  EXPECT_FALSE(parse_pool("fd77::/64", "").ok());
  EXPECT_FALSE(parse_pool("10.0.0.0/31", "").ok());
}

TEST(SpecTest, EnvironmentIsCompleteAndCheckedAgainstTheRules) {
  api::RunRequest request;
  request.set_name("web");
  request.add_argv("true");
  request.add_env("A=1=2");
  const auto spec = spec_of(request);
  ASSERT_TRUE(spec.ok());
  EXPECT_THAT(spec->env(), ::testing::Contains(::testing::StartsWith("PATH=")));
  EXPECT_THAT(spec->env(), ::testing::Contains("A=1=2"));
  EXPECT_EQ(spec->hostname(), "web");
  request.add_env("PATH=/x");
  EXPECT_THAT(spec_of(request)->env(),
              ::testing::Contains(::testing::StartsWith("PATH=")).Times(1));
  request.add_env("=x");
  EXPECT_FALSE(spec_of(request).ok());
  request.mutable_env()->RemoveLast();
  request.set_name("../x");
  EXPECT_FALSE(spec_of(request).ok());
  request.set_name("web");
  request.clear_argv();
  EXPECT_FALSE(spec_of(request).ok());
}

TEST(SessionTest, ProgramsThatDoNotStartHaveTheCodesOfAShell) {
  EXPECT_EQ(not_started_code(errno_status(ENOENT, "x")), 127);
  EXPECT_EQ(not_started_code(errno_status(EACCES, "x")), 126);
  EXPECT_EQ(not_started_code(absl::NotFoundError("no service")), 0);
}

}  // namespace
}  // namespace godwit::node
