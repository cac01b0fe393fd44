// Control of one task (thread) of another process by ptrace(2), Linux >= 5.x.
//
// States are types: a request that needs a stopped task does not compile on a running one.
//
//   SeizedTask::seize() --> SeizedTask (runs) --interrupt(), wait_stopped()--> StoppedTask
//        ^                                                                        |
//        +-------------------------------- resume() -----------------------------+
//   detach() of either ends our control: the task runs on. So do the destructors (they cannot
//   fail; a task that has died is nothing to do).
//
// A StoppedTask at rest is in a PTRACE_EVENT_STOP or in a signal-delivery stop whose signal will be
// swallowed: in these the kernel restarts the system call that registers() shows as interrupted
// (orig_rax >= 0 and rax -512..-516) when the task goes on, here and in a husk.
//
// While a task is seized and runs, its next signal stops it until somebody waits: keep that short.
//
// All calls for one task come from the thread that seized it (ptrace's rule). A task that died
// gives a kNotFound status with errno_of() == ESRCH.
#ifndef GODWIT_TRACEE_TASK_H_
#define GODWIT_TRACEE_TASK_H_

#include <signal.h>
// <sys/ptrace.h> first: the macros of <linux/ptrace.h> would break its enumeration.
// clang-format off
#include <sys/ptrace.h>
#include <linux/ptrace.h>
// clang-format on
#include <sys/user.h>

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/clock.h"
#include "base/ids.h"

namespace godwit::tracee {

// General registers as PTRACE_GETREGSET(NT_PRSTATUS) gives them.
using Registers = user_regs_struct;

class StoppedTask;

class SeizedTask {
 public:
  static absl::StatusOr<SeizedTask> seize(HostPid tid);
  SeizedTask(SeizedTask&&) noexcept;
  SeizedTask& operator=(SeizedTask&&) noexcept;
  ~SeizedTask();  // a running tracee is interrupted and detached

  HostPid tid() const { return tid_; }

  // Asks for a stop; does not wait. Interrupt many, then wait for each.
  absl::Status interrupt();

  // Waits for the stop that interrupt() asked for, and repairs an interrupted system call at once
  // (see syscall_restart.h): from here on a detach at any moment leaves the program unharmed.
  // A signal-delivery stop that comes first is passed on with its signal. On error the task is
  // detached (or dead); only one that hangs in an uninterruptible state until the deadline (the
  // parent of a vfork(2) child, a dead NFS server) cannot be: it stays ours until this thread ends.
  absl::StatusOr<StoppedTask> wait_stopped(Deadline deadline) &&;

  absl::Status detach() &&;

 private:
  friend class StoppedTask;
  SeizedTask(HostPid tid, unsigned long options) : tid_(tid), options_(options) {}
  HostPid tid_{0};  // 0: moved from
  unsigned long options_ = 0;
};

class StoppedTask {
 public:
  StoppedTask(StoppedTask&&) noexcept;
  StoppedTask& operator=(StoppedTask&&) noexcept;
  ~StoppedTask();  // detaches: the task runs on

  // Adopts a task that is already in a ptrace stop of ours: a child that PTRACE_O_TRACECLONE or
  // PTRACE_O_TRACEFORK attached (its first stop is waited for here).
  static absl::StatusOr<StoppedTask> adopt_new_child(HostPid tid, Deadline deadline);

  HostPid tid() const { return tid_; }

  // Its seccomp filters and its strict mode do not hinder calls of ours. False: this kernel, or
  // what we may do, does not give us that, and they hinder them all.
  bool seccomp_suspended() const { return (options_ & PTRACE_O_SUSPEND_SECCOMP) != 0; }

  absl::StatusOr<Registers> registers() const;
  absl::Status set_registers(const Registers& registers);

  // NT_X86_XSTATE: x87, SSE, AVX, AVX-512, PKRU as XSAVE lays them out; length says the CPU.
  absl::StatusOr<std::vector<std::byte>> xstate() const;
  absl::Status set_xstate(const std::vector<std::byte>& state);

  // PTRACE_GETSIGMASK / SETSIGMASK: bit (n-1) is signal n.
  absl::StatusOr<uint64_t> signal_mask() const;
  absl::Status set_signal_mask(uint64_t mask);

  // PTRACE_PEEKSIGINFO: the pending signals, oldest first, left where they are.
  absl::StatusOr<std::vector<siginfo_t>> pending_signals(bool of_process) const;

  // PTRACE_GET_RSEQ_CONFIGURATION (Linux 5.13); rseq_abi_pointer is 0 when not registered.
  absl::StatusOr<ptrace_rseq_configuration> rseq() const;

  // PTRACE_SETOPTIONS, for husks: PTRACE_O_TRACECLONE, PTRACE_O_EXITKILL, ... beside those that
  // this class needs itself.
  absl::Status set_options(unsigned long options);
  absl::StatusOr<unsigned long> event_message() const;

  // A task whose group is stopped (SIGSTOP) stays stopped, as it would without us.
  absl::StatusOr<SeizedTask> resume() &&;
  absl::Status detach() &&;

 private:
  friend class SeizedTask;
  friend class RemoteSyscalls;
  friend class StubArea;
  StoppedTask(HostPid tid, unsigned long options, bool group_stop)
      : tid_(tid), options_(options), group_stop_(group_stop) {}
  HostPid tid_{0};  // 0: moved from
  unsigned long options_ = 0;
  bool group_stop_ = false;  // a group stop was seen: resume() has to keep it
};

}  // namespace godwit::tracee

#endif  // GODWIT_TRACEE_TASK_H_
