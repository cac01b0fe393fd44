#include "tracee/syscall_restart.h"

#include <sys/syscall.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <mutex>
#include <optional>

#include "absl/container/flat_hash_map.h"
#include "base/status.h"
#include "tracee/memory.h"

namespace godwit::tracee {
namespace {

// include/linux/errno.h: never seen by programs.
constexpr int64_t kRestartSys = -512;
constexpr int64_t kRestartNoIntr = -513;
constexpr int64_t kRestartNoHand = -514;
constexpr int64_t kRestartBlock = -516;

constexpr uint64_t kSyscallInstructionSize = 2;  // 0F 05

// Calls that give a plain -EINTR when a stop, and no signal, woke them. Sockets do so only with
// SO_RCVTIMEO or SO_SNDTIMEO (sock_intr_errno), select and its like only when the rest of the time
// could not be written back. Nothing had been transferred: a partial transfer is a positive result.
constexpr std::array kInterruptible = std::to_array<long>({
    SYS_read,          SYS_write,           SYS_readv,           SYS_writev,
    SYS_pread64,       SYS_pwrite64,        SYS_select,          SYS_pselect6,
    SYS_poll,          SYS_ppoll,           SYS_epoll_wait,      SYS_epoll_pwait,
    SYS_epoll_pwait2,  SYS_semop,           SYS_semtimedop,      SYS_msgsnd,
    SYS_msgrcv,        SYS_mq_timedsend,    SYS_mq_timedreceive, SYS_rt_sigtimedwait,
    SYS_accept,        SYS_accept4,         SYS_connect,         SYS_recvfrom,
    SYS_recvmsg,       SYS_recvmmsg,        SYS_sendto,          SYS_sendmsg,
    SYS_sendmmsg,      SYS_sendfile,        SYS_splice,          SYS_io_getevents,
    SYS_io_pgetevents, SYS_io_uring_enter,  SYS_futex,           SYS_futex_waitv,
    SYS_fcntl,         SYS_flock,           SYS_pause,           SYS_rt_sigsuspend,
    SYS_nanosleep,     SYS_clock_nanosleep, SYS_wait4,           SYS_waitid,
    SYS_getrandom,
});

// Calls that can leave -516 (Linux 6.x: grep set_restart_fn).
constexpr std::array kWithRestartBlock =
    std::to_array<long>({SYS_poll, SYS_nanosleep, SYS_clock_nanosleep, SYS_futex});

template <size_t N>
bool contains(const std::array<long, N>& calls, int64_t number) {
  return std::find(calls.begin(), calls.end(), number) != calls.end();
}

int64_t result_of(const Registers& r) { return static_cast<int64_t>(r.rax); }
int64_t number_of(const Registers& r) { return static_cast<int64_t>(r.orig_rax); }

bool is_restart(int64_t result) {
  return result == kRestartSys || result == kRestartNoIntr || result == kRestartNoHand ||
         result == kRestartBlock;
}

// By task, as it was first interrupted.
std::mutex waits_mutex;
absl::flat_hash_map<pid_t, Registers>& waits() {
  static auto& map = *new absl::flat_hash_map<pid_t, Registers>;
  return map;
}

// restart_syscall(2) leaves the arguments of the call where they were.
std::optional<uint64_t> remembered_number(HostPid tid, const Registers& now) {
  if (number_of(now) != SYS_restart_syscall) return std::nullopt;
  const std::lock_guard lock(waits_mutex);
  const auto found = waits().find(tid.value);
  if (found == waits().end()) return std::nullopt;
  const Registers& then = found->second;
  if (then.rip != now.rip || then.rsp != now.rsp || then.rdi != now.rdi || then.rsi != now.rsi ||
      then.rdx != now.rdx || then.r10 != now.r10)
    return std::nullopt;
  return then.orig_rax;
}

}  // namespace

SyscallState repair_interrupted_syscall(Registers& registers) {
  if (number_of(registers) < 0) return SyscallState::kNotInSyscall;
  if (is_restart(result_of(registers))) return SyscallState::kRestarted;
  if (result_of(registers) == -EINTR && contains(kInterruptible, number_of(registers))) {
    registers.rax = static_cast<uint64_t>(kRestartNoHand);
    return SyscallState::kRestarted;
  }
  return SyscallState::kCompleted;
}

bool waits_by_restart_block(const Registers& registers) {
  return number_of(registers) >= 0 && number_of(registers) != SYS_restart_syscall &&
         result_of(registers) == kRestartBlock;
}

void wait_anew(Registers& registers) { registers.rax = static_cast<uint64_t>(kRestartNoHand); }

Registers registers_rewound(Registers registers) {
  if (number_of(registers) >= 0 && is_restart(result_of(registers))) {
    registers.rax = result_of(registers) == kRestartBlock
                        ? static_cast<uint64_t>(SYS_restart_syscall)
                        : registers.orig_rax;
    registers.rip -= kSyscallInstructionSize;
  }
  registers.orig_rax = ~uint64_t{0};
  return registers;
}

void remember_wait(HostPid tid, const Registers& registers) {
  if (result_of(registers) != kRestartBlock || number_of(registers) == SYS_restart_syscall) return;
  const std::lock_guard lock(waits_mutex);
  waits().insert_or_assign(tid.value, registers);
}

absl::StatusOr<Registers> registers_for_elsewhere(HostPid pid, Registers registers) {
  if (number_of(registers) < 0 || result_of(registers) != kRestartBlock) return registers;
  if (const auto known = remembered_number(pid, registers); known) {
    registers.orig_rax = *known;
  } else if (number_of(registers) == SYS_restart_syscall) {
    // B8 imm32 0F 05 with rip behind it.
    std::array<std::byte, 7> code;
    GW_RETURN_IF_ERROR(read_memory_forced(pid, RemoteAddress{registers.rip - code.size()}, code));
    uint32_t number = 0;
    std::memcpy(&number, &code[1], sizeof number);
    if (code[0] != std::byte{0xb8} || code[5] != std::byte{0x0f} || code[6] != std::byte{0x05} ||
        !contains(kWithRestartBlock, number)) {
      return make_error(absl::StatusCode::kUnimplemented,
                        "a wait of task {} at {:#x} was interrupted twice and its system call "
                        "cannot be told",
                        pid.value, registers.rip);
    }
    registers.orig_rax = number;
  }
  wait_anew(registers);
  return registers;
}

}  // namespace godwit::tracee
