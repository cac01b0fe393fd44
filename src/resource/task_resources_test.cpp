// All task resources together: in one batch a task, in the order of the registry.
#include <grp.h>
#include <gtest/gtest.h>
#include <linux/futex.h>
#include <sched.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>

#include <array>
#include <thread>

#include "kernel/proc/status.h"
#include "resource/credentials/credentials.h"
#include "resource/credentials/credentials.pb.h"
#include "resource/identity/identity.h"
#include "resource/itimers/itimers.h"
#include "resource/itimers/itimers.pb.h"
#include "resource/posix_timers/posix_timers.h"
#include "resource/registers/registers.h"
#include "resource/rlimit/rlimit.h"
#include "resource/robust_futex/robust_futex.h"
#include "resource/rseq/rseq.h"
#include "resource/scheduling/scheduling.h"
#include "resource/seccomp/seccomp.h"
#include "resource/signals/signals.h"
#include "resource/testing_tasks.h"
#include "tracee/freeze.h"

namespace godwit::resource {
namespace {

using testing::StoppedChild;

const std::array kAll = {
    &seccomp_resource(),
    &signal_actions_resource(),
    &signal_stack_resource(),
    &oom_score_adj_resource(),
    &signal_flush_resource(),
    &itimers_resource(),
    &posix_timers_resource(),
    &process_pending_signals_resource(),
    &task_pending_signals_resource(),
    &rseq_resource(),
    &robust_futex_resource(),
    &rlimit_resource(),
    &process_identity_resource(),
    &credentials_resource(),
    &task_identity_resource(),
    &registers_resource(),
    &scheduling_resource(),
};

robust_list_head list;

void must(bool ok) {
  if (!ok) ::_exit(110);
}

void become_special() {
  sigset_t set;
  sigfillset(&set);
  sigdelset(&set, SIGUSR2);
  ::sigprocmask(SIG_SETMASK, &set, nullptr);
  ::signal(SIGUSR1, SIG_IGN);
  const stack_t stack{
      .ss_sp = reinterpret_cast<void*>(0x700000), .ss_flags = 0, .ss_size = 0x10000};
  must(::sigaltstack(&stack, nullptr) == 0);
  const itimerval timer{.it_interval = {1, 0}, .it_value = {5000, 0}};
  must(::setitimer(ITIMER_REAL, &timer, nullptr) == 0);
  sigevent event{};
  event.sigev_notify = SIGEV_SIGNAL;
  event.sigev_signo = SIGRTMIN;
  int id = 0;
  must(::syscall(SYS_timer_create, CLOCK_MONOTONIC, &event, &id) == 0);
  for (int i = 0; i < 20; ++i) must(::sigqueue(::getpid(), SIGRTMIN + 1, {.sival_int = i}) == 0);
  list.list.next = &list.list;
  must(::syscall(SYS_set_robust_list, &list, sizeof list) == 0);
  // No room for the signals above, nor for the descriptors there are.
  for (const __rlimit_resource limited : {RLIMIT_SIGPENDING, RLIMIT_NOFILE}) {
    const rlimit none{1, 1};
    must(::setrlimit(limited, &none) == 0);
  }
  ::umask(0007);
  must(::prctl(PR_SET_NAME, "special") == 0);
  must(::setgroups(0, nullptr) == 0 && ::setresgid(600, 600, 600) == 0 &&
       ::setresuid(600, 600, 600) == 0);
  must(::prctl(PR_SET_PDEATHSIG, SIGUSR2) == 0);
  must(::setpriority(PRIO_PROCESS, 0, 3) == 0);
}

// What runs on by itself between two captures.
std::string settled(const TaskResource& resource, std::string state) {
  if (&resource != &itimers_resource()) return state;
  ItimersState timers;
  EXPECT_TRUE(timers.ParseFromString(state));
  for (IntervalTimer& timer : *timers.mutable_timers()) timer.clear_value_us();
  return timers.SerializeAsString();
}

// Its own captures are of a husk that can no longer map a stub as root could: also a test of that.
TEST(TaskResourcesTest, AllInOneBatchInTheirOrder) {
  StoppedChild source(become_special);
  tracee::Batch asked;
  std::vector<TaskResource::Collect> collects;
  for (const TaskResource* resource : kAll) {
    absl::StatusOr<TaskResource::Collect> collect = resource->capture(source.view(), asked);
    ASSERT_TRUE(collect.ok()) << collect.status();
    collects.push_back(*std::move(collect));
  }
  ASSERT_TRUE(source.run(asked).ok());
  std::vector<std::string> states;
  for (const TaskResource::Collect& collect : collects) {
    absl::StatusOr<std::string> state = collect(asked);
    ASSERT_TRUE(state.ok()) << state.status();
    states.push_back(*std::move(state));
  }

  // As husks are: every signal blocked, and one left over from its making.
  StoppedChild husk([] {
    sigset_t set;
    sigfillset(&set);
    ::sigprocmask(SIG_SETMASK, &set, nullptr);
    ::kill(::getpid(), SIGCHLD);
    list.list.next = &list.list;
  });
  tracee::Batch batch;
  std::vector<TaskResource::Check> checks;
  for (size_t i = 0; i < kAll.size(); ++i) {
    if (kAll[i]->phase() == Phase::kLast) continue;
    absl::StatusOr<TaskResource::Check> check = kAll[i]->restore(states[i], husk.view(), batch);
    ASSERT_TRUE(check.ok()) << kAll[i]->name() << ": " << check.status();
    checks.push_back(*std::move(check));
  }
  ASSERT_TRUE(husk.run(batch).ok());
  for (const TaskResource::Check& check : checks) {
    const absl::Status status = check ? check(batch) : absl::OkStatus();
    EXPECT_TRUE(status.ok()) << status;
  }
  for (size_t i = 0; i < kAll.size(); ++i) {
    if (kAll[i]->phase() != Phase::kLast) continue;
    const absl::Status status = husk.restore(*kAll[i], states[i]);
    EXPECT_TRUE(status.ok()) << kAll[i]->name() << ": " << status;
  }
  for (size_t i = 0; i < kAll.size(); ++i) {
    const absl::StatusOr<std::string> again = husk.capture(*kAll[i]);
    ASSERT_TRUE(again.ok()) << kAll[i]->name() << ": " << again.status();
    EXPECT_EQ(settled(*kAll[i], *again), settled(*kAll[i], states[i])) << kAll[i]->name();
  }
}

// Every thread's change of users clears the memory's dumpable: whichever comes last sets it.
TEST(TaskResourcesTest, DumpableOutlivesTheCredentialsOfAllThreads) {
  const auto become = [] {
    must(::setgroups(0, nullptr) == 0 && ::setresgid(700, 700, 700) == 0 &&
         ::setresuid(700, 700, 700) == 0 && ::prctl(PR_SET_DUMPABLE, 1) == 0);
  };
  StoppedChild source(become);
  const std::string state = source.capture(credentials_resource()).value();

  constexpr int kThreads = 8;
  int ready[2];
  ASSERT_EQ(::pipe2(ready, O_CLOEXEC), 0);
  const pid_t pid = ::fork();
  if (pid == 0) {
    for (int i = 1; i < kThreads; ++i)
      std::thread([] {
        while (true) ::pause();
      }).detach();
    if (::write(ready[1], "r", 1) != 1) ::_exit(1);
    while (true) ::pause();
  }
  char byte = 0;
  ASSERT_EQ(::read(ready[0], &byte, 1), 1);
  ::close(ready[0]);
  ::close(ready[1]);
  {
    absl::StatusOr<tracee::FrozenTree> tree = tracee::stop_tree(
        [pid]() -> absl::StatusOr<std::vector<HostPid>> { return std::vector<HostPid>{{pid}}; },
        Deadline::in(absl::Seconds(20)));
    ASSERT_TRUE(tree.ok()) << tree.status();
    std::vector<tracee::StoppedTask>& tasks = tree->processes.at(0).tasks;
    ASSERT_EQ(tasks.size(), size_t{kThreads});
    absl::StatusOr<tracee::StubArea> area = tracee::StubArea::map(tasks[0], {pid}, 1 << 20);
    ASSERT_TRUE(area.ok()) << area.status();
    std::vector<tracee::Batch> batches(kThreads);
    std::vector<tracee::StubArea::Run> runs;
    std::vector<TaskResource::Check> checks;
    for (size_t i = 0; i < tasks.size(); ++i) {
      TaskView view;
      view.tgid = {pid};
      view.host_tgid = {pid};
      view.tid = {tasks[i].tid().value};
      view.host_tid = tasks[i].tid();
      view.leader = i == 0;
      view.task = &tasks[i];
      checks.push_back(credentials_resource().restore(state, view, batches[i]).value());
      runs.push_back({&tasks[i], view.tid, &batches[i]});
    }
    ASSERT_TRUE(area->run_all(runs, Deadline::in(absl::Seconds(20))).ok());
    for (size_t i = 0; i < checks.size(); ++i) EXPECT_TRUE(checks[i](batches[i]).ok());
    tracee::Batch after;
    const size_t dumpable = after.call(SYS_prctl, {PR_GET_DUMPABLE, 0, 0, 0, 0});
    ASSERT_TRUE(area->run(tasks[0], {pid}, after, Deadline::in(absl::Seconds(20))).ok());
    EXPECT_EQ(after.result(dumpable), 1);
    for (const tracee::StoppedTask& task : tasks)
      EXPECT_EQ(kernel::read_task_status(task.tid())->uid[1], 700U);
  }
  // Only now: threads that die while they are traced are zombies until the tracer waits for each.
  ::kill(pid, SIGKILL);
  ::waitpid(pid, nullptr, 0);
}

}  // namespace
}  // namespace godwit::resource
