#include "resource/seen_tasks.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <thread>

#include "base/clock.h"

namespace godwit::resource {
namespace {

// A thread that hangs ends the test.
template <typename Condition>
void wait_until(Condition condition) {
  const Deadline deadline = Deadline::in(absl::Seconds(20));
  while (!condition()) {
    if (deadline.passed()) std::abort();
    std::this_thread::yield();
  }
}

TEST(SeenTasksTest, ShowWhatSystemCallsSay) {
  const auto tasks = SeenTasks::open(64);
  if (!tasks.ok()) GTEST_SKIP() << "no views of tasks here: " << tasks.status();
  std::atomic<int> tid = 0;
  std::atomic<bool> end = false;
  uint64_t clear_child_tid = 0;
  char stack[1 << 14];
  std::thread thread([&] {
    ::prctl(PR_SET_NAME, "seen", 0, 0, 0);
    ::prctl(PR_SET_TIMERSLACK, 12345, 0, 0, 0);
    ::prctl(PR_SET_PDEATHSIG, SIGUSR2, 0, 0, 0);
    ::prctl(PR_GET_TID_ADDRESS, &clear_child_tid, 0, 0, 0);
    stack_t alternate{};
    alternate.ss_sp = stack;
    alternate.ss_size = sizeof stack;
    ::sigaltstack(&alternate, nullptr);
    sigset_t blocked;
    sigemptyset(&blocked);
    sigaddset(&blocked, SIGUSR1);
    ::pthread_sigmask(SIG_BLOCK, &blocked, nullptr);
    ::raise(SIGUSR1);
    tid = ::gettid();
    wait_until([&] { return end.load(); });
    timespec none{};
    ::sigtimedwait(&blocked, nullptr, &none);
  });
  wait_until([&] { return tid != 0; });
  const auto all = (*tasks)->read({::getpid()});
  ASSERT_TRUE(all.ok()) << all.status();
  ASSERT_EQ(all->size(), 2U);
  ASSERT_TRUE(all->contains({::getpid()}));
  const SeenTask& leader = all->at({::getpid()});
  ASSERT_TRUE(all->contains({tid}));
  const SeenTask& seen = all->at({tid});
  EXPECT_EQ(seen.cred, leader.cred);
  EXPECT_EQ(seen.personality, static_cast<uint32_t>(::personality(0xffffffff)));
  EXPECT_EQ(seen.timer_slack_ns, 12345U);
  EXPECT_EQ(leader.timer_slack_ns, static_cast<uint64_t>(::prctl(PR_GET_TIMERSLACK, 0, 0, 0, 0)));
  EXPECT_EQ(seen.pdeath_signal, static_cast<uint32_t>(SIGUSR2));
  EXPECT_EQ(seen.clear_child_tid, clear_child_tid);
  EXPECT_EQ(seen.sas_ss_sp, reinterpret_cast<uint64_t>(stack));
  EXPECT_EQ(seen.sas_ss_size, sizeof stack);
  EXPECT_EQ(seen.pending, uint64_t{1} << (SIGUSR1 - 1));
  EXPECT_EQ(leader.pending, 0U);
  EXPECT_EQ(seen.seccomp_mode, 0U);
  EXPECT_EQ(std::memcmp(seen.comm.data(), "seen", 5), 0);
  EXPECT_NE(seen.comm, leader.comm);
  end = true;
  thread.join();
  EXPECT_EQ((*SeenTasks::open(1))->read({::getpid()})->size(), 1U);
}

// What changes for one thread must not look as before: its own credentials, its no_new_privs, its
// mode of rdtsc.
TEST(SeenTasksTest, AThreadOfItsOwnIsToldApart) {
  const auto tasks = SeenTasks::open(64);
  if (!tasks.ok()) GTEST_SKIP() << "no views of tasks here: " << tasks.status();
  std::atomic<int> tid = 0, step = 0;
  std::atomic<int> wanted = 0;
  std::thread thread([&] {
    tid = ::gettid();
    const auto next = [&](int number) {
      step = number;
      // No clock: it is read by rdtsc.
      for (int now = wanted; now <= number; now = wanted) wanted.wait(now);
    };
    next(1);
    ::syscall(SYS_setresuid, -1, 65534, -1);  // of this thread alone: not glibc's
    next(2);
    ::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    next(3);
    ::prctl(PR_SET_TSC, PR_TSC_SIGSEGV, 0, 0, 0);
    next(4);
  });
  // Flags of the moment come and go: `all` has those of every look, `any` those of some.
  struct Looks {
    SeenTask task{};
    uint64_t all = ~uint64_t{0};
    uint64_t any = 0;
  };
  const auto read_at = [&](int number) {
    wait_until([&] { return step >= number; });
    Looks looks;
    for (int i = 0; i < 50; ++i) {
      const auto seen = (*tasks)->read({::getpid()});
      EXPECT_TRUE(seen.ok()) << seen.status();
      if (!seen.ok()) break;
      looks.task = seen->at({tid});
      looks.all &= looks.task.thread_flags;
      looks.any |= looks.task.thread_flags;
    }
    wanted = number + 1;
    wanted.notify_all();
    return looks;
  };
  const Looks first = read_at(1), other_user = read_at(2), no_privileges = read_at(3),
              no_rdtsc = read_at(4);
  thread.join();
  EXPECT_NE(first.task.cred, other_user.task.cred);
  EXPECT_EQ(other_user.task.cred, no_privileges.task.cred);
  EXPECT_EQ(first.task.atomic_flags, other_user.task.atomic_flags);
  EXPECT_NE(other_user.task.atomic_flags, no_privileges.task.atomic_flags);
  EXPECT_NE(no_rdtsc.all & ~no_privileges.any, 0U);
}

}  // namespace
}  // namespace godwit::resource
