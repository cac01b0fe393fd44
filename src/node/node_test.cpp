// A daemon's parts that need neither root nor another process.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <deque>
#include <filesystem>
#include <fstream>
#include <thread>

#include "base/status.h"
#include "node/busy.h"
#include "node/journal.h"
#include "node/launch.h"
#include "node/ownership.h"
#include "node/records.h"
#include "node/services.h"
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

// A store whose keeper, or the way to it, fails as told, one change a time.
class BadStore : public store::Store {
 public:
  struct Bad {
    absl::Status answer;
    bool made = false;  // though the answer is an error
  };
  explicit BadStore(store::Store* inner) : inner_(inner) {}
  absl::StatusOr<store::Entry> get(const std::string& key) override { return inner_->get(key); }
  absl::StatusOr<std::vector<store::Entry>> list(const std::string& prefix) override {
    return inner_->list(prefix);
  }
  absl::StatusOr<store::Revision> compare_and_swap(const std::string& key, store::Revision expected,
                                                   const std::string& value) override {
    if (bad_.empty()) return inner_->compare_and_swap(key, expected, value);
    const Bad bad = bad_.front();
    bad_.pop_front();
    if (bad.made) {
      EXPECT_TRUE(inner_->compare_and_swap(key, expected, value).ok());
    }
    return bad.answer;
  }
  absl::Status remove(const std::string& key, store::Revision expected) override {
    return inner_->remove(key, expected);
  }
  std::deque<Bad> bad_;

 private:
  store::Store* inner_;
};

// "x" on its way from n1 to n2 as migration "m".
class OwnershipTest : public NodeTest {
 protected:
  void SetUp() override {
    NodeTest::SetUp();
    bad_store_ = std::make_unique<BadStore>(store_.get());
    bad_records_ = std::make_unique<Records>(bad_store_.get());
    marked_.record.set_name("x");
    marked_.record.set_owner("n1");
    marked_.record.set_state(api::SERVICE_MIGRATING);
    marked_.record.set_migration_id("m");
    marked_.record.set_destination("n2");
    ASSERT_TRUE(records_->put(marked_).ok());
    committed_ = marked_.record;
    committed_.set_owner("n2");
    committed_.set_state(api::SERVICE_RUNNING);
    committed_.clear_migration_id();
    committed_.mutable_last_migration()->set_id("m");
    source_.set_id("m");
    source_.set_side(api::MigrationJournal::SOURCE);
    source_.set_service("x");
    destination_ = source_;
    destination_.set_side(api::MigrationJournal::DESTINATION);
  }
  absl::Status swap(store::Store& store) {
    return store
        .compare_and_swap(service_key("x"), marked_.revision, committed_.SerializeAsString())
        .status();
  }
  absl::Status commit() {
    return commit_owner(
        [&] { return swap(*bad_store_); },
        [&]() -> absl::StatusOr<bool> { return records_->service("x")->record.owner() == "n2"; },
        again());
  }
  // As often as a test may need.
  AskAgain again() {
    return [this](const absl::Status&) { return ++asked_ < 10; };
  }
  std::string owner() { return records_->service("x")->record.owner(); }

  std::unique_ptr<BadStore> bad_store_;
  std::unique_ptr<Records> bad_records_;
  VersionedService marked_;
  api::ServiceRecord committed_;
  api::MigrationJournal source_, destination_;
  int asked_ = 0;
};

TEST_F(OwnershipTest, ALateCommitDoesNotFollowAReplicaThatIsRemoved) {
  const auto ours = settle_owner_at_destination(*records_, "n2", destination_, again());
  ASSERT_TRUE(ours.ok()) << ours.status();
  EXPECT_FALSE(*ours);
  EXPECT_TRUE(absl::IsAborted(swap(*store_)));
  // The source finds its mark and goes back.
  EXPECT_EQ(*settle_owner_at_source(*records_, "n1", source_, again()), "n1");
  EXPECT_EQ(records_->service("x")->record.state(), api::SERVICE_RUNNING);
}

TEST_F(OwnershipTest, ACommitThatComesJustBeforeIsSeen) {
  bad_store_->bad_ = {{absl::UnavailableError("lost")}};
  bool first = true;
  const auto ours =
      settle_owner_at_destination(*bad_records_, "n2", destination_, [&](const absl::Status&) {
        if (first) {
          EXPECT_TRUE(swap(*store_).ok());
        }
        return std::exchange(first, false);
      });
  ASSERT_TRUE(ours.ok()) << ours.status();
  EXPECT_TRUE(*ours);
}

// One node is both ends: what changes is the capsule.
class InPlaceTest : public OwnershipTest {
 protected:
  void SetUp() override {
    OwnershipTest::SetUp();
    committed_.set_owner("n1");
    capsule::CapsuleSpec spec;
    spec.set_name("x~m");
    committed_.set_spec(spec.SerializeAsString());
    marked_.record.set_destination("n1");
    ASSERT_TRUE(records_->put(marked_).ok());
    source_.set_capsule("x");
    destination_.set_capsule("x~m");
  }
};

TEST_F(InPlaceTest, TheSourceGoesWhenTheRecordNamesTheOtherCapsule) {
  ASSERT_TRUE(swap(*store_).ok());
  EXPECT_EQ(*settle_owner_at_source(*records_, "n1", source_, again()), kReplacedHere);
  EXPECT_TRUE(*settle_owner_at_destination(*records_, "n1", destination_, again()));
  EXPECT_EQ(capsule_in(records_->service("x")->record), "x~m");
}

TEST_F(InPlaceTest, ALateCommitFollowsNeitherEnd) {
  // Whichever is the first to believe that it was not made.
  EXPECT_FALSE(*settle_owner_at_destination(*records_, "n1", destination_, again()));
  EXPECT_TRUE(absl::IsAborted(swap(*store_)));
  EXPECT_EQ(*settle_owner_at_source(*records_, "n1", source_, again()), "n1");
  EXPECT_TRUE(absl::IsAborted(swap(*store_)));
  EXPECT_EQ(records_->service("x")->record.state(), api::SERVICE_RUNNING);
  EXPECT_EQ(capsule_in(records_->service("x")->record), "x");
}

TEST_F(OwnershipTest, AnEndThatIsDoneChangesNothing) {
  ASSERT_TRUE(settle_owner_at_source(*records_, "n1", source_, again()).ok());
  const store::Revision before = records_->service("x")->revision;
  EXPECT_FALSE(*settle_owner_at_destination(*records_, "n2", destination_, again()));
  EXPECT_EQ(records_->service("x")->revision, before);
  ASSERT_TRUE(records_->remove(*records_->service("x")).ok());
  EXPECT_FALSE(*settle_owner_at_destination(*records_, "n2", destination_, again()));
  EXPECT_TRUE(absl::IsNotFound(settle_owner_at_source(*records_, "n1", source_, again()).status()));
}

TEST_F(OwnershipTest, ALateMarkDoesNotFollowItsRollBack) {
  VersionedService next = *records_->service("x");
  next.record.set_migration_id("n");  // the mark of another move, which stays on its way
  source_.set_id("n");
  EXPECT_EQ(*settle_owner_at_source(*records_, "n1", source_, again()), "n1");
  EXPECT_TRUE(absl::IsAborted(records_->put(next)));
}

TEST_F(OwnershipTest, ALostAnswerStaysInDoubtWhateverTheNextOneSays) {
  for (const absl::Status& next :
       {absl::InternalError("COMMIT: disk I/O error"), absl::DataLossError("corrupt"),
        absl::FailedPreconditionError("the disk is full"), absl::ResourceExhaustedError("gRPC")}) {
    bad_store_->bad_ = {{absl::UnavailableError("lost"), true}, {next}};
    asked_ = 0;
    EXPECT_TRUE(commit().ok()) << next;
    EXPECT_EQ(owner(), "n2");
    ASSERT_TRUE(records_->remove(*records_->service("x")).ok());
    marked_.revision = store::kMustNotExist;
    ASSERT_TRUE(records_->put(marked_).ok());
  }
}

TEST_F(OwnershipTest, AFailedCommitOfTheKeeperMayHaveBeenMade) {
  bad_store_->bad_ = {{absl::InternalError("COMMIT: disk I/O error"), true}};
  EXPECT_TRUE(commit().ok());
  EXPECT_EQ(owner(), "n2");
}

TEST_F(OwnershipTest, WithoutAnAnswerNobodySaysNo) {
  bad_store_->bad_.assign(10, {absl::InternalError("disk I/O error")});
  EXPECT_TRUE(absl::IsUnknown(commit()));
  bad_store_->bad_.assign(10, {absl::UnavailableError("no keeper")});
  asked_ = 0;
  EXPECT_TRUE(absl::IsUnknown(commit()));
}

TEST_F(OwnershipTest, ARefusalIsAnAnswer) {
  bad_store_->bad_ = {{absl::FailedPreconditionError("the disk is full")}};
  EXPECT_TRUE(absl::IsFailedPrecondition(commit()));
  ASSERT_TRUE(settle_owner_at_source(*records_, "n1", source_, again()).ok());
  EXPECT_TRUE(absl::IsAborted(commit()));
  EXPECT_EQ(asked_, 0);
  bad_store_->bad_ = {{absl::UnavailableError("lost")}};
  EXPECT_TRUE(absl::IsAborted(commit()));  // the source was first
}

TEST_F(OwnershipTest, ASourceAsksOnWhateverTheStoreSays) {
  bad_store_->bad_ = {{absl::FailedPreconditionError("the disk is full")},
                      {absl::InternalError("disk I/O error")},
                      {absl::DataLossError("corrupt")},
                      {absl::CancelledError("gRPC")},
                      {absl::DeadlineExceededError("late"), true}};
  const auto settled = settle_owner_at_source(*bad_records_, "n1", source_, again());
  ASSERT_TRUE(settled.ok()) << settled.status();
  EXPECT_EQ(*settled, "n1");
  EXPECT_EQ(asked_, 5);
  EXPECT_EQ(records_->service("x")->record.state(), api::SERVICE_RUNNING);
  bad_store_->bad_.assign(20, {absl::InternalError("disk I/O error")});
  EXPECT_TRUE(
      absl::IsCancelled(settle_owner_at_source(*bad_records_, "n1", source_, again()).status()));
}

TEST_F(OwnershipTest, FiguresDoNotDisturbTheNextMove) {
  ASSERT_TRUE(swap(*store_).ok());
  api::MigrationStatistics figures;
  figures.set_id("m");
  figures.set_rounds(3);
  ASSERT_TRUE(record_figures(*records_, "x", figures).ok());
  VersionedService onward = *records_->service("x");
  EXPECT_EQ(onward.record.last_migration().rounds(), 3u);
  onward.record.set_state(api::SERVICE_MIGRATING);
  ASSERT_TRUE(records_->put(onward).ok());
  EXPECT_TRUE(record_figures(*records_, "x", figures).ok());
  EXPECT_EQ(records_->service("x")->revision, onward.revision);
  figures.set_id("earlier");
  EXPECT_TRUE(record_figures(*records_, "x", figures).ok());
  EXPECT_EQ(records_->service("x")->revision, onward.revision);
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
  // The other end of the same migration, which a clone's may be.
  api::MigrationJournal clone = entry;
  clone.set_clone(true);
  ASSERT_TRUE(journal.write(clone).ok());
  EXPECT_EQ(journal.all()->size(), 2u);
  EXPECT_TRUE(journal.remove(clone).ok());
  EXPECT_EQ(journal.all()->size(), 1u);
  api::MigrationJournal in_place = entry;
  in_place.set_side(api::MigrationJournal::DESTINATION);
  in_place.set_capsule("x~abc");
  ASSERT_TRUE(journal.write(in_place).ok());
  EXPECT_EQ(journal.all()->size(), 2u);
  EXPECT_TRUE(journal.remove(in_place).ok());
  EXPECT_TRUE(journal.remove(entry).ok());
  EXPECT_TRUE(journal.remove(entry).ok());
  EXPECT_TRUE(journal.all()->empty());
  // On a full disk an entry is there as it was, and no half beside it.
  ASSERT_TRUE(journal.write(entry).ok());
  entry.set_mover_pid(43);
  struct rlimit before {};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  const struct rlimit none { 0, before.rlim_max };
  const auto handler = ::signal(SIGXFSZ, SIG_IGN);
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &none), 0);
  EXPECT_FALSE(journal.write(entry).ok());
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &before), 0);
  ::signal(SIGXFSZ, handler);
  EXPECT_FALSE(std::filesystem::exists(folder_ + "/migrations/abc.new"));
  EXPECT_EQ(journal.all()->front().mover_pid(), 42);
  EXPECT_TRUE(journal.remove(entry).ok());
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

TEST(BusyTest, WhatEndsSoonIsWaitedForByThoseWhoWouldNotWait) {
  Busy busy;
  auto hold = busy.try_hold("x", "being moved to n2");
  ASSERT_TRUE(hold.ok());
  EXPECT_FALSE(busy.try_hold("x", "being moved to n1").ok());
  hold->ends_soon();
  std::thread ender([&] {
    ::usleep(20'000);
    hold->release();
  });
  EXPECT_TRUE(busy.try_hold("x", "being moved to n1").ok());
  ender.join();
  // The next one is as any.
  auto next = busy.try_hold("x", "being moved to n2");
  ASSERT_TRUE(next.ok());
  EXPECT_FALSE(busy.try_hold("x", "being moved to n1").ok());
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
