// With real movers: /proc/self/exe is this test, which is one too.
#include "node/spare_mover.h"

#include <fcntl.h>
#include <fmt/core.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <set>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "kernel/syscalls.h"
#include "node/mover.h"

namespace godwit::node {
namespace {

constexpr absl::Duration kWait = absl::Seconds(20);
constexpr char kOwnerPart[] = "spare-owner";

template <typename Condition>
bool comes_true(Condition condition) {
  const Deadline deadline = Deadline::in(kWait);
  while (!condition()) {
    if (deadline.passed()) return false;
    const timespec pause{0, 1'000'000};
    ::nanosleep(&pause, nullptr);
  }
  return true;
}

std::string name_of(pid_t pid) {
  const auto name = kernel::read_file(fmt::format("/proc/{}/comm", pid), 64);
  return name.ok() ? *name : "";
}

// Until it has done what can be done ahead.
bool waits_for_a_role(const SpareMover& spare) {
  return comes_true(
      [&] { return spare.spare_pid() != 0 && name_of(spare.spare_pid()) == "godwit-spare\n"; });
}

// Of a process that is a child or was one; by state, since /proc shows a dead child too.
bool has_ended(pid_t pid) {
  const auto fd = kernel::pidfd_open(HostPid{pid});
  if (!fd.ok()) return true;
  pollfd polled{fd->get(), POLLIN, 0};
  return ::poll(&polled, 1, 0) == 1;
}

// Of no role: it says so, and that it is a mover that was asked.
testing::AssertionResult serves(MoverProcess& mover) {
  const auto answer = mover.receive(Deadline::in(kWait));
  if (!answer.ok()) return testing::AssertionFailure() << answer.status();
  if (answer->finished().error().find("role") == std::string::npos)
    return testing::AssertionFailure() << answer->DebugString();
  return testing::AssertionSuccess();
}

TEST(SpareMoverTest, OneThatWaitsIsTaken) {
  SpareMover spare(absl::ZeroDuration());
  EXPECT_EQ(spare.spare_pid(), 0);
  spare.keep_one();
  ASSERT_TRUE(waits_for_a_role(spare));
  const pid_t waiting = spare.spare_pid();
  const SpareMover::Pause pause(spare);
  const auto mover = spare.take_or_start({});
  ASSERT_TRUE(mover.ok()) << mover.status();
  EXPECT_EQ((*mover)->pid(), waiting);
  EXPECT_TRUE(serves(**mover));
}

TEST(SpareMoverTest, WithoutOneItIsStartedNow) {
  SpareMover spare(absl::ZeroDuration());
  const auto mover = spare.take_or_start({});
  ASSERT_TRUE(mover.ok()) << mover.status();
  EXPECT_TRUE(serves(**mover));
}

TEST(SpareMoverTest, ADeadOneIsReplacedUnnoticed) {
  SpareMover spare(absl::ZeroDuration());
  spare.keep_one();
  ASSERT_TRUE(waits_for_a_role(spare));
  const pid_t dead = spare.spare_pid();
  ::kill(dead, SIGKILL);
  ASSERT_TRUE(comes_true([&] { return has_ended(dead); }));
  const SpareMover::Pause pause(spare);
  const auto mover = spare.take_or_start({});
  ASSERT_TRUE(mover.ok()) << mover.status();
  EXPECT_NE((*mover)->pid(), dead);
  EXPECT_TRUE(serves(**mover));
  EXPECT_EQ(::kill(dead, 0), -1) << "not reaped";
}

TEST(SpareMoverTest, AtTheSameTimeEachGetsAnother) {
  SpareMover spare(absl::ZeroDuration());
  spare.keep_one();
  ASSERT_TRUE(waits_for_a_role(spare));
  std::vector<absl::StatusOr<std::unique_ptr<MoverProcess>>> taken(4);
  const SpareMover::Pause pause(spare);
  {
    std::vector<std::thread> takers;
    for (auto& each : taken) takers.emplace_back([&] { each = spare.take_or_start({}); });
    for (std::thread& each : takers) each.join();
  }
  std::set<pid_t> pids;
  for (auto& each : taken) {
    ASSERT_TRUE(each.ok()) << each.status();
    EXPECT_TRUE(serves(**each));
    pids.insert((*each)->pid());
  }
  EXPECT_EQ(pids.size(), taken.size());
}

TEST(SpareMoverTest, TheNextComesOnlyAfterTheLastPause) {
  SpareMover spare(absl::ZeroDuration());
  SpareMover::Pause first(spare), second(spare);
  spare.keep_one();
  first.end();
  // Long enough for one to be started, were there no second.
  const timespec time{0, 50'000'000};
  ::nanosleep(&time, nullptr);
  EXPECT_EQ(spare.spare_pid(), 0);
  SpareMover::Pause moved = std::move(second);
  second.end();
  ::nanosleep(&time, nullptr);
  EXPECT_EQ(spare.spare_pid(), 0);
  moved.end();
  EXPECT_TRUE(comes_true([&] { return spare.spare_pid() != 0; }));
}

TEST(SpareMoverTest, EndsWithItsOwner) {
  pid_t waiting = 0;
  {
    SpareMover spare(absl::ZeroDuration());
    spare.keep_one();
    ASSERT_TRUE(waits_for_a_role(spare));
    waiting = spare.spare_pid();
  }
  EXPECT_EQ(::kill(waiting, 0), -1);
  EXPECT_EQ(errno, ESRCH);
}

// Keeps one, says which, and waits to be killed.
int be_an_owner() {
  SpareMover spare(absl::ZeroDuration());
  spare.keep_one();
  if (!waits_for_a_role(spare)) return 1;
  std::printf("%d\n", spare.spare_pid());
  std::fflush(stdout);
  for (;;) ::pause();
}

TEST(SpareMoverTest, EndsQuietlyWhenItsDaemonIsKilled) {
  // So that its exit code can be seen.
  ASSERT_EQ(::prctl(PR_SET_CHILD_SUBREAPER, 1), 0);
  int said[2];
  ASSERT_EQ(::pipe2(said, O_CLOEXEC), 0);
  posix_spawn_file_actions_t actions;
  ::posix_spawn_file_actions_init(&actions);
  ::posix_spawn_file_actions_adddup2(&actions, said[1], STDOUT_FILENO);
  ::posix_spawn_file_actions_adddup2(&actions, said[1], STDERR_FILENO);
  char name[] = "node_test", part[sizeof kOwnerPart];
  std::copy_n(kOwnerPart, sizeof kOwnerPart, part);
  char* argv[] = {name, part, nullptr};
  pid_t owner = 0;
  ASSERT_EQ(::posix_spawn(&owner, "/proc/self/exe", &actions, nullptr, argv, ::environ), 0);
  ::posix_spawn_file_actions_destroy(&actions);
  ::close(said[1]);
  FILE* output = ::fdopen(said[0], "r");
  pid_t waiting = 0;
  ASSERT_EQ(std::fscanf(output, "%d", &waiting), 1);
  EXPECT_EQ(std::fgetc(output), '\n');
  ::kill(owner, SIGKILL);
  int end = 0;
  ASSERT_EQ(::waitpid(owner, &end, 0), owner);
  ASSERT_TRUE(comes_true([&] { return ::waitpid(waiting, &end, WNOHANG) == waiting; }));
  EXPECT_TRUE(WIFEXITED(end) && WEXITSTATUS(end) == 0) << end;
  EXPECT_EQ(std::fgetc(output), EOF) << "it said something";
  std::fclose(output);
  ::prctl(PR_SET_CHILD_SUBREAPER, 0);
}

}  // namespace
}  // namespace godwit::node

int main(int argc, char** argv) {
  const std::string_view part = argc > 1 ? argv[1] : "";
  if (part == "mover") return godwit::node::mover_main(argc, argv);
  if (part == godwit::node::kOwnerPart) return godwit::node::be_an_owner();
  ::testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
