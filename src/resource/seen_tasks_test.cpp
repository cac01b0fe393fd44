#include "resource/seen_tasks.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <thread>

namespace godwit::resource {
namespace {

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
    while (!end) ::usleep(1000);
    timespec none{};
    ::sigtimedwait(&blocked, nullptr, &none);
  });
  while (tid == 0) ::usleep(1000);
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
      while (wanted <= number) ::usleep(500);
    };
    next(1);
    ::syscall(SYS_setresuid, -1, 65534, -1);  // of this thread alone: not glibc's
    next(2);
    ::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    next(3);
    ::prctl(PR_SET_TSC, PR_TSC_SIGSEGV, 0, 0, 0);
    next(4);
  });
  const auto read_at = [&](int number) {
    while (step < number) ::usleep(500);
    ::usleep(20000);  // asleep
    const auto all = (*tasks)->read({::getpid()});
    EXPECT_TRUE(all.ok()) << all.status();
    wanted = number + 1;
    return all.ok() ? all->at({tid}) : SeenTask{};
  };
  const SeenTask first = read_at(1), other_user = read_at(2), no_privileges = read_at(3),
                 no_rdtsc = read_at(4);
  thread.join();
  EXPECT_NE(first.cred, other_user.cred);
  EXPECT_EQ(other_user.cred, no_privileges.cred);
  EXPECT_NE(other_user.atomic_flags, no_privileges.atomic_flags);
  EXPECT_NE(no_privileges.thread_flags, no_rdtsc.thread_flags);
}

}  // namespace
}  // namespace godwit::resource
