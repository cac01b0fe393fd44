// What a stop by PTRACE_INTERRUPT does to a system call that was waiting, and how to undo it:
// -512..-514 are rewound as the kernel does (signal(7), arch/x86/kernel/signal.c), -516 through
// restart_syscall or with what is left of its time, -EINTR of epoll_wait, epoll_pwait,
// sigtimedwait and their like (no restart code: the program would see it) rewound to the call.
#ifndef GODWIT_TRACEE_SYSCALL_RESTART_H_
#define GODWIT_TRACEE_SYSCALL_RESTART_H_

#include "tracee/task.h"

namespace godwit::tracee {

enum class SyscallState { kInvalid, kNotInSyscall, kCompleted, kRestarted };

// Pure: the registers with which the task continues exactly. `registers` are as seen in the
// group-stop/PTRACE_EVENT_STOP after PTRACE_INTERRUPT.
SyscallState repair_interrupted_syscall(Registers& registers);

}  // namespace godwit::tracee

#endif  // GODWIT_TRACEE_SYSCALL_RESTART_H_
