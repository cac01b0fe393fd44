// What a stop by PTRACE_INTERRUPT does to a system call that was waiting, and how to undo it.
//
// A waiting call gives up and leaves one of these in rax, with orig_rax = its number:
//
//   -512 ERESTARTSYS      the kernel runs the call again; with a handler only if SA_RESTART
//   -513 ERESTARTNOINTR   the kernel runs the call again
//   -514 ERESTARTNOHAND   the kernel runs the call again; -EINTR after a handler
//   -516 RESTART_BLOCK    the same through restart_syscall(2), which knows the end of the wait
//   -4   EINTR            the program sees it: epoll_wait, sigtimedwait, semop, sockets with
//                         SO_RCVTIMEO, ... (signal(7))
//
// The kernel decides when the task goes on (arch_do_signal_or_restart), knowing then whether a
// handler runs first. Rewinding by hand is worse: a handler that runs before a rewound pause(),
// epoll_pwait() or sigsuspend() leaves the program waiting for the signal it has just had. So the
// first four are left as they are, and -EINTR of the calls in the table becomes -514, which says
// exactly what was meant: interrupted for nothing, unless a handler runs.
#ifndef GODWIT_TRACEE_SYSCALL_RESTART_H_
#define GODWIT_TRACEE_SYSCALL_RESTART_H_

#include "absl/status/statusor.h"
#include "base/ids.h"
#include "tracee/task.h"

namespace godwit::tracee {

enum class SyscallState {
  kInvalid,
  kNotInSyscall,  // stopped between two instructions of the program
  kCompleted,     // a call had ended by itself: its result is in rax
  kRestarted,     // a call was interrupted and will run again
};

// Pure: the registers with which the task continues exactly, here, from a PTRACE_EVENT_STOP or a
// signal-delivery stop. `registers` are as seen in the stop after PTRACE_INTERRUPT.
SyscallState repair_interrupted_syscall(Registers& registers);

// Pure: of registers with -516, the call's own number being known: the same call from its beginning
// (-514). A relative time starts anew.
bool waits_by_restart_block(const Registers& registers);
void wait_anew(Registers& registers);

// The registers of a task of `pid` (as repaired above) for a task in another kernel, to be set in
// a PTRACE_EVENT_STOP or a signal-delivery stop there. Only -516 changes: the other kernel has no
// restart block, so the call itself runs again with its arguments (-514).
//
// Its time then starts anew where the argument is a relative one: poll, nanosleep, clock_nanosleep
// without TIMER_ABSTIME, futex(FUTEX_WAIT) wait longer by what they had already waited. (So do, of
// the -EINTR calls, epoll_wait, sigtimedwait, semtimedop, socket timeouts. select, pselect6 and
// ppoll write the rest back; absolute times and calls without one are exact.)
//
// A call that had been interrupted before has orig_rax = restart_syscall: its number is known from
// that stop if it was this process's (remember_wait()), else read from the `mov $nr, %eax` before
// its syscall instruction; kUnimplemented if there is none.
absl::StatusOr<Registers> registers_for_elsewhere(HostPid tid, Registers registers);

// Of a task in a stop that follows an interrupt. Any thread.
void remember_wait(HostPid tid, const Registers& registers);

// Pure: the same continuation without the kernel's help, for a plain jump to rip: the call's
// instruction is run again by the program itself. For a stub's tail.
Registers registers_rewound(Registers registers);

}  // namespace godwit::tracee

#endif  // GODWIT_TRACEE_SYSCALL_RESTART_H_
