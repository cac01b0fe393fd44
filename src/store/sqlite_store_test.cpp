#include "store/sqlite_store.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <sqlite3.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <thread>

namespace godwit::store {
namespace {

class SqliteStoreTest : public ::testing::Test {
 protected:
  void SetUp() override {
    char name[] = "/tmp/godwit-store-XXXXXX";
    ASSERT_NE(::mkdtemp(name), nullptr);
    folder_ = name;
    path_ = folder_ + "/store.db";
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  std::unique_ptr<SqliteStore> open() {
    auto store = SqliteStore::open(path_);
    EXPECT_TRUE(store.ok()) << store.status();
    return store.ok() ? std::move(*store) : nullptr;
  }
  std::string folder_, path_;
};

TEST_F(SqliteStoreTest, SwapReplacesOnlyTheRevisionItNames) {
  auto store = open();
  EXPECT_EQ(store->get("a").status().code(), absl::StatusCode::kNotFound);
  const auto first = store->compare_and_swap("a", kMustNotExist, "one");
  ASSERT_TRUE(first.ok());
  EXPECT_EQ(store->compare_and_swap("a", kMustNotExist, "x").status().code(),
            absl::StatusCode::kAborted);
  EXPECT_EQ(store->compare_and_swap("a", *first + 7, "x").status().code(),
            absl::StatusCode::kAborted);
  const auto second = store->compare_and_swap("a", *first, "two");
  ASSERT_TRUE(second.ok());
  EXPECT_GT(*second, *first);
  EXPECT_EQ(store->compare_and_swap("a", *first, "x").status().code(), absl::StatusCode::kAborted);
  const auto entry = store->get("a");
  ASSERT_TRUE(entry.ok());
  EXPECT_EQ(entry->value, "two");
  EXPECT_EQ(entry->revision, *second);
}

TEST_F(SqliteStoreTest, AnEntryMadeAnewDoesNotGetAnOldRevision) {
  auto store = open();
  const auto first = store->compare_and_swap("a", kMustNotExist, "one");
  ASSERT_TRUE(first.ok());
  EXPECT_EQ(store->remove("a", *first + 1).code(), absl::StatusCode::kAborted);
  ASSERT_TRUE(store->remove("a", *first).ok());
  EXPECT_EQ(store->remove("a", *first).code(), absl::StatusCode::kAborted);
  const auto again = store->compare_and_swap("a", kMustNotExist, "one");
  ASSERT_TRUE(again.ok());
  EXPECT_GT(*again, *first);
}

TEST_F(SqliteStoreTest, ARevisionGivenOutDoesNotComeBackAfterARestart) {
  auto store = open();
  const auto kept = store->compare_and_swap("kept", kMustNotExist, "1");
  const auto removed = store->compare_and_swap("removed", kMustNotExist, "1");
  ASSERT_TRUE(kept.ok() && removed.ok());
  ASSERT_TRUE(store->remove("removed", *removed).ok());
  store.reset();
  store = open();
  const auto next = store->compare_and_swap("removed", kMustNotExist, "1");
  ASSERT_TRUE(next.ok());
  EXPECT_GT(*next, *removed);
  ASSERT_TRUE(store->remove("removed", *next).ok());
  const auto last = store->compare_and_swap("kept", *kept, "2");
  ASSERT_TRUE(last.ok());
  store.reset();
  store = open();
  EXPECT_GT(store->compare_and_swap("kept", *last, "3").value_or(0), *last);
}

// A store as the version before layouts made it.
constexpr char kLayout0[] =
    "CREATE TABLE IF NOT EXISTS entries("
    "  key BLOB PRIMARY KEY, value BLOB NOT NULL, revision INTEGER NOT NULL) WITHOUT ROWID;"
    "CREATE TABLE IF NOT EXISTS counter("
    "  one INTEGER PRIMARY KEY CHECK(one=1), revision INTEGER NOT NULL);"
    "INSERT OR IGNORE INTO counter VALUES(1, 0);";

int execute(const std::string& path, const std::string& sql) {
  sqlite3* db = nullptr;
  int rc = sqlite3_open(path.c_str(), &db);
  if (rc == SQLITE_OK) rc = sqlite3_exec(db, sql.c_str(), nullptr, nullptr, nullptr);
  sqlite3_close(db);
  return rc;
}

TEST_F(SqliteStoreTest, AStoreOfTheLayoutBeforeIsTakenOver) {
  const std::string large(5000, 'x');
  ASSERT_EQ(execute(path_, std::string("PRAGMA journal_mode=WAL;") + kLayout0 +
                               "INSERT INTO entries VALUES(x'61', x'0001', 7);"
                               "INSERT INTO entries VALUES(x'62', CAST('" +
                               large +
                               "' AS BLOB), 3);"
                               "UPDATE counter SET revision=9;"),
            SQLITE_OK);
  for (int time = 0; time < 2; ++time) {
    auto store = open();
    ASSERT_NE(store, nullptr);
    EXPECT_EQ(store->list("")->size(), 2u);
    EXPECT_EQ(store->get("a")->value, std::string("\0\1", 2));
    EXPECT_EQ(store->get("a")->revision, 7);
    EXPECT_EQ(store->get("b")->value, large);
  }
  EXPECT_GT(open()->compare_and_swap("a", 7, "v").value_or(0), 9);
}

TEST_F(SqliteStoreTest, AProgramOfTheLayoutBeforeDoesNotBeginAnEmptyStoreInIt) {
  ASSERT_TRUE(open()->compare_and_swap("a", kMustNotExist, "v").ok());
  EXPECT_EQ(execute(path_, std::string("BEGIN IMMEDIATE;") + kLayout0 + "COMMIT;"), SQLITE_ERROR);
  EXPECT_EQ(open()->get("a")->value, "v");
}

TEST_F(SqliteStoreTest, ALayoutOfALaterVersionIsRefused) {
  open().reset();
  ASSERT_EQ(execute(path_, "PRAGMA user_version=3"), SQLITE_OK);
  EXPECT_EQ(SqliteStore::open(path_).status().code(), absl::StatusCode::kFailedPrecondition);
}

std::string bytes_of_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

TEST_F(SqliteStoreTest, AChangeWritesOnePageIntoALogThatKeepsItsLength) {
  auto store = open();
  auto revision = store->compare_and_swap("service/x", kMustNotExist, std::string(2000, 'a'));
  store.reset();
  store = open();
  for (int i = 0; i < 3; ++i) {
    const std::string before = bytes_of_file(path_ + "-wal");
    revision = store->compare_and_swap("service/x", *revision,
                                       std::string(2000, static_cast<char>('b' + i)));
    ASSERT_TRUE(revision.ok());
    const std::string after = bytes_of_file(path_ + "-wal");
    ASSERT_EQ(before.size(), after.size());
    // https://www.sqlite.org/fileformat2.html#the_write_ahead_log
    constexpr size_t kHeader = 32, kFrame = 24 + 4096;
    int changed = 0;
    for (size_t at = kHeader; at + kFrame <= after.size(); at += kFrame)
      changed += after.compare(at, kFrame, before, at, kFrame) != 0;
    EXPECT_EQ(changed, 1);
  }
}

TEST_F(SqliteStoreTest, ListTakesThePrefixByBytes) {
  auto store = open();
  for (const char* key : {"service/b", "service/a", "service_", "servicf", "service/%", "node/a"})
    ASSERT_TRUE(store->compare_and_swap(key, kMustNotExist, key).ok());
  const auto all = store->list("service/");
  ASSERT_TRUE(all.ok());
  std::vector<std::string> keys;
  for (const Entry& each : *all) keys.push_back(each.key);
  EXPECT_THAT(keys, ::testing::ElementsAre("service/%", "service/a", "service/b"));
  EXPECT_EQ(store->list("")->size(), 6u);
  EXPECT_TRUE(store->list("%")->empty());
}

TEST_F(SqliteStoreTest, BytesOfAnyKindAreKept) {
  auto store = open();
  const std::string odd("\0\xff%_'\n", 6);
  ASSERT_TRUE(store->compare_and_swap(odd, kMustNotExist, odd).ok());
  ASSERT_TRUE(store->compare_and_swap("empty", kMustNotExist, "").ok());
  EXPECT_EQ(store->get(odd)->value, odd);
  EXPECT_EQ(store->get("empty")->value, "");
}

TEST_F(SqliteStoreTest, OfManyWritersExactlyOneWinsEachRevision) {
  auto store = open();
  ASSERT_TRUE(store->compare_and_swap("n", kMustNotExist, "0").ok());
  std::atomic<int> won = 0;
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t)
    threads.emplace_back([&] {
      for (int done = 0; done < 25;) {
        const auto now = store->get("n");
        const auto swapped =
            store->compare_and_swap("n", now->revision, std::to_string(std::stoi(now->value) + 1));
        if (!swapped.ok()) continue;
        ++done;
        ++won;
      }
    });
  for (std::thread& each : threads) each.join();
  EXPECT_EQ(won, 100);
  EXPECT_EQ(store->get("n")->value, "100");
}

TEST_F(SqliteStoreTest, WhatWasAnsweredSurvivesAKill) {
  int pipe_fds[2];
  ASSERT_EQ(::pipe(pipe_fds), 0);
  const pid_t child = ::fork();
  if (child == 0) {
    auto store = SqliteStore::open(path_);
    for (int i = 0; store.ok(); ++i) {
      if (!(*store)->compare_and_swap("k" + std::to_string(i), kMustNotExist, "v").ok()) ::_exit(1);
      if (::write(pipe_fds[1], "x", 1) != 1) ::_exit(2);
    }
    ::_exit(3);
  }
  ::close(pipe_fds[1]);
  char byte = 0;
  int answered = 0;
  while (answered < 10 && ::read(pipe_fds[0], &byte, 1) == 1) ++answered;
  ::kill(child, SIGKILL);
  int wait_status = 0;
  ::waitpid(child, &wait_status, 0);
  while (::read(pipe_fds[0], &byte, 1) == 1) ++answered;
  ::close(pipe_fds[0]);
  ASSERT_TRUE(WIFSIGNALED(wait_status));

  auto store = open();
  ASSERT_NE(store, nullptr);
  EXPECT_GE(store->list("k")->size(), static_cast<size_t>(answered));
  EXPECT_TRUE(store->compare_and_swap("after", kMustNotExist, "v").ok());
}

TEST_F(SqliteStoreTest, AFailedCommitIsNoRefusal) {
  auto store = open();
  const auto first = store->compare_and_swap("a", kMustNotExist, "one");
  ASSERT_TRUE(first.ok());
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  rlimit small = before;
  small.rlim_cur = 1;
  ::signal(SIGXFSZ, SIG_IGN);
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
  const auto failed = store->compare_and_swap("a", *first, "two");
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &before), 0);
  EXPECT_FALSE(failed.ok());
  EXPECT_FALSE(nothing_changed(failed.status())) << failed.status();
  EXPECT_TRUE(store->compare_and_swap("a", *first, "two").ok());
}

// In a child, whose mounts are its own. 77: there is no way to mount.
int fill_a_disk(const std::string& folder) {
  if (::unshare(CLONE_NEWNS | (::geteuid() == 0 ? 0 : CLONE_NEWUSER)) != 0 ||
      (::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0) ||
      ::mount("tmpfs", folder.c_str(), "tmpfs", 0, "size=256k") != 0)
    return 77;
  auto store = SqliteStore::open(folder + "/store.db");
  if (!store.ok()) return 1;
  absl::StatusOr<Revision> last = (*store)->compare_and_swap("a", kMustNotExist, "0");
  Revision before = 0;
  for (int i = 1; last.ok() && i < 1000; ++i) {
    before = *last;
    last = (*store)->compare_and_swap("a", before, std::to_string(i));
  }
  if (last.ok()) return 2;
  if (!nothing_changed(last.status())) return 3;
  return (*store)->get("a")->revision == before ? 0 : 4;
}

TEST_F(SqliteStoreTest, ADiskThatIsFullIsARefusal) {
  const pid_t child = ::fork();
  if (child == 0) ::_exit(fill_a_disk(folder_));
  int wait_status = 0;
  ::waitpid(child, &wait_status, 0);
  ASSERT_TRUE(WIFEXITED(wait_status));
  if (WEXITSTATUS(wait_status) == 77) GTEST_SKIP() << "mount(tmpfs) is not permitted";
  EXPECT_EQ(WEXITSTATUS(wait_status), 0);
}

TEST_F(SqliteStoreTest, ASecondKeeperOfTheSameFileIsRefused) {
  auto store = open();
  const pid_t child = ::fork();
  if (child == 0)
    ::_exit(SqliteStore::open(path_).status().code() == absl::StatusCode::kUnavailable ? 0 : 1);
  int wait_status = 0;
  ::waitpid(child, &wait_status, 0);
  EXPECT_EQ(wait_status, 0);
}

TEST_F(SqliteStoreTest, AFileThatIsNoStoreIsRefused) {
  FILE* file = std::fopen(path_.c_str(), "w");
  for (int i = 0; i < 1000; ++i) std::fputs("no database\n", file);
  std::fclose(file);
  EXPECT_FALSE(SqliteStore::open(path_).ok());
}

}  // namespace
}  // namespace godwit::store
