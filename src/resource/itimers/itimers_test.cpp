#include "resource/itimers/itimers.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/time.h>

#include "resource/itimers/itimers.pb.h"
#include "resource/testing_tasks.h"

namespace godwit::resource {
namespace {

using testing::StoppedChild;

void arm(int which, time_t value, time_t interval) {
  itimerval timer{};
  timer.it_value.tv_sec = value;
  timer.it_value.tv_usec = 5;
  timer.it_interval.tv_sec = interval;
  timer.it_interval.tv_usec = 7;
  if (::setitimer(static_cast<__itimer_which>(which), &timer, nullptr) != 0) ::_exit(110);
}

TEST(ItimersTest, WhatIsLeftIsLeft) {
  StoppedChild source([] {
    arm(ITIMER_REAL, 1000, 11);
    arm(ITIMER_VIRTUAL, 2000, 12);
    arm(ITIMER_PROF, 3000, 13);
  });
  const absl::StatusOr<std::string> state = source.capture(itimers_resource());
  ASSERT_TRUE(state.ok()) << state.status();
  ItimersState before;
  ASSERT_TRUE(before.ParseFromString(*state));
  ASSERT_EQ(before.timers_size(), 3);

  StoppedChild husk;
  EXPECT_EQ(husk.capture(itimers_resource()).value(), "");
  ASSERT_TRUE(husk.restore(itimers_resource(), *state).ok());
  ItimersState after;
  ASSERT_TRUE(after.ParseFromString(husk.capture(itimers_resource()).value()));
  ASSERT_EQ(after.timers_size(), 3);
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(after.timers(i).interval_us(), uint64_t(11 + i) * 1'000'000 + 7);
    EXPECT_GT(before.timers(i).value_us(), uint64_t(1000 * (i + 1) - 100) * 1'000'000);
    EXPECT_GT(after.timers(i).value_us(), uint64_t(1000 * (i + 1) - 200) * 1'000'000);
    // CPU clocks give a tick more than is left.
    EXPECT_LE(after.timers(i).value_us(), before.timers(i).value_us() + 10'000);
  }
}

TEST(ItimersTest, OneThatIsDueFires) {
  ItimersState state;
  state.add_timers()->set_value_us(10'000);
  state.add_timers();
  state.add_timers();
  StoppedChild husk(
      [] {
        sigset_t set;
        sigfillset(&set);
        ::sigprocmask(SIG_BLOCK, &set, nullptr);
      },
      [] {
        sigset_t set;
        sigemptyset(&set);
        sigaddset(&set, SIGALRM);
        siginfo_t info{};
        const timespec limit{.tv_sec = 20, .tv_nsec = 0};
        return ::sigtimedwait(&set, &info, &limit) == SIGALRM && info.si_code == SI_KERNEL ? 0 : 1;
      });
  ASSERT_TRUE(husk.restore(itimers_resource(), state.SerializeAsString()).ok());
  EXPECT_EQ(husk.finish(), 0);
}

}  // namespace
}  // namespace godwit::resource
