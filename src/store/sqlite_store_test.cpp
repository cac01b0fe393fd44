#include "store/sqlite_store.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <cstdlib>
#include <filesystem>
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
  small.rlim_cur = std::filesystem::file_size(path_ + "-wal");
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
