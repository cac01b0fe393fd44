#include "tracee/batch.h"

#include <gtest/gtest.h>
#include <immintrin.h>
#include <pthread.h>
#include <sys/syscall.h>
#include <sys/uio.h>

#include <cstring>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "base/status.h"
#include "tracee/child_for_test.h"
#include "tracee/memory.h"

namespace godwit::tracee {
namespace {

using testing::Child;
using testing::Shared;
using testing::soon;
using testing::stop_task;

struct KernelSigaction {
  uint64_t handler;
  uint64_t flags;
  uint64_t restorer;
  uint64_t mask;
  bool operator==(const KernelSigaction&) const = default;
};

// A child that counts in word 0 for ever; `before` runs first.
int count_for_ever(Shared& shared) {
  for (;;) shared.word[0].fetch_add(1);
}

// Runs a batch with two calls and looks at the results.
void expect_batch_works(StubArea& area, StoppedTask& task, ImagePid tid) {
  Batch batch;
  const size_t a = batch.call(SYS_getpid, {});
  const size_t b = batch.call(SYS_close, {-1});
  GW_ASSERT_OK(area.run(task, tid, batch, soon()));
  EXPECT_EQ(batch.result(a), tid.value);
  EXPECT_EQ(batch.result(b), -EBADF);
}

TEST(BatchTest, SixtyFourSigactionsAreWhatTheChildSet) {
  Child child([](Shared& shared) {
    for (int n = 1; n <= 64; ++n) {
      KernelSigaction action{
          .handler = 0x1000u + unsigned(n),
          .flags = SA_RESTART | 0x04000000u | (n % 2 ? unsigned(SA_NODEFER) : 0u),
          .restorer = 0x2000u + unsigned(n),
          .mask = uint64_t{1} << (n % 8)};
      ::syscall(SYS_rt_sigaction, n, &action, nullptr, 8);
    }
    return count_for_ever(shared);
  });
  ASSERT_TRUE(child.wait_word(0, 1));
  auto task = stop_task(child.pid());
  GW_ASSERT_OK(task.status());
  auto area = StubArea::map(*task, child.image_pid(), 16384);
  GW_ASSERT_OK(area.status());
  Batch batch;
  std::vector<Batch::Data> out;
  for (int n = 1; n <= 64; ++n) {
    out.push_back(batch.reserve(sizeof(KernelSigaction)));
    batch.call(SYS_rt_sigaction, {n, 0, out.back(), 8}, true);
  }
  // All of them have a handler: the mark goes by syscall stops.
  GW_ASSERT_OK(area->run(*task, child.image_pid(), batch, soon()));
  GW_ASSERT_OK(batch.check_all());
  for (int n = 1; n <= 64; ++n) {
    KernelSigaction got;
    std::memcpy(&got, batch.bytes(out[static_cast<size_t>(n - 1)]).data(), sizeof got);
    if (n == SIGKILL || n == SIGSTOP) {
      EXPECT_EQ(got, KernelSigaction{});
      continue;
    }
    EXPECT_EQ(got.handler, 0x1000u + unsigned(n));
    EXPECT_EQ(got.restorer, 0x2000u + unsigned(n));
    EXPECT_EQ(got.mask, (uint64_t{1} << (n % 8)) & ~(uint64_t{1} << 8));
    EXPECT_EQ(got.flags, SA_RESTART | 0x04000000u | (n % 2 ? unsigned(SA_NODEFER) : 0u));
  }
  GW_ASSERT_OK(area->unmap(*task));
}

TEST(BatchTest, ArgumentsPointersAndFailure) {
  Child child(count_for_ever);
  ASSERT_TRUE(child.wait_word(0, 1));
  auto task = stop_task(child.pid());
  GW_ASSERT_OK(task.status());
  auto area = StubArea::map(*task, child.image_pid(), 4096);
  GW_ASSERT_OK(area.status());

  Batch batch;
  constexpr std::string_view kText = "hello";
  const auto fds = batch.reserve(8);
  const size_t pipe = batch.call(SYS_pipe2, {fds, 0}, true);
  const auto text = batch.data(std::as_bytes(std::span(kText)));
  const auto vector = batch.reserve(sizeof(iovec));
  (void)pipe;
  const size_t event = batch.call(SYS_eventfd2, {7, 0}, true);
  const auto value = batch.reserve(8);
  const size_t read = batch.call(SYS_read, {Batch::ResultOf{event}, value, 8}, true);
  iovec io{.iov_base = nullptr, .iov_len = kText.size()};
  const auto vector2 = batch.data(std::as_bytes(std::span(&io, 1)));
  batch.patch_pointer(vector2, 0, text);
  const size_t memfd = batch.call(SYS_memfd_create, {text, 0}, true);
  const size_t write = batch.call(SYS_writev, {Batch::ResultOf{memfd}, vector2, 1}, true);
  const size_t bad = batch.call(SYS_close, {-1}, true);
  const size_t never = batch.call(SYS_getpid, {}, true);
  (void)vector;
  GW_ASSERT_OK(area->run(*task, child.image_pid(), batch, soon()));
  EXPECT_EQ(batch.result(read), 8);
  uint64_t got = 0;
  std::memcpy(&got, batch.bytes(value).data(), 8);
  EXPECT_EQ(got, 7u);
  EXPECT_EQ(batch.result(write), 5);
  EXPECT_EQ(batch.result(bad), -EBADF);
  EXPECT_EQ(batch.result(never), -ECANCELED);
  EXPECT_EQ(errno_of(batch.check_all()), EBADF);
  std::ifstream file("/proc/" + std::to_string(child.pid().value) + "/fd/" +
                     std::to_string(batch.result(memfd)));
  std::string content;
  file >> content;
  EXPECT_EQ(content, "hello");
  // A batch larger than the area makes it grow.
  Batch large;
  const auto big = large.reserve(200000);
  const size_t random = large.call(SYS_getrandom, {big, 200000, 0}, true);
  GW_ASSERT_OK(area->run(*task, child.image_pid(), large, soon()));
  EXPECT_EQ(large.result(random), 200000);
  GW_ASSERT_OK(area->unmap(*task));
  const uint64_t before = child.word(0).load();
  GW_ASSERT_OK(std::move(*task).detach());
  EXPECT_TRUE(child.wait_word(0, before + 1000));
}

TEST(BatchTest, HangingCallIsAbandonedAtTheDeadline) {
  Child child(count_for_ever);
  ASSERT_TRUE(child.wait_word(0, 1));
  auto task = stop_task(child.pid());
  GW_ASSERT_OK(task.status());
  auto area = StubArea::map(*task, child.image_pid(), 4096);
  GW_ASSERT_OK(area.status());
  Batch batch;
  batch.call(SYS_pause, {});
  const absl::Status status =
      area->run(*task, child.image_pid(), batch, Deadline::in(absl::Milliseconds(30)));
  EXPECT_TRUE(absl::IsDeadlineExceeded(status)) << status;
  EXPECT_EQ(task->signal_mask().value(), 0u);
  expect_batch_works(*area, *task, child.image_pid());
  const uint64_t before = child.word(0).load();
  GW_ASSERT_OK(std::move(*task).detach());
  EXPECT_TRUE(child.wait_word(0, before + 1000));
}

TEST(BatchTest, WrongTidIsNoticed) {
  Child child(count_for_ever);
  ASSERT_TRUE(child.wait_word(0, 1));
  auto task = stop_task(child.pid());
  GW_ASSERT_OK(task.status());
  auto area = StubArea::map(*task, child.image_pid(), 4096);
  GW_ASSERT_OK(area.status());
  Batch batch;
  batch.call(SYS_getpid, {});
  const absl::Status status =
      area->run(*task, ImagePid{1}, batch, Deadline::in(absl::Milliseconds(30)));
  EXPECT_EQ(status.code(), absl::StatusCode::kInternal) << status;
  const uint64_t before = child.word(0).load();
  GW_ASSERT_OK(std::move(*task).detach());
  EXPECT_TRUE(child.wait_word(0, before + 1000));
}

TEST(BatchTest, DeathOfTheTaskIsNotFound) {
  Child child(count_for_ever);
  ASSERT_TRUE(child.wait_word(0, 1));
  auto task = stop_task(child.pid());
  GW_ASSERT_OK(task.status());
  auto area = StubArea::map(*task, child.image_pid(), 4096);
  GW_ASSERT_OK(area.status());
  Batch batch;
  batch.call(SYS_exit_group, {3});
  const absl::Status status = area->run(*task, child.image_pid(), batch, soon());
  EXPECT_EQ(errno_of(status), ESRCH) << status;
}

// The end mark for each way a program may treat the signals that are ignored by default.
enum class Handling { kDefault, kHandlers, kBlocked, kPendingForTask, kPendingForProcess };

class MarkTest : public ::testing::TestWithParam<Handling> {};

std::atomic<int> handled{0};

TEST_P(MarkTest, ProgramSeesNothing) {
  const Handling how = GetParam();
  Child child([how](Shared& shared) {
    const std::vector<int> signals{SIGWINCH, SIGURG, SIGCHLD};
    sigset_t all;
    sigfillset(&all);
    if (how == Handling::kHandlers) {
      for (const int n : signals) ::signal(n, [](int) { handled++; });
    } else if (how != Handling::kDefault) {
      ::sigprocmask(SIG_SETMASK, &all, nullptr);
    }
    if (how == Handling::kPendingForTask) {
      for (const int n : signals) ::syscall(SYS_tgkill, ::getpid(), ::gettid(), n);
    }
    if (how == Handling::kPendingForProcess) {
      for (const int n : signals) ::kill(::getpid(), n);
    }
    sigset_t pending_before, mask_before;
    ::sigpending(&pending_before);
    ::sigprocmask(SIG_SETMASK, nullptr, &mask_before);
    shared.word[1] = 1;
    while (shared.word[2] == 0) shared.word[0].fetch_add(1);
    sigset_t pending, mask;
    ::sigpending(&pending);
    ::sigprocmask(SIG_SETMASK, nullptr, &mask);
    if (std::memcmp(&pending, &pending_before, 8) != 0) return 11;
    if (std::memcmp(&mask, &mask_before, 8) != 0) return 12;
    if (handled != 0) return 13;
    if (how == Handling::kPendingForTask || how == Handling::kPendingForProcess) {
      for (const int n : signals) {
        sigset_t one;
        sigemptyset(&one);
        sigaddset(&one, n);
        siginfo_t info;
        const timespec now{};
        if (::sigtimedwait(&one, &info, &now) != n) return 14;
        if (info.si_pid != ::getpid()) return 15;
        if (::sigtimedwait(&one, &info, &now) != -1) return 16;
      }
    }
    return 0;
  });
  ASSERT_TRUE(child.wait_word(1, 1));
  for (int round = 0; round < 20; ++round) {
    auto task = stop_task(child.pid());
    GW_ASSERT_OK(task.status());
    const auto before = task->registers();
    const uint64_t mask = task->signal_mask().value();
    auto area = StubArea::map(*task, child.image_pid(), 4096);
    GW_ASSERT_OK(area.status());
    expect_batch_works(*area, *task, child.image_pid());
    expect_batch_works(*area, *task, child.image_pid());
    EXPECT_EQ(task->signal_mask().value(), mask);
    GW_ASSERT_OK(area->unmap(*task));
    const auto after = task->registers();
    EXPECT_EQ(std::memcmp(&*before, &*after, sizeof *before), 0);
    GW_ASSERT_OK(std::move(*task).detach());
  }
  child.word(2) = 1;
  EXPECT_EQ(child.join(), 0);
}

INSTANTIATE_TEST_SUITE_P(All, MarkTest,
                         ::testing::Values(Handling::kDefault, Handling::kHandlers,
                                           Handling::kBlocked, Handling::kPendingForTask,
                                           Handling::kPendingForProcess));

TEST(BatchTest, ThirtyTwoThreadsAtOnce) {
  constexpr size_t kThreads = 32;
  Child child([](Shared& shared) {
    std::vector<std::thread> threads;
    for (size_t i = 0; i < kThreads; ++i) {
      threads.emplace_back([&shared, i] {
        shared.word[100 + i] = static_cast<uint64_t>(::gettid());
        while (shared.word[200] == 0) {
          shared.word[i].fetch_add(1);
          ::usleep(100);
        }
      });
    }
    for (auto& thread : threads) thread.join();
    return 0;
  });
  std::vector<StoppedTask> tasks;
  for (size_t i = 0; i < kThreads; ++i) {
    ASSERT_TRUE(child.wait_word(100 + i, 1));
    auto task = stop_task(HostPid{static_cast<pid_t>(child.word(100 + i).load())});
    GW_ASSERT_OK(task.status());
    tasks.push_back(*std::move(task));
  }
  auto area = StubArea::map(tasks.front(), child.image_pid(), 4096);
  GW_ASSERT_OK(area.status());
  for (int round = 0; round < 10; ++round) {
    std::vector<Batch> batches(kThreads);
    std::vector<StubArea::Run> runs;
    for (size_t i = 0; i < kThreads; ++i) {
      batches[i].call(SYS_gettid, {});
      for (int n = 0; n < 10; ++n) batches[i].call(SYS_getppid, {});
      runs.push_back({&tasks[i], ImagePid{tasks[i].tid().value}, &batches[i]});
    }
    GW_ASSERT_OK(area->run_all(runs, soon()));
    for (size_t i = 0; i < kThreads; ++i) {
      EXPECT_EQ(batches[i].result(0), tasks[i].tid().value);
      EXPECT_EQ(batches[i].result(10), ::getpid());
    }
  }
  GW_ASSERT_OK(area->unmap(tasks.front()));
  tasks.clear();
  child.word(200) = 1;
  EXPECT_EQ(child.join(), 0);
}

TEST(BatchTest, VectorRegistersAndFlagsSurvive) {
  Child child([](Shared& shared) {
    uint64_t round = 0;
    while (shared.word[1] == 0) {
      ++round;
      const uint64_t want = round * 0x9e3779b97f4a7c15;
      uint64_t low = 0, high = 0, flags = 0;
      // The value goes through xmm15, ymm-free machines included, over a loop long enough to be
      // stopped in; the carry flag is set in it all the time.
      asm volatile(
          "movq %[want], %%xmm15\n"
          "punpcklqdq %%xmm15, %%xmm15\n"
          "mov $2000, %%ecx\n"
          "stc\n"
          "1: pause\n"
          "dec %%ecx\n"
          "jnz 1b\n"
          "setc %b[flags]\n"
          "movq %%xmm15, %[low]\n"
          "psrldq $8, %%xmm15\n"
          "movq %%xmm15, %[high]\n"
          : [low] "=r"(low), [high] "=r"(high), [flags] "+r"(flags)
          : [want] "r"(want)
          : "ecx", "xmm15", "cc");
      if (low != want || high != want || (flags & 1) != 1) return 10;
      shared.word[0].fetch_add(1);
    }
    return 0;
  });
  ASSERT_TRUE(child.wait_word(0, 1));
  for (int round = 0; round < 200; ++round) {
    auto task = stop_task(child.pid());
    GW_ASSERT_OK(task.status());
    auto area = StubArea::map(*task, child.image_pid(), 4096);
    GW_ASSERT_OK(area.status());
    const auto before = task->xstate();
    expect_batch_works(*area, *task, child.image_pid());
    EXPECT_EQ(*before, *task->xstate());
    GW_ASSERT_OK(area->unmap(*task));
  }
  child.word(1) = 1;
  EXPECT_EQ(child.join(), 0);
}

TEST(BatchTest, StopSignalInABatchTakesEffectAfterIt) {
  Child child(count_for_ever);
  ASSERT_TRUE(child.wait_word(0, 1));
  auto task = stop_task(child.pid());
  GW_ASSERT_OK(task.status());
  auto area = StubArea::map(*task, child.image_pid(), 4096);
  GW_ASSERT_OK(area.status());
  ASSERT_EQ(::kill(child.pid().value, SIGSTOP), 0);
  expect_batch_works(*area, *task, child.image_pid());
  GW_ASSERT_OK(area->unmap(*task));
  GW_ASSERT_OK(std::move(*task).detach());
  EXPECT_TRUE(testing::wait_until([&] { return internal::task_state(child.pid()) == 'T'; }));
  // Stopped by the user is a state of the program: a second visit leaves it so.
  task = stop_task(child.pid());
  GW_ASSERT_OK(task.status());
  area = StubArea::map(*task, child.image_pid(), 4096);
  GW_ASSERT_OK(area.status());
  expect_batch_works(*area, *task, child.image_pid());
  GW_ASSERT_OK(area->unmap(*task));
  auto running = std::move(*task).resume();
  GW_ASSERT_OK(running.status());
  EXPECT_TRUE(testing::wait_until([&] { return internal::task_state(child.pid()) == 't'; }));
  GW_ASSERT_OK(std::move(*running).detach());
  EXPECT_TRUE(testing::wait_until([&] { return internal::task_state(child.pid()) == 'T'; }));
  const uint64_t before = child.word(0).load();
  ASSERT_EQ(::kill(child.pid().value, SIGCONT), 0);
  EXPECT_TRUE(child.wait_word(0, before + 1000));
}

// As in a husk: afterwards it goes on with registers and a mask that it is given.
TEST(BatchTest, AnAreaThatUnmapsItself) {
  Child child(count_for_ever);
  auto task = stop_task(child.pid());
  GW_ASSERT_OK(task.status());
  const auto registers = task->registers();
  const auto mask = task->signal_mask();
  GW_ASSERT_OK(registers.status());
  GW_ASSERT_OK(mask.status());
  auto area = StubArea::map(*task, child.image_pid(), 4096);
  GW_ASSERT_OK(area.status());
  const std::string at = fmt::format("{:x}-", area->address().value);
  const auto mapped = [&] {
    std::ifstream maps(fmt::format("/proc/{}/maps", child.pid().value));
    std::string line;
    while (std::getline(maps, line))
      if (line.starts_with(at)) return true;
    return false;
  };
  EXPECT_TRUE(mapped());
  GW_ASSERT_OK(area->start_unmap_below(*task));
  GW_ASSERT_OK(area->finish_unmap_below(*task, soon()));
  EXPECT_FALSE(mapped());
  GW_ASSERT_OK(task->set_registers(*registers));
  GW_ASSERT_OK(task->set_signal_mask(*mask));
  const uint64_t before = child.word(0);
  GW_ASSERT_OK(std::move(*task).detach());
  // It counts on: the fault was no signal to it.
  EXPECT_TRUE(child.wait_word(0, before + 1));
}

}  // namespace
}  // namespace godwit::tracee
