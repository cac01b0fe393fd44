#include "resource/posix_timers/posix_timers.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <thread>

#include "resource/posix_timers/posix_timers.pb.h"
#include "resource/posix_timers/thread_clock.h"
#include "resource/testing_tasks.h"

namespace godwit::resource {
namespace {

using testing::StoppedChild;

int make(clockid_t clock, int notify, int signal, int value) {
  sigevent event{};
  event.sigev_notify = notify;
  event.sigev_signo = signal;
  event.sigev_value.sival_int = value;
  if (notify == SIGEV_THREAD_ID) event._sigev_un._tid = ::gettid();
  int id = -1;
  if (::syscall(SYS_timer_create, clock, &event, &id) != 0) ::_exit(110);
  return id;
}

void arm(int id, time_t value, time_t interval) {
  const itimerspec spec{.it_interval = {.tv_sec = interval, .tv_nsec = 9},
                        .it_value = {.tv_sec = value, .tv_nsec = 8}};
  if (::syscall(SYS_timer_settime, id, 0, &spec, nullptr) != 0) ::_exit(111);
}

// Ids 0, 2, 3, 5, 6: gaps too.
void make_some() {
  arm(make(CLOCK_MONOTONIC, SIGEV_SIGNAL, SIGRTMIN + 4, 71), 1000, 3);
  const int gap = make(CLOCK_MONOTONIC, SIGEV_SIGNAL, SIGALRM, 0);
  arm(make(CLOCK_REALTIME, SIGEV_NONE, 0, 0), 2000, 0);
  make(CLOCK_BOOTTIME, SIGEV_THREAD_ID, SIGRTMIN + 5, 72);  // disarmed
  const int second_gap = make(CLOCK_MONOTONIC, SIGEV_SIGNAL, SIGALRM, 0);
  arm(make(CLOCK_PROCESS_CPUTIME_ID, SIGEV_SIGNAL, SIGPROF, 73), 3000, 5);
  arm(make(CLOCK_THREAD_CPUTIME_ID, SIGEV_SIGNAL, SIGVTALRM, 74), 4000, 6);
  ::syscall(SYS_timer_delete, gap);
  ::syscall(SYS_timer_delete, second_gap);
}

PosixTimersState parsed(const std::string& bytes) {
  PosixTimersState state;
  EXPECT_TRUE(state.ParseFromString(bytes));
  return state;
}

// Time goes on between two looks: what is left is compared apart.
std::string without_remaining(PosixTimersState state) {
  for (PosixTimerState& timer : *state.mutable_timers()) timer.clear_remaining_ns();
  return state.SerializeAsString();
}

void round_trip(TimerIds ids) {
  StoppedChild source(make_some);
  const absl::StatusOr<std::string> captured = source.capture(posix_timers_resource());
  ASSERT_TRUE(captured.ok()) << captured.status();
  PosixTimersState state = parsed(*captured);
  ASSERT_EQ(state.timers_size(), 5);
  EXPECT_EQ(state.timers(1).id(), 2);
  EXPECT_EQ(state.timers(2).thread(), source.pid());
  EXPECT_EQ(state.timers(2).remaining_ns(), 0U);

  StoppedChild husk;
  EXPECT_EQ(husk.capture(posix_timers_resource()).value(), "");
  // There is no pid namespace here: the husk's thread has another number.
  state.mutable_timers(2)->set_thread(husk.pid());
  tracee::Batch batch;
  const absl::StatusOr<TaskResource::Check> check =
      restore_posix_timers(state.SerializeAsString(), husk.view(), ids, batch);
  ASSERT_TRUE(check.ok()) << check.status();
  ASSERT_TRUE(husk.run(batch).ok());
  const absl::Status restored = (*check)(batch);
  ASSERT_TRUE(restored.ok()) << restored;

  const PosixTimersState now = parsed(husk.capture(posix_timers_resource()).value());
  EXPECT_EQ(without_remaining(now), without_remaining(state));
  for (int i = 0; i < now.timers_size(); ++i) {
    const uint64_t was = state.timers(i).remaining_ns();
    EXPECT_LE(now.timers(i).remaining_ns(), was);
    if (was != 0) {
      EXPECT_GT(now.timers(i).remaining_ns(), was - 100'000'000'000U);
    }
  }
  EXPECT_EQ(husk.finish(), 0);
}

TEST(PosixTimersTest, EveryKindWithGivenIds) {
  if (::prctl(77 /* PR_TIMER_CREATE_RESTORE_IDS */, 2, 0, 0, 0) < 0)
    GTEST_SKIP() << "needs Linux 6.15";
  round_trip(TimerIds::kGiven);
}

TEST(PosixTimersTest, EveryKindWithCountedIds) { round_trip(TimerIds::kCounted); }

TEST(PosixTimersTest, OneThatIsDueFiresWithItsValue) {
  PosixTimersState state;
  PosixTimerState& timer = *state.add_timers();
  timer.set_id(3);
  timer.set_clock(CLOCK_MONOTONIC);
  timer.set_notify(SIGEV_SIGNAL);
  timer.set_signal(SIGRTMIN + 1);
  timer.set_value(0x123456789abcdef0);
  timer.set_remaining_ns(10'000'000);
  StoppedChild husk(
      [] {
        sigset_t set;
        sigfillset(&set);
        ::sigprocmask(SIG_BLOCK, &set, nullptr);
      },
      [] {
        sigset_t set;
        sigemptyset(&set);
        sigaddset(&set, SIGRTMIN + 1);
        siginfo_t info{};
        const timespec limit{.tv_sec = 20, .tv_nsec = 0};
        if (::sigtimedwait(&set, &info, &limit) != SIGRTMIN + 1) return 1;
        if (info.si_code != SI_TIMER || info.si_timerid != 3) return 2;
        return reinterpret_cast<uint64_t>(info.si_value.sival_ptr) == 0x123456789abcdef0 ? 0 : 3;
      });
  const absl::Status restored = husk.restore(posix_timers_resource(), state.SerializeAsString());
  ASSERT_TRUE(restored.ok()) << restored;
  EXPECT_EQ(husk.finish(), 0);
}

TEST(PosixTimersTest, AThreadsClockAmongSeveralThreadsIsRefused) {
  StoppedChild source([] {
    make(CLOCK_THREAD_CPUTIME_ID, SIGEV_SIGNAL, SIGVTALRM, 0);
    std::thread([] { ::pause(); }).detach();
  });
  std::vector<Refusal> refusals;
  ASSERT_TRUE(posix_timers_resource().precheck(source.view(), refusals).ok());
  ASSERT_EQ(refusals.size(), 1U);
  EXPECT_EQ(refusals[0].code, "posix_timers.thread_clock");
  EXPECT_EQ(source.capture(posix_timers_resource()).status().code(),
            absl::StatusCode::kFailedPrecondition);
}

TEST(PosixTimersTest, AProcessThatHasEndedIsNotTakenForAnotherKernel) {
  StoppedChild source;
  TaskView view = source.view();
  const pid_t ended = ::fork();
  if (ended == 0) ::_exit(0);
  ASSERT_EQ(::waitpid(ended, nullptr, 0), ended);
  view.host_tgid = HostPid{ended};
  std::vector<Refusal> refusals;
  const absl::Status checked = posix_timers_resource().precheck(view, refusals);
  EXPECT_EQ(errno_of(checked), ENOENT) << checked;
  EXPECT_TRUE(refusals.empty());
}

TEST(PosixTimersTest, NonsenseIsRefused) {
  StoppedChild husk;
  PosixTimersState state;
  state.add_timers()->set_id(4);
  state.add_timers()->set_id(4);
  EXPECT_EQ(husk.restore(posix_timers_resource(), state.SerializeAsString()).code(),
            absl::StatusCode::kDataLoss);
}

}  // namespace
}  // namespace godwit::resource
