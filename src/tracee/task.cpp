// Linux facts: ptrace(2). PTRACE_O_SUSPEND_SECCOMP (4.3, CONFIG_CHECKPOINT_RESTORE) needs
// CAP_SYS_ADMIN and a tracer without a filter of its own. It is on only from a stop of ours to the
// end of that stop: a program that runs is never without its filters. When the tracer dies it is
// off at once, also in the middle of a batch.
#include "tracee/task.h"

#include <elf.h>
#include <sys/ptrace.h>
#include <sys/uio.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <utility>

#include "base/status.h"
#include "tracee/ptrace_calls.h"
#include "tracee/syscall_restart.h"

namespace godwit::tracee {
namespace {

using internal::request;

// For a stop that must come at once: the task is already on its way.
constexpr absl::Duration kSoon = absl::Seconds(2);
// Larger than any XSAVE area today (AMX: 11 KiB).
constexpr size_t kMaxXstate = size_t{64} << 10;

bool has_filters(HostPid tid) {
  return ::ptrace(static_cast<__ptrace_request>(PTRACE_SECCOMP_GET_FILTER), tid.value, 0, nullptr) >
         0;
}

absl::Status set_ptrace_options(HostPid tid, unsigned long options) {
  return request(PTRACE_SETOPTIONS, "PTRACE_SETOPTIONS", tid, 0, options);
}

}  // namespace

// --- SeizedTask

absl::StatusOr<SeizedTask> SeizedTask::seize(HostPid tid) {
  const absl::Status status = request(PTRACE_SEIZE, "PTRACE_SEIZE", tid, 0, internal::kBaseOptions);
  if (errno_of(status) == EPERM) {
    // A task that has ended but is not reaped gives EPERM, too (kernel/ptrace.c, ptrace_attach).
    const char state = internal::task_state(tid);
    if (state == 0 || state == 'Z' || state == 'X') {
      return errno_status(ESRCH, fmt::format("ptrace(PTRACE_SEIZE, {}) of a zombie", tid.value));
    }
  }
  GW_RETURN_IF_ERROR(status);
  return SeizedTask(tid, internal::kBaseOptions);
}

SeizedTask::SeizedTask(SeizedTask&& other) noexcept
    : tid_(std::exchange(other.tid_, HostPid{0})), options_(other.options_) {}

SeizedTask& SeizedTask::operator=(SeizedTask&& other) noexcept {
  if (this != &other) {
    SeizedTask old(std::move(*this));
    tid_ = std::exchange(other.tid_, HostPid{0});
    options_ = other.options_;
  }
  return *this;
}

SeizedTask::~SeizedTask() {
  if (tid_.value != 0) std::move(*this).detach().IgnoreError();
}

absl::Status SeizedTask::interrupt() { return internal::interrupt(tid_); }

absl::StatusOr<StoppedTask> SeizedTask::wait_stopped(Deadline deadline) && {
  const HostPid tid = std::exchange(tid_, HostPid{0});
  for (;;) {
    GW_ASSIGN_OR_RETURN(const internal::Stop stop, internal::wait_stop(tid, deadline));
    if (!stop.is_event_stop()) {
      // The stop has consumed the interrupt: see ptrace_calls.cpp.
      GW_RETURN_IF_ERROR(internal::interrupt(tid));
      GW_RETURN_IF_ERROR(
          internal::proceed(tid, PTRACE_CONT, stop.is_signal_delivery() ? stop.signal : 0));
      continue;
    }
    StoppedTask task(tid, options_, stop.is_group_stop());
    Registers registers;
    GW_RETURN_IF_ERROR(internal::get_registers(tid, registers));
    remember_wait(tid, registers);
    const uint64_t rax = registers.rax;
    repair_interrupted_syscall(registers);
    // restart_syscall(2), which goes on with the rest of a wait, is a call that a filter may not
    // have in its list: better to wait anew, by the call that it has let through.
    if (waits_by_restart_block(registers) && has_filters(tid)) wait_anew(registers);
    if (registers.rax != rax) GW_RETURN_IF_ERROR(internal::set_registers(tid, registers));
    if (set_ptrace_options(tid, options_ | PTRACE_O_SUSPEND_SECCOMP).ok())
      task.options_ |= PTRACE_O_SUSPEND_SECCOMP;
    return task;
  }
}

absl::Status SeizedTask::detach() && {
  // Only a stopped tracee can be detached (ptrace(2)).
  const HostPid tid = tid_;
  absl::Status asked = internal::interrupt(tid);
  if (!asked.ok()) {
    tid_ = HostPid{0};
    return asked;
  }
  GW_ASSIGN_OR_RETURN(StoppedTask task, std::move(*this).wait_stopped(Deadline::in(kSoon)));
  return std::move(task).detach();
}

// --- StoppedTask

StoppedTask::StoppedTask(StoppedTask&& other) noexcept
    : tid_(std::exchange(other.tid_, HostPid{0})),
      options_(other.options_),
      group_stop_(other.group_stop_) {}

StoppedTask& StoppedTask::operator=(StoppedTask&& other) noexcept {
  if (this != &other) {
    StoppedTask old(std::move(*this));
    tid_ = std::exchange(other.tid_, HostPid{0});
    options_ = other.options_;
    group_stop_ = other.group_stop_;
  }
  return *this;
}

StoppedTask::~StoppedTask() {
  if (tid_.value != 0) std::move(*this).detach().IgnoreError();
}

absl::StatusOr<StoppedTask> StoppedTask::adopt_new_child(HostPid tid, Deadline deadline) {
  // An automatically attached child inherits the options of its maker (ptrace(2)); the first stop
  // is a PTRACE_EVENT_STOP since its maker was seized.
  GW_ASSIGN_OR_RETURN(internal::Stop stop, internal::wait_stop(tid, deadline));
  if (!stop.is_event_stop()) {
    GW_ASSIGN_OR_RETURN(
        stop, internal::settle(tid, stop.is_signal_delivery() ? stop.signal : 0, deadline));
  }
  return StoppedTask(tid, internal::kBaseOptions | PTRACE_O_SUSPEND_SECCOMP, stop.is_group_stop());
}

absl::StatusOr<Registers> StoppedTask::registers() const {
  Registers registers;
  GW_RETURN_IF_ERROR(internal::get_registers(tid_, registers));
  return registers;
}

absl::Status StoppedTask::set_registers(const Registers& registers) {
  return internal::set_registers(tid_, registers);
}

absl::StatusOr<std::vector<std::byte>> StoppedTask::xstate() const {
  std::vector<std::byte> state(kMaxXstate);
  iovec io{.iov_base = state.data(), .iov_len = state.size()};
  GW_RETURN_IF_ERROR(request(PTRACE_GETREGSET, "PTRACE_GETREGSET, NT_X86_XSTATE", tid_,
                             NT_X86_XSTATE, reinterpret_cast<uint64_t>(&io)));
  state.resize(io.iov_len);
  return state;
}

absl::Status StoppedTask::set_xstate(const std::vector<std::byte>& state) {
  iovec io{.iov_base = const_cast<std::byte*>(state.data()), .iov_len = state.size()};
  return request(PTRACE_SETREGSET, "PTRACE_SETREGSET, NT_X86_XSTATE", tid_, NT_X86_XSTATE,
                 reinterpret_cast<uint64_t>(&io));
}

absl::StatusOr<uint64_t> StoppedTask::signal_mask() const {
  uint64_t mask = 0;
  GW_RETURN_IF_ERROR(internal::get_signal_mask(tid_, mask));
  return mask;
}

absl::Status StoppedTask::set_signal_mask(uint64_t mask) {
  return internal::set_signal_mask(tid_, mask);
}

absl::StatusOr<std::vector<siginfo_t>> StoppedTask::pending_signals(bool of_process) const {
  std::vector<siginfo_t> all;
  std::array<siginfo_t, 32> some;
  for (;;) {
    __ptrace_peeksiginfo_args what{
        .off = all.size(),
        .flags = of_process ? static_cast<uint32_t>(PTRACE_PEEKSIGINFO_SHARED) : 0,
        .nr = static_cast<int32_t>(some.size())};
    const long got =
        ::ptrace(static_cast<__ptrace_request>(PTRACE_PEEKSIGINFO), tid_.value, &what, some.data());
    if (got < 0) {
      return errno_status(errno, fmt::format("ptrace(PTRACE_PEEKSIGINFO, {})", tid_.value));
    }
    all.insert(all.end(), some.begin(), some.begin() + got);
    if (static_cast<size_t>(got) < some.size()) return all;
  }
}

absl::StatusOr<ptrace_rseq_configuration> StoppedTask::rseq() const {
  ptrace_rseq_configuration configuration{};
  if (::ptrace(static_cast<__ptrace_request>(PTRACE_GET_RSEQ_CONFIGURATION), tid_.value,
               sizeof configuration, &configuration) < 0) {
    return errno_status(errno,
                        fmt::format("ptrace(PTRACE_GET_RSEQ_CONFIGURATION, {})", tid_.value));
  }
  return configuration;
}

absl::Status StoppedTask::set_options(unsigned long options) {
  options |= internal::kBaseOptions | (options_ & PTRACE_O_SUSPEND_SECCOMP);
  GW_RETURN_IF_ERROR(set_ptrace_options(tid_, options));
  options_ = options;
  return absl::OkStatus();
}

absl::StatusOr<unsigned long> StoppedTask::event_message() const {
  unsigned long message = 0;
  GW_RETURN_IF_ERROR(request(PTRACE_GETEVENTMSG, "PTRACE_GETEVENTMSG", tid_, 0,
                             reinterpret_cast<uint64_t>(&message)));
  return message;
}

absl::StatusOr<SeizedTask> StoppedTask::resume() && {
  const unsigned long options = options_ & ~static_cast<unsigned long>(PTRACE_O_SUSPEND_SECCOMP);
  if (options != options_) GW_RETURN_IF_ERROR(set_ptrace_options(tid_, options));
  bool listen = false;
  if (group_stop_) {
    // The group stop may have ended meanwhile: the fresh stop tells, and clears the traps that
    // were still pending.
    GW_ASSIGN_OR_RETURN(const internal::Stop stop, internal::settle(tid_, 0, Deadline::in(kSoon)));
    listen = stop.is_group_stop();
  }
  GW_RETURN_IF_ERROR(listen ? request(PTRACE_LISTEN, "PTRACE_LISTEN", tid_, 0, 0)
                            : internal::proceed(tid_, PTRACE_CONT, 0));
  return SeizedTask(std::exchange(tid_, HostPid{0}), options);
}

absl::Status StoppedTask::detach() && {
  const HostPid tid = std::exchange(tid_, HostPid{0});
  return request(PTRACE_DETACH, "PTRACE_DETACH", tid, 0, 0);
}

}  // namespace godwit::tracee
