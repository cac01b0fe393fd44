#include "resource/signals/signals.h"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/time.h>

#include "resource/signals/actions.h"
#include "resource/signals/signals.pb.h"
#include "resource/testing_tasks.h"

namespace godwit::resource {
namespace {

using testing::StoppedChild;

KernelSigaction action_for(int signal) {
  const auto n = static_cast<uint64_t>(signal);
  constexpr uint64_t kKernelRestorer = 0x04000000;  // SA_RESTORER
  uint64_t flags = kKernelRestorer | SA_RESTART;
  if (signal % 2 == 0) flags |= SA_SIGINFO | SA_ONSTACK;
  if (signal % 3 == 0) flags |= SA_NODEFER;
  if (signal % 5 == 0) flags |= static_cast<uint64_t>(SA_RESETHAND);
  const uint64_t never = bit_of(SIGKILL) | bit_of(SIGSTOP);
  return {.handler = signal % 7 == 0 ? 1 : 0x10000 + n,
          .flags = flags,
          .restorer = 0x20000 + n,
          .mask = (bit_of(signal) | 0x8000000000000001U) & ~never};
}

bool same(const KernelSigaction& a, const KernelSigaction& b) {
  return a.handler == b.handler && a.flags == b.flags && a.restorer == b.restorer &&
         a.mask == b.mask;
}

void block_all() {
  const uint64_t all = ~uint64_t{0};
  ::syscall(SYS_rt_sigprocmask, SIG_SETMASK, &all, nullptr, kKernelSigsetSize);
}

TEST(SignalActionsTest, EveryActionOfEverySignal) {
  StoppedChild source([] {
    for (int signal = 1; signal <= kSignals; ++signal) {
      const KernelSigaction action = action_for(signal);
      ::syscall(SYS_rt_sigaction, signal, &action, nullptr, kKernelSigsetSize);
    }
  });
  const absl::StatusOr<std::string> state = source.capture(signal_actions_resource());
  ASSERT_TRUE(state.ok()) << state.status();
  SignalActionsState parsed;
  ASSERT_TRUE(parsed.ParseFromString(*state));
  EXPECT_EQ(parsed.actions_size(), 62);

  StoppedChild husk({}, [] {
    for (int signal = 1; signal <= kSignals; ++signal) {
      if (!changeable(signal)) continue;
      KernelSigaction now{};
      ::syscall(SYS_rt_sigaction, signal, nullptr, &now, kKernelSigsetSize);
      if (!same(now, action_for(signal))) return signal;
    }
    return 0;
  });
  ASSERT_TRUE(husk.restore(signal_actions_resource(), *state).ok());
  EXPECT_EQ(husk.capture(signal_actions_resource()).value(), *state);
  EXPECT_EQ(husk.finish(), 0);
}

TEST(SignalActionsTest, AnEmptyStateTakesEarlierOnesBack) {
  StoppedChild husk([] {
    for (int signal = 1; signal <= kSignals; ++signal)
      if (changeable(signal)) ::signal(signal, SIG_DFL);
    ::signal(SIGUSR1, SIG_IGN);
  });
  EXPECT_NE(husk.capture(signal_actions_resource()).value(), "");
  ASSERT_TRUE(husk.restore(signal_actions_resource(), "").ok());
  EXPECT_EQ(husk.capture(signal_actions_resource()).value(), "");
}

TEST(SignalActionsTest, OnlyWhatDiffersFromWhatIsKnown) {
  const auto all_default_but = [](int ignored) {
    for (int signal = 1; signal <= kSignals; ++signal)
      if (changeable(signal)) ::signal(signal, signal == ignored ? SIG_IGN : SIG_DFL);
  };
  StoppedChild source([&] {
    all_default_but(SIGUSR1);
    const KernelSigaction action = action_for(SIGTERM);
    ::syscall(SYS_rt_sigaction, SIGTERM, &action, nullptr, kKernelSigsetSize);
  });
  const std::string state = source.capture(signal_actions_resource()).value();
  StoppedChild husk([&] { all_default_but(SIGUSR2); });
  const std::string known = husk.capture(signal_actions_resource()).value();
  size_t calls = 0;
  ASSERT_TRUE(husk.restore(signal_actions_resource(), state, known, &calls).ok());
  EXPECT_EQ(calls, 3U);  // SIGUSR1, SIGUSR2, SIGTERM
  EXPECT_EQ(husk.capture(signal_actions_resource()).value(), state);
}

TEST(SignalActionsTest, NonsenseIsRefused) {
  StoppedChild husk;
  SignalActionsState state;
  state.add_actions()->set_signal(SIGKILL);
  EXPECT_EQ(husk.restore(signal_actions_resource(), state.SerializeAsString()).code(),
            absl::StatusCode::kDataLoss);
  state.mutable_actions(0)->set_signal(65);
  EXPECT_EQ(husk.restore(signal_actions_resource(), state.SerializeAsString()).code(),
            absl::StatusCode::kDataLoss);
}

constexpr uint64_t kStackAddress = 0x12345000;
constexpr size_t kStackSize = 0x40000;
constexpr int kAutodisarm = static_cast<int>(1U << 31);  // SS_AUTODISARM

TEST(SignalStackTest, AddressSizeAndFlags) {
  StoppedChild source([] {
    const stack_t stack{.ss_sp = reinterpret_cast<void*>(kStackAddress),
                        .ss_flags = kAutodisarm,
                        .ss_size = kStackSize};
    if (::sigaltstack(&stack, nullptr) != 0) ::_exit(1);
  });
  const absl::StatusOr<std::string> state = source.capture(signal_stack_resource());
  ASSERT_TRUE(state.ok()) << state.status();
  StoppedChild husk({}, [] {
    stack_t now{};
    ::sigaltstack(nullptr, &now);
    return now.ss_sp == reinterpret_cast<void*>(kStackAddress) && now.ss_size == kStackSize &&
                   now.ss_flags == kAutodisarm
               ? 0
               : 1;
  });
  EXPECT_EQ(husk.capture(signal_stack_resource()).value(), "");
  ASSERT_TRUE(husk.restore(signal_stack_resource(), *state).ok());
  EXPECT_EQ(husk.capture(signal_stack_resource()).value(), *state);
  // Back to none, and again.
  ASSERT_TRUE(husk.restore(signal_stack_resource(), "").ok());
  EXPECT_EQ(husk.capture(signal_stack_resource()).value(), "");
  ASSERT_TRUE(husk.restore(signal_stack_resource(), *state).ok());
  EXPECT_EQ(husk.finish(), 0);
}

void send_value(bool to_process, int signal, int code, int value) {
  siginfo_t info{};
  info.si_signo = signal;
  info.si_code = code;
  info.si_pid = 4321;
  info.si_uid = 77;
  info.si_value.sival_int = value;
  if (to_process)
    ::syscall(SYS_rt_sigqueueinfo, ::getpid(), signal, &info);
  else
    ::syscall(SYS_rt_tgsigqueueinfo, ::getpid(), ::getpid(), signal, &info);
}

// The C library's sigtimedwait makes SI_USER of SI_TKILL.
long next(int signal, siginfo_t& info) {
  const uint64_t set = bit_of(signal);
  const timespec now{};
  return ::syscall(SYS_rt_sigtimedwait, &set, &info, &now, kKernelSigsetSize);
}

TEST(PendingSignalsTest, QueuesWithTheirValuesInOrder) {
  StoppedChild source([] {
    block_all();
    for (int i = 0; i < 3; ++i) send_value(true, SIGRTMIN + 1, SI_QUEUE, 100 + i);
    send_value(true, SIGCHLD, CLD_EXITED, 0);
    ::kill(::getpid(), SIGTERM);
    for (int i = 0; i < 2; ++i) send_value(false, SIGRTMIN + 2, SI_MESGQ, 200 + i);
    send_value(false, SIGSEGV, SI_KERNEL, 7);
    ::syscall(SYS_tgkill, ::getpid(), ::getpid(), SIGUSR1);
    itimerval timer{};
    timer.it_value.tv_usec = 1;
    ::setitimer(ITIMER_REAL, &timer, nullptr);
    sigset_t pending;
    do ::sigpending(&pending);
    while (sigismember(&pending, SIGALRM) == 0);
  });
  const absl::StatusOr<std::string> of_process = source.capture(process_pending_signals_resource());
  ASSERT_TRUE(of_process.ok()) << of_process.status();
  const absl::StatusOr<std::string> of_task = source.capture(task_pending_signals_resource());
  ASSERT_TRUE(of_task.ok()) << of_task.status();
  PendingSignalsState parsed;
  ASSERT_TRUE(parsed.ParseFromString(*of_process));
  EXPECT_EQ(parsed.infos_size(), 6);
  ASSERT_TRUE(parsed.ParseFromString(*of_task));
  EXPECT_EQ(parsed.infos_size(), 4);

  StoppedChild husk(
      [] {
        block_all();
        ::kill(::getpid(), SIGCHLD);  // what its making might leave
        send_value(true, SIGRTMIN + 1, SI_QUEUE, 1);
        send_value(false, SIGRTMIN + 2, SI_QUEUE, 2);
        send_value(false, SIGRTMIN + 2, SI_QUEUE, 3);
      },
      [] {
        siginfo_t info{};
        for (int i = 0; i < 3; ++i)
          if (next(SIGRTMIN + 1, info) != SIGRTMIN + 1 || info.si_value.sival_int != 100 + i ||
              info.si_code != SI_QUEUE || info.si_pid != 4321 || info.si_uid != 77)
            return 1;
        if (next(SIGRTMIN + 1, info) != -1) return 2;
        if (next(SIGCHLD, info) != SIGCHLD || info.si_code != CLD_EXITED) return 3;
        if (next(SIGTERM, info) != SIGTERM || info.si_code != SI_USER) return 4;
        if (next(SIGALRM, info) != SIGALRM || info.si_code != SI_KERNEL) return 5;
        for (int i = 0; i < 2; ++i)
          if (next(SIGRTMIN + 2, info) != SIGRTMIN + 2 || info.si_value.sival_int != 200 + i ||
              info.si_code != SI_MESGQ)
            return 6;
        if (next(SIGRTMIN + 2, info) != -1) return 7;
        if (next(SIGSEGV, info) != SIGSEGV || info.si_code != SI_KERNEL) return 8;
        if (next(SIGUSR1, info) != SIGUSR1 || info.si_code != SI_TKILL) return 9;
        return 0;
      });
  EXPECT_NE(husk.capture(process_pending_signals_resource()).value(), "");
  ASSERT_TRUE(
      husk.restore(signal_flush_resource(), source.capture(signal_flush_resource()).value()).ok());
  EXPECT_EQ(husk.capture(process_pending_signals_resource()).value(), "");
  EXPECT_EQ(husk.capture(task_pending_signals_resource()).value(), "");
  ASSERT_TRUE(husk.restore(process_pending_signals_resource(), *of_process).ok());
  ASSERT_TRUE(husk.restore(task_pending_signals_resource(), *of_task).ok());
  EXPECT_EQ(husk.capture(process_pending_signals_resource()).value(), *of_process);
  EXPECT_EQ(husk.capture(task_pending_signals_resource()).value(), *of_task);
  EXPECT_EQ(husk.finish(), 0);
}

TEST(PendingSignalsTest, SignalsWithoutAnEntryAreFound) {
  StoppedChild source([] {
    block_all();
    const rlimit none{.rlim_cur = 0, .rlim_max = 0};
    ::setrlimit(RLIMIT_SIGPENDING, &none);
    ::kill(::getpid(), SIGUSR2);
    ::syscall(SYS_tgkill, ::getpid(), ::getpid(), SIGHUP);
  });
  PendingSignalsState state;
  ASSERT_TRUE(state.ParseFromString(source.capture(process_pending_signals_resource()).value()));
  ASSERT_EQ(state.infos_size(), 1);
  siginfo_t info{};
  std::memcpy(&info, state.infos(0).data(), sizeof info);
  EXPECT_EQ(info.si_signo, SIGUSR2);
  ASSERT_TRUE(state.ParseFromString(source.capture(task_pending_signals_resource()).value()));
  ASSERT_EQ(state.infos_size(), 1);
  std::memcpy(&info, state.infos(0).data(), sizeof info);
  EXPECT_EQ(info.si_signo, SIGHUP);
}

TEST(PendingSignalsTest, NonsenseIsRefused) {
  StoppedChild husk(block_all);
  PendingSignalsState state;
  state.add_infos("short");
  EXPECT_EQ(husk.restore(task_pending_signals_resource(), state.SerializeAsString()).code(),
            absl::StatusCode::kDataLoss);
  siginfo_t info{};
  info.si_signo = SIGKILL;
  state.set_infos(0, &info, sizeof info);
  EXPECT_EQ(husk.restore(process_pending_signals_resource(), state.SerializeAsString()).code(),
            absl::StatusCode::kDataLoss);
}

}  // namespace
}  // namespace godwit::resource
