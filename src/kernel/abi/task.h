// Calls that make and describe tasks: <linux/sched.h> (clone3: 5.3, set_tid 5.5, cgroup 5.7),
// <linux/prctl.h> (PR_SET_MM_MAP 3.18, PR_SET_VMA 5.17), <linux/ptrace.h> (rseq configuration 5.13,
// PTRACE_SET_SYSCALL_INFO 6.16). What the system's headers have is checked here, what they lack is
// added.
#ifndef GODWIT_KERNEL_ABI_TASK_H_
#define GODWIT_KERNEL_ABI_TASK_H_

// <sys/ptrace.h> first: the macros of <linux/ptrace.h> would break its enumeration.
// clang-format off
#include <sys/ptrace.h>
#include <linux/prctl.h>
#include <linux/ptrace.h>
#include <linux/sched.h>
// clang-format on

#include <cstddef>
#include <cstdint>

namespace godwit::kernel::abi {

// struct clone_args under a name of ours: glibc's <sched.h> may one day bring its own. set_tid is
// an array of pids from the innermost pid namespace outwards.
struct CloneArgs {
  uint64_t flags;
  uint64_t pidfd;
  uint64_t child_tid;
  uint64_t parent_tid;
  uint64_t exit_signal;
  uint64_t stack;  // lowest byte
  uint64_t stack_size;
  uint64_t tls;
  uint64_t set_tid;
  uint64_t set_tid_size;
  uint64_t cgroup;
};
static_assert(sizeof(CloneArgs) == CLONE_ARGS_SIZE_VER2 && sizeof(CloneArgs) == sizeof(clone_args));
static_assert(offsetof(CloneArgs, set_tid) == offsetof(clone_args, set_tid) &&
              offsetof(CloneArgs, cgroup) == offsetof(clone_args, cgroup));

// struct prctl_mm_map for prctl(PR_SET_MM, PR_SET_MM_MAP): needs CAP_SYS_RESOURCE for no field but
// exe_fd's change of /proc/PID/exe (CAP_CHECKPOINT_RESTORE), unlike the single-field forms.
static_assert(sizeof(prctl_mm_map) == 104 && offsetof(prctl_mm_map, auxv) == 88);

inline constexpr int kPrSetVma = 0x53564d41;  // "SVMA"
inline constexpr unsigned long kPrSetVmaAnonName = 0;
#ifdef PR_SET_VMA
static_assert(kPrSetVma == PR_SET_VMA && kPrSetVmaAnonName == PR_SET_VMA_ANON_NAME);
#endif

static_assert(PTRACE_GET_RSEQ_CONFIGURATION == 0x420f && sizeof(ptrace_rseq_configuration) == 24);
// rseq(2): the flag that ends a registration, and the signature that glibc uses on x86.
inline constexpr int kRseqFlagUnregister = 1 << 0;
inline constexpr uint32_t kRseqSignatureX86 = 0x53053053;

inline constexpr int kPtraceSetSyscallInfo = 0x4212;

}  // namespace godwit::kernel::abi

#endif  // GODWIT_KERNEL_ABI_TASK_H_
