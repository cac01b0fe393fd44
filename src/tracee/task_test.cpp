#include "tracee/task.h"

#include <gtest/gtest.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <array>
#include <cstring>
#include <fstream>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "tracee/batch.h"
#include "tracee/child_for_test.h"
#include "tracee/freeze.h"
#include "tracee/memory.h"
#include "tracee/remote_syscalls.h"

namespace godwit::tracee {
namespace {

using testing::Child;
using testing::Shared;
using testing::soon;
using testing::stop_task;
using testing::wait_until;

int count_for_ever(Shared& shared) {
  for (;;) shared.word[0].fetch_add(1);
}

TEST(TaskTest, RegistersMaskAndStateCanBeSet) {
  Child child(count_for_ever);
  ASSERT_TRUE(child.wait_word(0, 1));
  auto task = stop_task(child.pid());
  GW_ASSERT_OK(task.status());
  const uint64_t mask = (uint64_t{1} << (SIGUSR1 - 1)) | (uint64_t{1} << 40);
  GW_ASSERT_OK(task->set_signal_mask(mask));
  EXPECT_EQ(task->signal_mask().value(), mask);
  ::kill(child.pid().value, SIGUSR1);
  sigval value{};
  value.sival_int = 77;
  ::sigqueue(child.pid().value, 41, value);
  const auto pending = task->pending_signals(true);
  GW_ASSERT_OK(pending.status());
  ASSERT_EQ(pending->size(), 2u);
  EXPECT_EQ((*pending)[0].si_signo, SIGUSR1);
  EXPECT_EQ((*pending)[1].si_value.sival_int, 77);
  EXPECT_TRUE(task->pending_signals(false)->empty());
  auto state = task->xstate();
  GW_ASSERT_OK(state.status());
  (*state)[160] ^= std::byte{0x5a};  // the first byte of xmm0
  GW_ASSERT_OK(task->set_xstate(*state));
  EXPECT_EQ(*task->xstate(), *state);
  GW_ASSERT_OK(task->rseq().status());
}

TEST(TaskTest, StopsAndGoesOn) {
  Child child(count_for_ever);
  ASSERT_TRUE(child.wait_word(0, 1));
  auto task = stop_task(child.pid());
  GW_ASSERT_OK(task.status());
  const uint64_t at = child.word(0).load();
  ::usleep(2000);
  EXPECT_EQ(child.word(0).load(), at);
  auto running = std::move(*task).resume();
  GW_ASSERT_OK(running.status());
  EXPECT_TRUE(child.wait_word(0, at + 100));
  GW_ASSERT_OK(running->interrupt());
  task = std::move(*running).wait_stopped(soon());
  GW_ASSERT_OK(task.status());
  const uint64_t again = child.word(0).load();
  GW_ASSERT_OK(std::move(*task).detach());
  EXPECT_TRUE(child.wait_word(0, again + 100));
}

TEST(TaskTest, DeadTasksAreNotFound) {
  Child child([](Shared&) { return 0; });
  ASSERT_TRUE(wait_until([&] { return internal::task_state(child.pid()) == 'Z'; }));
  EXPECT_EQ(errno_of(SeizedTask::seize(child.pid()).status()), ESRCH);
  EXPECT_EQ(child.join(), 0);

  Child second(count_for_ever);
  auto task = stop_task(second.pid());
  GW_ASSERT_OK(task.status());
  ::kill(second.pid().value, SIGKILL);
  EXPECT_TRUE(wait_until([&] { return errno_of(task->registers().status()) == ESRCH; }));
  EXPECT_EQ(errno_of(std::move(*task).detach()), ESRCH);
}

TEST(MemoryTest, ReadsAndWrites) {
  static std::array<char, 16> text{"before"};
  Child child([](Shared& shared) {
    auto* page = static_cast<char*>(
        ::mmap(nullptr, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    std::strcpy(page, "closed");
    ::mprotect(page, 4096, PROT_NONE);
    ::munmap(page + 4096, 4096);
    shared.word[1] = reinterpret_cast<uint64_t>(page);
    while (shared.word[2] == 0) ::usleep(100);
    return std::strcmp(text.data(), "after") == 0 ? 0 : 1;
  });
  ASSERT_TRUE(child.wait_word(1, 1));
  const RemoteAddress there{reinterpret_cast<uint64_t>(text.data())};
  std::array<std::byte, 6> got;
  GW_ASSERT_OK(read_memory(child.pid(), there, got));
  EXPECT_EQ(std::memcmp(got.data(), "before", 6), 0);
  constexpr std::string_view kAfter("after\0", 6);
  GW_ASSERT_OK(write_memory(child.pid(), there, std::as_bytes(std::span(kAfter))));
  const RemoteAddress closed{child.word(1).load()};
  EXPECT_EQ(errno_of(read_memory(child.pid(), closed, got)), EFAULT);
  GW_ASSERT_OK(read_memory_forced(child.pid(), closed, got));
  EXPECT_EQ(std::memcmp(got.data(), "closed", 6), 0);
  GW_ASSERT_OK(write_memory_forced(child.pid(), closed, std::as_bytes(std::span(kAfter))));
  // A transfer that runs into a hole is an error, not a short count.
  std::vector<std::byte> long_one(8192);
  const absl::Status status = read_memory_forced(child.pid(), closed, long_one);
  EXPECT_FALSE(status.ok());
  EXPECT_NE(std::string(message_of(status)).find(fmt::format("{:#x}", closed.value + 4096)),
            std::string::npos)
      << message_of(status);
  child.word(2) = 1;
  EXPECT_EQ(child.join(), 0);
}

TEST(RemoteSyscallsTest, CallsAndErrors) {
  Child child(count_for_ever);
  ASSERT_TRUE(child.wait_word(0, 1));
  auto task = stop_task(child.pid());
  GW_ASSERT_OK(task.status());
  const auto instruction = find_vdso_syscall(child.pid());
  GW_ASSERT_OK(instruction.status());
  const auto before = task->registers();
  {
    RemoteSyscalls calls(*task, *instruction);
    EXPECT_EQ(calls.call(SYS_getpid, {}).value(), child.pid().value);
    EXPECT_EQ(calls.call(SYS_close, {1000, 0, 0, 0, 0, 0}).value(), -EBADF);
    EXPECT_EQ(errno_of(calls.must(SYS_close, {1000, 0, 0, 0, 0, 0}).status()), EBADF);
  }
  const auto after = task->registers();
  EXPECT_EQ(std::memcmp(&*before, &*after, sizeof *before), 0);
  EXPECT_EQ(task->signal_mask().value(), 0u);
  auto area = StubArea::map(*task, child.image_pid(), 4096);
  GW_ASSERT_OK(area.status());
  EXPECT_EQ(area->single_calls(*task).call(SYS_getpid, {}).value(), child.pid().value);
}

TEST(RemoteSyscallsTest, NewTasksAreOurs) {
  Child child(count_for_ever);
  ASSERT_TRUE(child.wait_word(0, 1));
  auto task = stop_task(child.pid());
  GW_ASSERT_OK(task.status());
  GW_ASSERT_OK(task->set_options(PTRACE_O_TRACEFORK | PTRACE_O_TRACECLONE | PTRACE_O_EXITKILL));
  auto area = StubArea::map(*task, child.image_pid(), 4096);
  GW_ASSERT_OK(area.status());
  HostPid first;
  {
    RemoteSyscalls calls = area->single_calls(*task);
    auto made = calls.call_making_task(SYS_fork, {}, soon());
    GW_ASSERT_OK(made.status());
    first = made->tid();
    EXPECT_EQ(made->registers()->rax, 0u);
    // The child's area is where its parent's is.
    StubArea copy = area->for_child(ImagePid{first.value});
    Batch batch;
    batch.call(SYS_getpid, {});
    GW_ASSERT_OK(copy.run(*made, ImagePid{first.value}, batch, soon()));
    EXPECT_EQ(batch.result(0), first.value);
    ::kill(first.value, SIGKILL);
  }
  Batch batch;
  const size_t fork = batch.call(SYS_fork, {});
  const size_t again = batch.call(SYS_fork, {});
  GW_ASSERT_OK(area->run(*task, child.image_pid(), batch, soon()));
  ASSERT_EQ(batch.new_tasks().size(), 2u);
  EXPECT_EQ(batch.new_tasks()[0].value, batch.result(fork));
  EXPECT_EQ(batch.new_tasks()[1].value, batch.result(again));
  for (const HostPid tid : batch.new_tasks()) {
    // Killed before it is let go: it would run the rest of the batch, and fork.
    const auto made = StoppedTask::adopt_new_child(tid, soon());
    GW_ASSERT_OK(made.status());
    ::kill(tid.value, SIGKILL);
  }
}

// Threads and processes that come and go all the time.
int restless(Shared& shared) {
  std::vector<std::thread> workers;
  for (int i = 0; i < 4; ++i) {
    workers.emplace_back([&shared] {
      for (;;) {
        std::thread([&shared] { shared.word[0].fetch_add(1); }).join();
      }
    });
  }
  for (auto& worker : workers) worker.join();
  return 0;
}

TEST(FreezeTest, StopsATreeThatMakesThreads) {
  Child child(restless);
  Child other(count_for_ever);
  ASSERT_TRUE(child.wait_word(0, 10));
  ASSERT_TRUE(other.wait_word(0, 10));
  for (int round = 0; round < 50; ++round) {
    auto tree = stop_tree(
        [&]() -> absl::StatusOr<std::vector<HostPid>> {
          return std::vector{child.pid(), other.pid()};
        },
        soon());
    GW_ASSERT_OK(tree.status());
    ASSERT_EQ(tree->processes.size(), 2u);
    EXPECT_GE(tree->processes[0].tasks.size(), 5u);
    EXPECT_EQ(tree->processes[0].tasks[0].tid(), child.pid());
    EXPECT_EQ(tree->processes[1].tasks.size(), 1u);
    const uint64_t at = child.word(0).load();
    ::usleep(1000);
    EXPECT_EQ(child.word(0).load(), at);
    release_tree(*std::move(tree));
    EXPECT_TRUE(child.wait_word(0, at + 3));
  }
}

// A stopped child neither starts a program nor ends, and its parent does not stop before.
TEST(FreezeTest, StopsAParentInVfork) {
  Child child([](Shared& shared) {
    for (;;) {
      shared.word[0].fetch_add(1);
      const pid_t pid = static_cast<pid_t>(::syscall(SYS_clone, CLONE_VFORK | SIGCHLD, 0, 0, 0, 0));
      if (pid == 0) {
        ::usleep(3000);
        ::execl("/bin/true", "true", nullptr);
        ::_exit(1);
      }
      ::waitpid(pid, nullptr, 0);
    }
    return 0;
  });
  ASSERT_TRUE(child.wait_word(0, 2));
  const auto members = [&]() -> absl::StatusOr<std::vector<HostPid>> {
    GW_ASSIGN_OR_RETURN(
        const std::string text,
        internal::read_proc_file(fmt::format("/proc/{0}/task/{0}/children", child.pid().value)));
    std::vector<HostPid> pids{child.pid()};
    std::istringstream numbers(text);
    for (HostPid each; numbers >> each.value;) pids.push_back(each);
    return pids;
  };
  for (int round = 0; round < 100; ++round) {
    const int64_t begin = monotonic_ns();
    auto tree = stop_tree(members, soon());
    GW_ASSERT_OK(tree.status());
    EXPECT_LT(monotonic_ns() - begin, 5'000'000'000);
    const uint64_t at = child.word(0).load();
    ::usleep(500);
    EXPECT_EQ(child.word(0).load(), at);
    release_tree(*std::move(tree));
    ASSERT_TRUE(child.wait_word(0, at + 1));
    ::usleep(static_cast<useconds_t>(round * 40));
  }
}

TEST(FreezeTest, SkipsALeaderThatHasEnded) {
  Child child([](Shared& shared) {
    std::thread([&shared] {
      for (;;) shared.word[0].fetch_add(1);
    }).detach();
    ::syscall(SYS_exit, 0);
    return 0;
  });
  ASSERT_TRUE(child.wait_word(0, 10));
  ASSERT_TRUE(wait_until([&] { return internal::task_state(child.pid()) == 'Z'; }));
  auto tree = stop_tree(
      [&]() -> absl::StatusOr<std::vector<HostPid>> { return std::vector{child.pid()}; }, soon());
  GW_ASSERT_OK(tree.status());
  ASSERT_EQ(tree->processes.size(), 1u);
  ASSERT_EQ(tree->processes[0].tasks.size(), 1u);
  EXPECT_NE(tree->processes[0].tasks[0].tid(), child.pid());
}

}  // namespace
}  // namespace godwit::tracee
