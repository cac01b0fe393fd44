#include "resource/scheduling/scheduling.h"

#include <gtest/gtest.h>
#include <sched.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>

#include "kernel/syscalls.h"
#include "resource/scheduling/sched_attr.h"
#include "resource/scheduling/scheduling.pb.h"
#include "resource/testing_tasks.h"

namespace godwit::resource {
namespace {

using testing::StoppedChild;

constexpr uint64_t kResetOnFork = 1;
constexpr uint32_t kSchedBatch = 3;
constexpr int kIoClassShift = 13;

void must(bool ok) {
  if (!ok) ::_exit(110);
}

void set(const SchedAttr& attr) { must(::syscall(SYS_sched_setattr, 0, &attr, 0) == 0); }

void pin_to_first_cpu() {
  cpu_set_t cpus;
  CPU_ZERO(&cpus);
  CPU_SET(0, &cpus);
  must(::sched_setaffinity(0, sizeof cpus, &cpus) == 0);
}

SchedulingState parsed(const std::string& bytes) {
  SchedulingState state;
  EXPECT_TRUE(state.ParseFromString(bytes));
  return state;
}

void round_trip(StoppedChild& source, SchedulingState& state) {
  const absl::StatusOr<std::string> captured = source.capture(scheduling_resource());
  ASSERT_TRUE(captured.ok()) << captured.status();
  StoppedChild husk;
  ASSERT_NE(husk.capture(scheduling_resource()).value(), *captured);
  const absl::Status restored = husk.restore(scheduling_resource(), *captured);
  ASSERT_TRUE(restored.ok()) << restored;
  EXPECT_EQ(husk.capture(scheduling_resource()).value(), *captured);
  EXPECT_EQ(husk.finish(), 0);
  state = parsed(*captured);
}

TEST(SchedulingTest, RealTimePinnedWithIoPriority) {
  StoppedChild source([] {
    pin_to_first_cpu();
    must(::syscall(SYS_ioprio_set, kIoprioWhoProcess, 0, 2 << kIoClassShift | 6) == 0);
    set({.size = sizeof(SchedAttr),
         .policy = kSchedRr,
         .flags = kResetOnFork,
         .nice = 0,
         .priority = 7,
         .runtime = 0,
         .deadline = 0,
         .period = 0,
         .util_min = 0,
         .util_max = 0});
  });
  SchedulingState state;
  ASSERT_NO_FATAL_FAILURE(round_trip(source, state));
  EXPECT_EQ(state.policy(), kSchedRr);
  EXPECT_EQ(state.priority(), 7U);
  EXPECT_EQ(state.flags(), kResetOnFork);
  EXPECT_EQ(state.affinity(), std::string("\x01"));
  EXPECT_EQ(state.io_priority(), uint32_t{2 << kIoClassShift | 6});
}

TEST(SchedulingTest, NiceBatchWithTimerSlack) {
  StoppedChild source([] {
    must(::prctl(PR_SET_TIMERSLACK, 123456) == 0);
    set({.size = sizeof(SchedAttr),
         .policy = kSchedBatch,
         .flags = 0,
         .nice = 5,
         .priority = 0,
         .runtime = 0,
         .deadline = 0,
         .period = 0,
         .util_min = 0,
         .util_max = 0});
  });
  SchedulingState state;
  ASSERT_NO_FATAL_FAILURE(round_trip(source, state));
  EXPECT_EQ(state.policy(), kSchedBatch);
  EXPECT_EQ(state.nice(), 5);
  EXPECT_EQ(state.timer_slack_ns(), 123456U);
}

TEST(SchedulingTest, Deadline) {
  StoppedChild source([] {
    set({.size = sizeof(SchedAttr),
         .policy = kSchedDeadline,
         .flags = kResetOnFork,
         .nice = 0,
         .priority = 0,
         .runtime = 1'000'000,
         .deadline = 40'000'000,
         .period = 50'000'000,
         .util_min = 0,
         .util_max = 0});
  });
  SchedulingState state;
  ASSERT_NO_FATAL_FAILURE(round_trip(source, state));
  EXPECT_EQ(state.runtime_ns(), 1'000'000U);
  EXPECT_EQ(state.deadline_ns(), 40'000'000U);
  EXPECT_EQ(state.period_ns(), 50'000'000U);
}

TEST(SchedulingTest, EveryCpuIsNotACertainNumberOfThem) {
  StoppedChild source;
  const std::string state = source.capture(scheduling_resource()).value();
  EXPECT_EQ(parsed(state).affinity(), "");
  EXPECT_EQ(parsed(state).runtime_ns(), 0U);  // the default slice
  StoppedChild husk(pin_to_first_cpu);
  ASSERT_NE(husk.capture(scheduling_resource()).value(), state);
  ASSERT_TRUE(husk.restore(scheduling_resource(), state).ok());
  EXPECT_EQ(husk.capture(scheduling_resource()).value(), state);
}

TEST(SchedulingTest, TheSameWhileItRuns) {
  StoppedChild source([] { must(::prctl(PR_SET_TIMERSLACK, 777) == 0); });
  const std::string state = source.capture(scheduling_resource()).value();
  TaskView view = source.view();
  view.task = nullptr;
  tracee::Batch batch;
  const absl::StatusOr<TaskResource::Collect> collect = scheduling_resource().capture(view, batch);
  ASSERT_TRUE(collect.ok()) << collect.status();
  EXPECT_TRUE(batch.empty());
  EXPECT_EQ((*collect)(batch).value(), state);
}

TEST(OomScoreAdjTest, HigherThanOurs) {
  const auto set_own = [](int value) {
    must(kernel::write_file("/proc/self/oom_score_adj", std::to_string(value)).ok());
  };
  StoppedChild source([&] { set_own(567); });
  const absl::StatusOr<std::string> state = source.capture(oom_score_adj_resource());
  ASSERT_TRUE(state.ok()) << state.status();
  StoppedChild husk([&] { set_own(900); });
  ASSERT_TRUE(husk.restore(oom_score_adj_resource(), *state).ok());
  EXPECT_EQ(husk.capture(oom_score_adj_resource()).value(), *state);
}

TEST(OomScoreAdjTest, LowerThanOursNeedsAPrivilege) {
  OomScoreAdjState state;
  state.set_adjustment(-1000);
  StoppedChild husk;
  const absl::Status status = husk.restore(oom_score_adj_resource(), state.SerializeAsString());
  if (!status.ok()) {
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_NE(message_of(status).find("CAP_SYS_RESOURCE"), std::string_view::npos) << status;
  } else {
    EXPECT_EQ(husk.capture(oom_score_adj_resource()).value(), state.SerializeAsString());
  }
}

}  // namespace
}  // namespace godwit::resource
