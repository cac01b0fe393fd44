#include "resource/timerfd/timerfd.h"

#include <gtest/gtest.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "base/clock.h"
#include "kernel/abi/timerfd.h"
#include "resource/testing_contexts.h"
#include "resource/timerfd/timerfd.pb.h"
#include "resource/timerfd/timerfd_internal.h"

namespace godwit::resource {
namespace {

using testing::FakeCaptureContext;
using testing::FakeRestoreContext;
using testing::open_file;

TimerfdState captured(int fd) {
  TimerfdState state;
  const auto bytes = timerfd_kind().capture(open_file(fd), FakeCaptureContext());
  EXPECT_TRUE(bytes.ok()) << bytes.status();
  EXPECT_TRUE(state.ParseFromString(bytes.value_or("")));
  return state;
}

UniqueFd created(const TimerfdState& state) {
  FakeRestoreContext destination;
  auto fd = timerfd_kind().create(1, state.SerializeAsString(), destination);
  EXPECT_TRUE(fd.ok()) << fd.status();
  return fd.ok() ? *std::move(fd) : UniqueFd();
}

void set_ticks(int fd, uint64_t ticks) {
  ASSERT_EQ(::ioctl(fd, kernel::abi::kTfdIocSetTicks, &ticks), 0);
}

// All fields but the expiry, which is read off clocks at two moments: never more than a second
// apart here, and the timers run for hours.
void expect_same(const TimerfdState& a, const TimerfdState& b) {
  EXPECT_EQ(a.clock(), b.clock());
  EXPECT_EQ(a.flags(), b.flags());
  EXPECT_EQ(a.settime_flags(), b.settime_flags());
  EXPECT_EQ(a.armed(), b.armed());
  EXPECT_LT(std::abs(a.expiry_ns() - b.expiry_ns()), 1'000'000'000);
  EXPECT_EQ(a.interval_ns(), b.interval_ns());
  EXPECT_EQ(a.ticks(), b.ticks());
}

TEST(Timerfd, EveryClockAndFlagRoundTrips) {
  for (const clockid_t clock : {CLOCK_REALTIME, CLOCK_MONOTONIC, CLOCK_BOOTTIME,
                                CLOCK_REALTIME_ALARM, CLOCK_BOOTTIME_ALARM}) {
    for (const int flags :
         {0, int{TFD_TIMER_ABSTIME}, TFD_TIMER_ABSTIME | TFD_TIMER_CANCEL_ON_SET}) {
      const UniqueFd fd(::timerfd_create(clock, TFD_CLOEXEC | TFD_NONBLOCK));
      ASSERT_TRUE(fd) << clock;
      itimerspec value{{7, 13}, {3600, 5}};
      if ((flags & TFD_TIMER_ABSTIME) != 0)
        value.it_value.tv_sec += clock_ns(timerfd_base_clock(clock, true)) / 1'000'000'000;
      ASSERT_EQ(::timerfd_settime(fd.get(), flags, &value, nullptr), 0);
      set_ticks(fd.get(), 9);
      const TimerfdState state = captured(fd.get());
      EXPECT_EQ(state.clock(), clock);
      EXPECT_EQ(state.ticks(), 9U);
      EXPECT_EQ(state.interval_ns(), 7'000'000'013);
      EXPECT_TRUE(state.armed());
      const UniqueFd copy = created(state);
      expect_same(captured(copy.get()), state);
      uint64_t ticks = 0;
      ASSERT_EQ(::read(copy.get(), &ticks, sizeof ticks), 8);
      EXPECT_EQ(ticks, 9U);
      itimerspec left{};
      ASSERT_EQ(::timerfd_gettime(copy.get(), &left), 0);
      EXPECT_GT(left.it_value.tv_sec, 3500);
      EXPECT_LE(left.it_value.tv_sec, 3601);
    }
  }
}

TEST(Timerfd, AnAbsoluteExpiryIsKeptToTheNanosecondOverManyMoves) {
  UniqueFd fd(::timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC));
  const int64_t expiry = clock_ns(CLOCK_MONOTONIC) + 500'000'000'000;
  const itimerspec value{{0, 0}, {expiry / 1'000'000'000, expiry % 1'000'000'000}};
  ASSERT_EQ(::timerfd_settime(fd.get(), TFD_TIMER_ABSTIME, &value, nullptr), 0);
  // What is left is read before the clock: the timer can come late by that, never early.
  const int64_t again = captured(fd.get()).expiry_ns();
  EXPECT_GE(again, expiry);
  EXPECT_LT(again - expiry, 100'000'000);
}

TEST(Timerfd, ATimerThatWasNeverSetOrHasFiredStaysSo) {
  const UniqueFd idle(::timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC));
  const TimerfdState state = captured(idle.get());
  EXPECT_FALSE(state.armed());
  expect_same(captured(created(state).get()), state);

  const UniqueFd fired(::timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK));
  const itimerspec soon{{0, 0}, {0, 1}};
  ASSERT_EQ(::timerfd_settime(fired.get(), 0, &soon, nullptr), 0);
  pollfd wait{fired.get(), POLLIN, 0};
  ASSERT_EQ(::poll(&wait, 1, 10'000), 1);
  const TimerfdState done = captured(fired.get());
  EXPECT_FALSE(done.armed());
  EXPECT_EQ(done.ticks(), 1U);
  const UniqueFd copy = created(done);
  expect_same(captured(copy.get()), done);
  uint64_t ticks = 0;
  EXPECT_EQ(::read(copy.get(), &ticks, sizeof ticks), 8);
  EXPECT_EQ(::read(copy.get(), &ticks, sizeof ticks), -1);
}

TEST(Timerfd, WhatCameDueOnTheWayIsCountedAndThePhaseKept) {
  for (const int flags : {0, int{TFD_TIMER_ABSTIME}}) {
    const int64_t interval = 1'000'000'000'000;
    TimerfdState state;
    state.set_clock(CLOCK_MONOTONIC);
    state.set_settime_flags(static_cast<uint32_t>(flags));
    state.set_armed(true);
    state.set_interval_ns(interval);
    state.set_ticks(2);
    // Due three times already; the next one lies half an interval ahead.
    const int64_t expiry = clock_ns(CLOCK_MONOTONIC) - interval * 5 / 2;
    state.set_expiry_ns(expiry);
    UniqueFd periodic = created(state);
    const TimerfdState now = captured(periodic.get());
    EXPECT_EQ(now.ticks(), 5U);
    EXPECT_LT(std::abs(now.expiry_ns() - (expiry + 3 * interval)), 1'000'000'000);

    state.set_interval_ns(0);
    state.set_ticks(0);
    const UniqueFd once = created(state);
    EXPECT_EQ(captured(once.get()).ticks(), 1U);
    EXPECT_FALSE(captured(once.get()).armed());
  }
}

TEST(Timerfd, APeriodicTimerThatNobodyReadsIsCapturedWithAllItsTicks) {
  const UniqueFd fd(::timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK));
  const itimerspec value{{0, 2'000'000}, {0, 1}};
  ASSERT_EQ(::timerfd_settime(fd.get(), 0, &value, nullptr), 0);
  const Deadline deadline = Deadline::in(absl::Seconds(30));
  uint64_t ticks = 0;
  while (ticks < 5 && !deadline.passed()) ticks = captured(fd.get()).ticks();
  EXPECT_GE(ticks, 5U);
}

TEST(Timerfd, UpdateChangesEverythingButTheClock) {
  FakeRestoreContext destination;
  TimerfdState a;
  a.set_clock(CLOCK_MONOTONIC);
  TimerfdState b = a;
  b.set_armed(true);
  b.set_expiry_ns(clock_ns(CLOCK_MONOTONIC) + 3'600'000'000'000);
  b.set_ticks(4);
  b.set_flags(O_RDWR | O_NONBLOCK);
  const UniqueFd fd = created(a);
  const auto changed =
      timerfd_kind().update(fd.get(), a.SerializeAsString(), b.SerializeAsString(), destination);
  ASSERT_TRUE(changed.ok()) << changed.status();
  EXPECT_TRUE(*changed);
  expect_same(captured(fd.get()), b);
  TimerfdState c = b;
  c.set_clock(CLOCK_REALTIME);
  EXPECT_FALSE(
      *timerfd_kind().update(fd.get(), b.SerializeAsString(), c.SerializeAsString(), destination));
  c.set_interval_ns(-1);
  EXPECT_FALSE(timerfd_kind().create(1, c.SerializeAsString(), destination).ok());
  c.set_clock(12345);
  c.set_interval_ns(0);
  EXPECT_FALSE(timerfd_kind().create(1, c.SerializeAsString(), destination).ok());
}

}  // namespace
}  // namespace godwit::resource
