// Linux facts: a syscall-exit stop comes before the kernel looks at -ERESTART codes, so a call that
// a stop signal interrupted shows one there and runs again by itself when the task goes on.
#include "tracee/remote_syscalls.h"

#include <fcntl.h>
#include <sys/ptrace.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <string>
#include <vector>

#include "base/status.h"
#include "tracee/memory.h"
#include "tracee/ptrace_calls.h"
#include "tracee/stub_frame.h"
#include "tracee/syscall_restart.h"

namespace godwit::tracee {
namespace {

constexpr absl::Duration kCallTime = absl::Seconds(10);
constexpr uint64_t kMaxVdso = uint64_t{1} << 16;

// [begin, end) of the mapping whose line ends in `name`.
absl::StatusOr<std::pair<uint64_t, uint64_t>> find_mapping(HostPid pid, std::string_view name) {
  GW_ASSIGN_OR_RETURN(const std::string maps,
                      internal::read_proc_file(fmt::format("/proc/{}/maps", pid.value)));
  // No memory any more: it is ending (exit_mm comes long before the state says so).
  if (maps.empty()) return errno_status(ESRCH, fmt::format("maps of process {}", pid.value));
  const size_t at = maps.find(fmt::format(" {}\n", name));
  if (at == std::string::npos) {
    return make_error(absl::StatusCode::kNotFound, "process {} has no {}", pid.value, name);
  }
  const size_t line = maps.rfind('\n', at);
  uint64_t begin = 0;
  uint64_t end = 0;
  if (std::sscanf(maps.c_str() + (line == std::string::npos ? 0 : line + 1), "%lx-%lx", &begin,
                  &end) != 2) {
    return make_error(absl::StatusCode::kInternal, "/proc/{}/maps: no range for {}", pid.value,
                      name);
  }
  return std::pair(begin, end);
}

bool will_run_again(int64_t result) {
  return result == -512 || result == -513 || result == -514 || result == -516;
}

}  // namespace

std::string describe_call(long number, std::span<const uint64_t, 6> arguments) {
  std::string text = fmt::format("system call {} (", number);
  size_t count = 6;
  while (count > 0 && arguments[count - 1] == 0) --count;
  for (size_t i = 0; i < count; ++i) {
    text += fmt::format("{}{:#x}", i == 0 ? "" : ", ", arguments[i]);
  }
  return text + ")";
}

absl::StatusOr<VdsoImage> read_vdso(HostPid pid) {
  GW_ASSIGN_OR_RETURN(const auto range, find_mapping(pid, "[vdso]"));
  const auto [begin, end] = range;
  if (end <= begin || end - begin > kMaxVdso) {
    return make_error(absl::StatusCode::kInternal, "process {}: [vdso] of {} bytes", pid.value,
                      end - begin);
  }
  VdsoImage vdso{.at = {begin}, .bytes = std::vector<std::byte>(end - begin)};
  GW_RETURN_IF_ERROR(read_memory_forced(pid, vdso.at, vdso.bytes));
  return vdso;
}

absl::StatusOr<RemoteAddress> VdsoImage::syscall_instruction() const {
  constexpr std::array kSyscall{std::byte{0x0f}, std::byte{0x05}};
  const auto found = std::search(bytes.begin(), bytes.end(), kSyscall.begin(), kSyscall.end());
  if (found == bytes.end()) {
    return make_error(absl::StatusCode::kNotFound, "no syscall instruction in the [vdso] at {:#x}",
                      at.value);
  }
  return at + static_cast<uint64_t>(found - bytes.begin());
}

absl::StatusOr<RemoteAddress> find_vdso_syscall(HostPid pid) {
  GW_ASSIGN_OR_RETURN(const VdsoImage vdso, read_vdso(pid));
  return vdso.syscall_instruction();
}

RemoteSyscalls::~RemoteSyscalls() { finish().IgnoreError(); }

absl::Status RemoteSyscalls::begin() {
  if (begun_) return absl::OkStatus();
  GW_RETURN_IF_ERROR(internal::get_registers(task_.tid(), saved_));
  GW_RETURN_IF_ERROR(internal::get_signal_mask(task_.tid(), saved_mask_));
  if (frame_.value != 0) {
    internal::StubFrame frame{};
    frame.saved_mask = saved_mask_;
    internal::save_registers(registers_rewound(saved_), frame);
    GW_RETURN_IF_ERROR(
        write_memory_forced(task_.tid(), frame_, std::as_bytes(std::span(&frame, 1))));
  }
  begun_ = true;
  blocked_ = false;
  return absl::OkStatus();
}

absl::StatusOr<int64_t> RemoteSyscalls::run(long number, const std::array<uint64_t, 6>& arguments,
                                            Deadline deadline, HostPid* new_task) {
  GW_RETURN_IF_ERROR(begin());
  const HostPid tid = task_.tid();
  Registers registers = saved_;
  registers.rip = instruction_.value;
  registers.rax = static_cast<uint64_t>(number);
  registers.rdi = arguments[0];
  registers.rsi = arguments[1];
  registers.rdx = arguments[2];
  registers.r10 = arguments[3];
  registers.r8 = arguments[4];
  registers.r9 = arguments[5];
  registers.orig_rax = internal::kAllSignals;  // -1: not in a system call
  if (frame_.value != 0) registers.rbx = frame_.value;
  GW_RETURN_IF_ERROR(internal::set_registers(tid, registers));
  // After the registers: the stub's tail then puts the mask back if we die.
  if (!blocked_) GW_RETURN_IF_ERROR(internal::set_signal_mask(tid, internal::kAllSignals));
  blocked_ = true;

  int signal = 0;
  bool entered = false;
  for (;;) {
    GW_RETURN_IF_ERROR(internal::proceed(tid, PTRACE_SYSCALL, signal));
    GW_ASSIGN_OR_RETURN(const internal::Stop stop, internal::wait_stop(tid, deadline));
    // Everything is blocked: this is SIGSTOP, which takes effect as a group stop.
    signal = stop.is_signal_delivery() ? stop.signal : 0;
    if (stop.is_group_stop()) task_.group_stop_ = true;
    if (new_task != nullptr &&
        (stop.event == PTRACE_EVENT_CLONE || stop.event == PTRACE_EVENT_FORK ||
         stop.event == PTRACE_EVENT_VFORK)) {
      GW_ASSIGN_OR_RETURN(const unsigned long child, task_.event_message());
      new_task->value = static_cast<pid_t>(child);
    }
    if (!stop.syscall) continue;
    entered = !entered;
    if (entered) continue;
    GW_RETURN_IF_ERROR(internal::get_registers(tid, registers));
    const auto result = static_cast<int64_t>(registers.rax);
    if (!will_run_again(result)) return result;
  }
}

absl::StatusOr<int64_t> RemoteSyscalls::call(long number, std::array<uint64_t, 6> arguments) {
  auto result = run(number, arguments, Deadline::in(kCallTime), nullptr);
  if (!result.ok()) return annotate(result.status(), describe_call(number, arguments));
  return result;
}

absl::StatusOr<uint64_t> RemoteSyscalls::must(long number, std::array<uint64_t, 6> arguments) {
  GW_ASSIGN_OR_RETURN(const int64_t result, call(number, arguments));
  if (result < 0 && result >= -4095) {
    return errno_status(
        static_cast<int>(-result),
        fmt::format("{} in task {}", describe_call(number, arguments), task_.tid().value));
  }
  return static_cast<uint64_t>(result);
}

absl::StatusOr<StoppedTask> RemoteSyscalls::call_making_task(long number,
                                                             std::array<uint64_t, 6> arguments,
                                                             Deadline deadline) {
  HostPid child{0};
  GW_ASSIGN_OR_RETURN(const int64_t result, run(number, arguments, deadline, &child));
  if (result < 0) {
    return errno_status(
        static_cast<int>(-result),
        fmt::format("{} in task {}", describe_call(number, arguments), task_.tid().value));
  }
  if (child.value == 0) {
    return make_error(absl::StatusCode::kFailedPrecondition,
                      "{} made a task that is not traced: PTRACE_O_TRACECLONE is not set",
                      describe_call(number, arguments));
  }
  return StoppedTask::adopt_new_child(child, deadline);
}

absl::Status RemoteSyscalls::finish() {
  if (!begun_) return absl::OkStatus();
  begun_ = false;
  const HostPid tid = task_.tid();
  // Out of the syscall-exit stop first: see settle().
  GW_ASSIGN_OR_RETURN(const internal::Stop stop, internal::settle(tid, 0, Deadline::in(kCallTime)));
  if (stop.is_group_stop()) task_.group_stop_ = true;
  GW_RETURN_IF_ERROR(internal::set_signal_mask(tid, saved_mask_));
  return internal::set_registers(tid, saved_);
}

}  // namespace godwit::tracee
