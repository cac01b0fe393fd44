#include "resource/seccomp/seccomp.h"

#include <gtest/gtest.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include <array>
#include <atomic>
#include <memory>
#include <thread>

#include "kernel/proc/status.h"
#include "kernel/syscalls.h"
#include "resource/seccomp/seccomp.pb.h"
#include "resource/testing_tasks.h"
#include "tracee/freeze.h"

namespace godwit::resource {
namespace {

using testing::StoppedChild;

void must(bool ok) {
  if (!ok) ::_exit(110);
}

// Call `number` gives `action`, the others are let through.
void set_filter(long number, uint32_t action, unsigned long flags = 0) {
  std::array<sock_filter, 4> code{{
      {BPF_LD | BPF_W | BPF_ABS, 0, 0, offsetof(seccomp_data, nr)},
      {BPF_JMP | BPF_JEQ | BPF_K, 0, 1, static_cast<uint32_t>(number)},
      {BPF_RET | BPF_K, 0, 0, action},
      {BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ALLOW},
  }};
  const sock_fprog program{.len = code.size(), .filter = code.data()};
  must(::syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &program) == 0);
}

uint32_t error_of(int number) { return SECCOMP_RET_ERRNO | static_cast<uint32_t>(number); }

// Calls that captures and restores make end the program; getppid tells which filter came last.
void be_filtered() {
  set_filter(SYS_prctl, SECCOMP_RET_KILL_PROCESS, SECCOMP_FILTER_FLAG_LOG);
  set_filter(SYS_sched_getattr, SECCOMP_RET_KILL_PROCESS);
  set_filter(SYS_getppid, error_of(EXDEV));
}

int check_filtered() {
  if (::syscall(SYS_getppid) != -1 || errno != EXDEV) return 1;
  ::prctl(PR_GET_DUMPABLE);
  return 2;
}

void be_strict() { must(::prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT) == 0); }

std::string refusal_of(StoppedChild& child) {
  std::vector<Refusal> refusals;
  child.let_go();
  EXPECT_TRUE(seccomp_resource().precheck(child.view(), refusals).ok());
  child.stop();
  if (refusals.empty()) return {};
  EXPECT_NE(refusals[0].way_out, "");
  return refusals[0].code;
}

TEST(SeccompTest, WithoutItThereIsNothing) {
  StoppedChild child;
  EXPECT_EQ(refusal_of(child), "");
  const absl::StatusOr<std::string> state = child.capture(seccomp_resource());
  ASSERT_TRUE(state.ok()) << state.status();
  EXPECT_EQ(*state, "");
  EXPECT_TRUE(child.restore(seccomp_resource(), "").ok());
}

TEST(SeccompTest, FiltersGoAlongInTheirOrder) {
  StoppedChild source(be_filtered);
  EXPECT_EQ(refusal_of(source), "");
  const absl::StatusOr<std::string> state = source.capture(seccomp_resource());
  ASSERT_TRUE(state.ok()) << state.status();
  SeccompState parsed;
  ASSERT_TRUE(parsed.ParseFromString(*state));
  ASSERT_EQ(parsed.filters_size(), 3);
  EXPECT_EQ(parsed.common(), 3U);
  EXPECT_TRUE(parsed.filters(0).log());
  EXPECT_FALSE(parsed.filters(1).log());

  StoppedChild husk({}, check_filtered);
  const absl::Status restored = husk.restore(seccomp_resource(), *state);
  ASSERT_TRUE(restored.ok()) << restored;
  // Others' calls go past what is restored.
  const absl::StatusOr<std::string> again = husk.capture(seccomp_resource());
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(*again, *state);
  EXPECT_EQ(kernel::read_task_status({husk.pid()})->no_new_privs, false);
  EXPECT_EQ(husk.finish(), -SIGSYS);
}

TEST(SeccompTest, TheSourceIsUnharmed) {
  StoppedChild source([] { set_filter(SYS_prctl, SECCOMP_RET_KILL_PROCESS); });
  EXPECT_TRUE(source.capture(seccomp_resource()).ok());
  EXPECT_EQ(source.finish(), 0);
}

TEST(SeccompTest, StrictModeGoesAlong) {
  StoppedChild source(be_strict);
  EXPECT_EQ(refusal_of(source), "");
  const absl::StatusOr<std::string> state = source.capture(seccomp_resource());
  ASSERT_TRUE(state.ok()) << state.status();
  StoppedChild husk({}, [] { return ::getppid() > 0 ? 1 : 2; });
  ASSERT_TRUE(husk.restore(seccomp_resource(), *state).ok());
  EXPECT_EQ(husk.capture(seccomp_resource()).value_or("none"), *state);
  EXPECT_EQ(husk.finish(), -SIGKILL);
}

TEST(SeccompTest, WhatMayAskOthersIsRefused) {
  StoppedChild asks([] { set_filter(SYS_getppid, SECCOMP_RET_USER_NOTIF); });
  EXPECT_EQ(refusal_of(asks), "seccomp.notify");
  EXPECT_EQ(asks.capture(seccomp_resource()).status().code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(asks.finish(), 0);
  StoppedChild computes([] {
    std::array<sock_filter, 2> code{
        {{BPF_LD | BPF_IMM, 0, 0, SECCOMP_RET_ALLOW}, {BPF_RET | BPF_A, 0, 0, 0}}};
    const sock_fprog program{.len = code.size(), .filter = code.data()};
    must(::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0);
  });
  EXPECT_EQ(refusal_of(computes), "seccomp.notify");
}

// It never sees itself without its filter, however often it is stopped.
TEST(SeccompTest, ARunningProgramIsNeverWithoutItsFilters) {
  StoppedChild child([] {
    set_filter(SYS_getppid, error_of(EXDEV));
    if (::fork() != 0) return;
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    while (::syscall(SYS_getppid) == -1) {
    }
    ::kill(0, SIGKILL);
  });
  pid_t looping = 0;
  const std::string children =
      kernel::read_file(fmt::format("/proc/{0}/task/{0}/children", child.pid())).value();
  ASSERT_EQ(std::sscanf(children.c_str(), "%d", &looping), 1);
  for (int i = 0; i < 500; ++i) {
    absl::StatusOr<tracee::SeizedTask> seized = tracee::SeizedTask::seize({looping});
    ASSERT_TRUE(seized.ok()) << seized.status();
    ASSERT_TRUE(seized->interrupt().ok());
    absl::StatusOr<tracee::StoppedTask> task =
        std::move(*seized).wait_stopped(Deadline::in(absl::Seconds(20)));
    ASSERT_TRUE(task.ok()) << i << ": " << task.status();
    EXPECT_TRUE(task->seccomp_suspended());
    seized = std::move(*task).resume();
    ASSERT_TRUE(seized.ok()) << seized.status();
    ASSERT_TRUE(std::move(*seized).detach().ok());
  }
}

// A process of four threads, stopped.
class Threads {
 public:
  static constexpr size_t kCount = 4;
  explicit Threads(const std::function<void(size_t)>& body) {
    int ready[2];
    if (::pipe2(ready, O_CLOEXEC) != 0) std::abort();
    pid_ = ::fork();
    if (pid_ == 0) {
      body(0);
      for (size_t i = 1; i < kCount; ++i) {
        std::atomic<bool> done{false};
        std::thread([&body, &done, i] {
          body(i);
          done = true;
          for (;;) ::pause();
        }).detach();
        while (!done) ::sched_yield();
      }
      if (::write(ready[1], "r", 1) != 1) ::_exit(1);
      for (;;) ::pause();
    }
    ::close(ready[1]);
    char byte = 0;
    if (::read(ready[0], &byte, 1) != 1) std::abort();
    ::close(ready[0]);
    tree_ = tracee::stop_tree(
                [this]() -> absl::StatusOr<std::vector<HostPid>> {
                  return std::vector<HostPid>{{pid_}};
                },
                Deadline::in(absl::Seconds(20)))
                .value();
    area_.emplace(tracee::StubArea::map(tasks()[0], {pid_}, 1 << 18).value());
  }
  ~Threads() {
    tree_.processes.clear();
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
  }
  std::vector<tracee::StoppedTask>& tasks() { return tree_.processes.at(0).tasks; }
  TaskView view(size_t i) {
    TaskView view;
    view.tgid = {pid_};
    view.host_tgid = {pid_};
    view.tid = {tasks()[i].tid().value};
    view.host_tid = tasks()[i].tid();
    view.leader = i == 0;
    view.task = &tasks()[i];
    return view;
  }
  absl::Status run(size_t i, tracee::Batch& batch) {
    return area_->run(tasks()[i], view(i).tid, batch, Deadline::in(absl::Seconds(20)));
  }
  std::vector<std::string> capture() {
    std::vector<std::string> states;
    for (size_t i = 0; i < kCount; ++i) {
      tracee::Batch batch;
      const auto collect = seccomp_resource().capture(view(i), batch).value();
      EXPECT_TRUE(run(i, batch).ok());
      states.push_back(collect(batch).value());
    }
    return states;
  }
  void restore(const std::vector<std::string>& states) {
    ProcessNotes notes;
    for (size_t i = 0; i < kCount; ++i) {
      tracee::Batch batch;
      TaskView husk = view(i);
      husk.notes = &notes;
      const auto check = seccomp_resource().restore(states[i], husk, batch).value();
      if (!batch.empty()) {
        ASSERT_TRUE(run(i, batch).ok());
      }
      const absl::Status status = check ? check(batch) : absl::OkStatus();
      EXPECT_TRUE(status.ok()) << i << ": " << status;
    }
  }
  // What thread `i` gets of seccomp(2) with SECCOMP_FILTER_FLAG_TSYNC.
  int64_t set_for_all(size_t i) {
    tracee::Batch batch;
    const std::array<sock_filter, 1> code{{{BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ALLOW}}};
    const auto steps = batch.data(std::as_bytes(std::span(code)));
    const sock_fprog program{.len = code.size(), .filter = nullptr};
    const auto argument = batch.data(std::as_bytes(std::span(&program, 1)));
    batch.patch_pointer(argument, offsetof(sock_fprog, filter), steps);
    const size_t call =
        batch.call(SYS_seccomp, {SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, argument});
    EXPECT_TRUE(run(i, batch).ok());
    return batch.result(call);
  }

 private:
  pid_t pid_ = 0;
  tracee::FrozenTree tree_;
  std::optional<tracee::StubArea> area_;
};

TEST(SeccompTest, ThreadsShareWhatAllHave) {
  Threads source([](size_t i) {
    if (i == 0) be_filtered();
  });
  const std::vector<std::string> states = source.capture();
  SeccompState third;
  ASSERT_TRUE(third.ParseFromString(states[2]));
  EXPECT_EQ(third.of_leader(), 3U);
  EXPECT_EQ(third.filters_size(), 0);
  Threads husk([](size_t) {});
  husk.restore(states);
  EXPECT_EQ(husk.capture(), states);
  EXPECT_EQ(husk.set_for_all(2), 0);
}

// The second has one that its own children inherited, the first one that nobody did.
TEST(SeccompTest, ThreadsDiffer) {
  Threads source([](size_t i) {
    if (i == 0) set_filter(SYS_getppid, error_of(EXDEV));
    if (i == 1) set_filter(SYS_getpgrp, error_of(ENOLINK), SECCOMP_FILTER_FLAG_LOG);
  });
  // Set later: no other thread inherits it.
  {
    tracee::Batch batch;
    const std::array<sock_filter, 1> code{{{BPF_RET | BPF_K, 0, 0, error_of(EXDEV)}}};
    const auto steps = batch.data(std::as_bytes(std::span(code)));
    const sock_fprog program{.len = code.size(), .filter = nullptr};
    const auto argument = batch.data(std::as_bytes(std::span(&program, 1)));
    batch.patch_pointer(argument, offsetof(sock_fprog, filter), steps);
    batch.call(SYS_seccomp, {SECCOMP_SET_MODE_FILTER, 0, argument}, true);
    ASSERT_TRUE(source.run(0, batch).ok());
    ASSERT_TRUE(batch.check_all().ok());
  }
  const std::vector<std::string> states = source.capture();
  SeccompState first, second, third;
  ASSERT_TRUE(first.ParseFromString(states[0]) && second.ParseFromString(states[1]) &&
              third.ParseFromString(states[2]));
  EXPECT_EQ(first.common(), 1U);
  EXPECT_EQ(first.filters_size(), 2);
  EXPECT_EQ(second.of_leader(), 1U);
  EXPECT_EQ(second.filters_size(), 1);
  EXPECT_EQ(third.of_leader(), 1U);
  Threads husk([](size_t) {});
  husk.restore(states);
  EXPECT_EQ(husk.capture(), states);
  EXPECT_GT(husk.set_for_all(2), 0);
}

TEST(SeccompTest, DamagedStatesAreRefused) {
  StoppedChild husk;
  const auto wrong = [&](const std::function<void(SeccompState&)>& damage) {
    SeccompState state;
    state.set_mode(SECCOMP_MODE_FILTER);
    damage(state);
    tracee::Batch batch;
    return absl::IsDataLoss(
        seccomp_resource().restore(state.SerializeAsString(), husk.view(), batch).status());
  };
  EXPECT_TRUE(wrong([](SeccompState& s) { s.set_mode(7); }));
  EXPECT_TRUE(wrong([](SeccompState& s) { s.add_filters()->set_code("1234567"); }));
  EXPECT_TRUE(wrong([](SeccompState& s) { s.add_filters(); }));
  EXPECT_TRUE(
      wrong([](SeccompState& s) { s.add_filters()->set_code(std::string(8 * 4097, 'x')); }));
  EXPECT_TRUE(wrong([](SeccompState& s) { s.set_common(1); }));
  EXPECT_TRUE(wrong([](SeccompState& s) { s.set_of_leader(1); }));
  EXPECT_TRUE(wrong([](SeccompState& s) {
    for (int i = 0; i < 7000; ++i) s.add_filters()->set_code(std::string(8, '\0'));
  }));
  EXPECT_TRUE(wrong([](SeccompState& s) {
    s.set_mode(SECCOMP_MODE_STRICT);
    s.set_of_leader(1);
  }));
  // Of instructions that the kernel does not take.
  SeccompState state;
  state.set_mode(SECCOMP_MODE_FILTER);
  state.add_filters()->set_code(std::string(16, '\xff'));
  EXPECT_FALSE(husk.restore(seccomp_resource(), state.SerializeAsString()).ok());
  // A thread's, of filters that the first one does not have.
  TaskView other = husk.view();
  other.leader = false;
  state.Clear();
  state.set_mode(SECCOMP_MODE_FILTER);
  state.set_of_leader(1);
  tracee::Batch batch;
  ProcessNotes notes;
  other.notes = &notes;
  EXPECT_TRUE(absl::IsDataLoss(
      seccomp_resource().restore(state.SerializeAsString(), other, batch).status()));
}

}  // namespace
}  // namespace godwit::resource
