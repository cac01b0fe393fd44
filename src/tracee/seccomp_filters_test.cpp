#include "tracee/seccomp_filters.h"

#include <gtest/gtest.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include <array>
#include <cstddef>

#include "tracee/child_for_test.h"

namespace godwit::tracee {
namespace {

using testing::Child;
using testing::Shared;
using testing::stop_task;

// Call `number` gives `action`, the others are let through.
bool set_filter(long number, uint32_t action, unsigned long flags = 0) {
  std::array<sock_filter, 4> code{{
      {BPF_LD | BPF_W | BPF_ABS, 0, 0, offsetof(seccomp_data, nr)},
      {BPF_JMP | BPF_JEQ | BPF_K, 0, 1, static_cast<uint32_t>(number)},
      {BPF_RET | BPF_K, 0, 0, action},
      {BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ALLOW},
  }};
  const sock_fprog filter{.len = code.size(), .filter = code.data()};
  return ::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
         ::syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &filter) == 0;
}

TEST(SeccompFiltersTest, OldestFirstWithTheirFlag) {
  Child child([](Shared& shared) {
    if (!set_filter(1000, SECCOMP_RET_LOG, SECCOMP_FILTER_FLAG_LOG) ||
        !set_filter(1001, SECCOMP_RET_TRAP))
      return 1;
    shared.word[0] = 1;
    for (;;) ::pause();
  });
  ASSERT_TRUE(child.wait_word(0, 1));
  const auto task = stop_task(child.pid());
  GW_ASSERT_OK(task.status());
  EXPECT_TRUE(task->seccomp_suspended());
  const auto filters = seccomp_filters(child.pid());
  GW_ASSERT_OK(filters.status());
  ASSERT_EQ(filters->size(), 2U);
  ASSERT_EQ((*filters)[0].code.size(), 4U);
  EXPECT_EQ((*filters)[0].code[1].k, 1000U);
  EXPECT_EQ((*filters)[0].code[2].k, SECCOMP_RET_LOG);
  EXPECT_TRUE((*filters)[0].log);
  EXPECT_EQ((*filters)[1].code[1].k, 1001U);
  EXPECT_FALSE((*filters)[1].log);
}

TEST(SeccompFiltersTest, NoneWithoutThem) {
  Child child([](Shared& shared) {
    for (;;) ++shared.word[0];
    return 0;
  });
  ASSERT_TRUE(child.wait_word(0, 1));
  const auto task = stop_task(child.pid());
  GW_ASSERT_OK(task.status());
  const auto filters = seccomp_filters(child.pid());
  GW_ASSERT_OK(filters.status());
  EXPECT_TRUE(filters->empty());
}

// After a stop the kernel would have it call restart_syscall(2).
TEST(SeccompFiltersTest, AStoppedWaitMakesNoCallThatTheFilterDoesNotKnow) {
  Child child([](Shared& shared) {
    if (!set_filter(SYS_restart_syscall, SECCOMP_RET_KILL_PROCESS)) return 1;
    while (shared.word[1] == 0) {
      timespec begin{}, end{};
      ::clock_gettime(CLOCK_MONOTONIC, &begin);
      shared.word[2] = 1;  // about to wait
      if (::poll(nullptr, 0, 20) != 0) return 2;
      ::clock_gettime(CLOCK_MONOTONIC, &end);
      if ((end.tv_sec - begin.tv_sec) * 1'000'000'000 + end.tv_nsec - begin.tv_nsec < 19'000'000)
        return 3;
      ++shared.word[0];
    }
    return 0;
  });
  for (int i = 0; i < 40; ++i) {
    child.word(2) = 0;
    ASSERT_TRUE(child.wait_word(2, 1)) << child.join();
    ::usleep(2000);
    for (int twice = 0; twice < 2; ++twice) {
      auto task = stop_task(child.pid());
      ASSERT_TRUE(task.ok()) << message_of(task.status()) << ", end " << child.join();
      GW_ASSERT_OK(std::move(*task).detach());
    }
  }
  child.word(1) = 1;
  EXPECT_EQ(child.join(), 0);
}

}  // namespace
}  // namespace godwit::tracee
