// Linux facts: the image of the vDSO is one ELF file, mapped page by page and zero behind its end;
// its mapping has VM_MAYWRITE, so a forced write gives the process a private copy of a page
// (arch/x86/entry/vdso/vma.c).
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <string>
#include <utility>
#include <vector>

#include "base/status.h"
#include "tracee/batch.h"
#include "tracee/memory.h"
#include "tracee/ptrace_calls.h"
#include "tracee/stub_frame.h"
#include "tracee/syscall_restart.h"

extern "C" {
extern const std::byte godwit_stub_begin[];
extern const std::byte godwit_stub_single[];
extern const std::byte godwit_stub_end[];
}

namespace godwit::tracee {
namespace {

constexpr uint64_t kUserCodeSegment64 = 0x33;  // __USER_CS
constexpr size_t kAlignment = 16;

std::span<const std::byte> stub_code() { return {godwit_stub_begin, godwit_stub_end}; }
uint64_t single_offset() { return static_cast<uint64_t>(godwit_stub_single - godwit_stub_begin); }

size_t home_size() {
  return (stub_code().size() + sizeof(internal::StubFrame) + 2 * kAlignment) & ~(kAlignment - 1);
}

uint64_t frame_offset() { return (stub_code().size() + kAlignment - 1) & ~(kAlignment - 1); }

enum class Home { kNoRoom, kFree, kUsedBefore };

// In the zeros behind the vDSO's image, at the end of its mapping, a copy of the stub and a frame
// find room. A tracer that was killed has left them there.
Home look_at_home(std::span<const std::byte> vdso) {
  if (vdso.size() < home_size()) return Home::kNoRoom;
  const auto place = vdso.last(home_size());
  const auto code = stub_code();
  if (std::all_of(place.begin(), place.end(), [](std::byte b) { return b == std::byte{0}; })) {
    return Home::kFree;
  }
  return std::equal(code.begin(), code.end(), place.begin()) ? Home::kUsedBefore : Home::kNoRoom;
}

// Where a task waits, from /proc/TID/syscall; 0 when it runs.
uint64_t waits_at(HostPid tid) {
  const auto text = internal::read_proc_file(fmt::format("/proc/{}/syscall", tid.value));
  const size_t at = text.ok() ? text->rfind(" 0x") : std::string::npos;
  uint64_t pc = 0;
  if (at != std::string::npos) {
    std::from_chars(text->data() + at + 3, text->data() + text->size(), pc, 16);
  }
  return pc;
}

// A frame that a killed tracer left may still be needed by a task on its way home: written over,
// that task would go round in the tail for ever. True when no task of the process is there any
// more; `task` itself is let out.
absl::StatusOr<bool> all_have_left(StoppedTask& task, RemoteAddress home) {
  const auto inside = [&](uint64_t pc) {
    return pc >= home.value && pc < home.value + home_size();
  };
  const HostPid tid = task.tid();
  const Deadline deadline = Deadline::in(absl::Seconds(2));
  for (;;) {
    Registers registers;
    GW_RETURN_IF_ERROR(internal::get_registers(tid, registers));
    if (!inside(registers.rip)) break;
    if (deadline.passed()) return false;
    GW_RETURN_IF_ERROR(internal::proceed(tid, PTRACE_CONT, 0));
    ::sched_yield();
    GW_RETURN_IF_ERROR(internal::interrupt(tid));
    GW_ASSIGN_OR_RETURN(internal::Stop stop, internal::wait_stop(tid, deadline));
    if (!stop.is_event_stop()) {
      GW_ASSIGN_OR_RETURN(
          stop, internal::settle(tid, stop.is_signal_delivery() ? stop.signal : 0, deadline));
    }
    GW_RETURN_IF_ERROR(internal::get_registers(tid, registers));
    repair_interrupted_syscall(registers);
    GW_RETURN_IF_ERROR(internal::set_registers(tid, registers));
  }
  GW_ASSIGN_OR_RETURN(const std::vector<HostPid> others, internal::tasks_of(tid));
  return std::all_of(others.begin(), others.end(), [&](HostPid other) {
    if (other == tid) return true;
    const uint64_t pc = waits_at(other);
    return pc != 0 && !inside(pc);
  });
}

absl::StatusOr<RemoteAddress> map_at(RemoteSyscalls& calls, uint64_t size, RemoteAddress near) {
  constexpr uint64_t kFlags = MAP_PRIVATE | MAP_ANONYMOUS;
  const auto map = [&](uint64_t at, uint64_t flags) {
    return calls.call(SYS_mmap, {at, size, PROT_READ | PROT_WRITE, flags, ~uint64_t{0}, 0});
  };
  const uint64_t places = near.value != 0 ? 1 : StubArea::kPlacesCount;
  for (uint64_t i = 0; i < places && size <= StubArea::kPlaceBytes; ++i) {
    const uint64_t at =
        near.value != 0 ? near.value : StubArea::kPlaces.value + i * StubArea::kPlaceBytes;
    GW_ASSIGN_OR_RETURN(const int64_t got, map(at, kFlags | MAP_FIXED_NOREPLACE));
    if (got >= 0) return RemoteAddress{static_cast<uint64_t>(got)};
    if (near.value != 0 || got != -EEXIST)
      return errno_status(static_cast<int>(-got),
                          fmt::format("mmap({:#x}, {:#x}) of the stub's area", at, size));
  }
  GW_ASSIGN_OR_RETURN(const int64_t got, map(0, kFlags));
  if (got < 0)
    return errno_status(static_cast<int>(-got),
                        fmt::format("mmap({:#x}) of the stub's area", size));
  return RemoteAddress{static_cast<uint64_t>(got)};
}

}  // namespace

absl::StatusOr<StubArea> StubArea::map(StoppedTask& task, ImagePid tgid, size_t table_bytes,
                                       RemoteAddress near) {
  GW_ASSIGN_OR_RETURN(const Registers registers, task.registers());
  if (registers.cs != kUserCodeSegment64) {
    return make_error(absl::StatusCode::kUnimplemented, "task {} runs 32-bit code",
                      task.tid().value);
  }
  StubArea area;
  area.tgid_ = tgid;
  area.size_ =
      internal::kCodeSize + internal::slice_size(sizeof(internal::StubFrame) + table_bytes);
  GW_ASSIGN_OR_RETURN(const VdsoImage vdso, read_vdso(task.tid()));
  GW_ASSIGN_OR_RETURN(area.vdso_syscall_, vdso.syscall_instruction());
  const Home home = look_at_home(vdso.bytes);
  area.home_ = vdso.at + (vdso.bytes.size() - home_size());
  bool free = home == Home::kFree;
  if (home == Home::kUsedBefore) {
    GW_ASSIGN_OR_RETURN(free, all_have_left(task, area.home_));
  }
  if (free) {
    GW_RETURN_IF_ERROR(write_memory_forced(task.tid(), area.home_, stub_code()));
  } else {
    area.home_ = {0};
  }

  RemoteSyscalls calls = area.first_calls(task);
  GW_ASSIGN_OR_RETURN(area.address_, map_at(calls, area.size_, near));
  // On failure from here on the mapping goes again.
  const auto complete = [&]() -> absl::Status {
    GW_RETURN_IF_ERROR(write_memory(task.tid(), area.address_, stub_code()));
    return calls
        .must(SYS_mprotect,
              {area.address_.value, internal::kCodeSize, PROT_READ | PROT_EXEC, 0, 0, 0})
        .status();
  };
  if (absl::Status status = complete(); !status.ok()) {
    calls.call(SYS_munmap, {area.address_.value, area.size_, 0, 0, 0, 0}).IgnoreError();
    return status;
  }
  GW_RETURN_IF_ERROR(calls.finish());

  // The name is a comfort: a kernel without CONFIG_ANON_VMA_NAME says EINVAL.
  Batch naming;
  constexpr std::array kName{std::byte{'g'}, std::byte{'o'}, std::byte{'d'}, std::byte{'w'},
                             std::byte{'i'}, std::byte{'t'}, std::byte{0}};
  const Batch::Data name = naming.data(kName);
  naming.call(SYS_prctl, {PR_SET_VMA, PR_SET_VMA_ANON_NAME, area.address_, area.size_, name});
  // The pages that the first large batch needs are made now, and not in a freeze.
  constexpr size_t kLargeBatch = size_t{16} << 10;
  naming.reserve(std::min(table_bytes / 2, kLargeBatch));
  GW_ASSIGN_OR_RETURN(const ImagePid tid, internal::innermost_tid(task.tid()));
  GW_RETURN_IF_ERROR(area.run(task, tid, naming, Deadline::in(absl::Seconds(10))));
  return area;
}

RemoteAddress StubArea::own_syscall_instruction() const { return address_ + single_offset(); }

RemoteSyscalls StubArea::single_calls(StoppedTask& task) const {
  return RemoteSyscalls(task, own_syscall_instruction(),
                        address_ + internal::kCodeSize + internal::kGap);
}

RemoteSyscalls StubArea::first_calls(StoppedTask& task) const {
  if (home_.value == 0) return RemoteSyscalls(task, vdso_syscall_);
  return RemoteSyscalls(task, home_ + single_offset(), home_ + frame_offset());
}

absl::Status StubArea::grow(StoppedTask& task, size_t table_bytes) {
  GW_ASSIGN_OR_RETURN(StubArea larger, map(task, tgid_, table_bytes));
  RemoteSyscalls calls = larger.single_calls(task);
  GW_RETURN_IF_ERROR(calls.must(SYS_munmap, {address_.value, size_, 0, 0, 0, 0}).status());
  GW_RETURN_IF_ERROR(calls.finish());
  larger.vdso_syscall_ = vdso_syscall_;
  larger.kept_sets_ = kept_sets_;
  *this = std::move(larger);
  return absl::OkStatus();
}

absl::Status StubArea::unmap(StoppedTask& task) {
  RemoteSyscalls calls = first_calls(task);
  GW_RETURN_IF_ERROR(calls.must(SYS_munmap, {address_.value, size_, 0, 0, 0, 0}).status());
  GW_RETURN_IF_ERROR(calls.finish());
  if (home_.value == 0) return absl::OkStatus();
  const std::vector<std::byte> zeros(home_size());
  return write_memory_forced(task.tid(), home_, zeros);
}

absl::Status StubArea::start_unmap_below(StoppedTask& task) const {
  const HostPid tid = task.tid();
  Registers registers;
  GW_RETURN_IF_ERROR(internal::get_registers(tid, registers));
  registers.rip = own_syscall_instruction().value;
  registers.rax = SYS_munmap;
  registers.rdi = address_.value;
  registers.rsi = size_;
  registers.orig_rax = internal::kAllSignals;  // -1: not in a system call
  GW_RETURN_IF_ERROR(internal::set_registers(tid, registers));
  constexpr uint64_t kFault = uint64_t{1} << (SIGSEGV - 1);
  GW_RETURN_IF_ERROR(internal::set_signal_mask(tid, internal::kAllSignals & ~kFault));
  return internal::proceed(tid, PTRACE_CONT, 0);
}

absl::Status StubArea::finish_unmap_below(StoppedTask& task, Deadline deadline) const {
  const HostPid tid = task.tid();
  for (;;) {
    GW_ASSIGN_OR_RETURN(const internal::Stop stop, internal::wait_stop(tid, deadline));
    if (stop.is_group_stop()) task.group_stop_ = true;
    if (stop.is_signal_delivery() && stop.signal == SIGSEGV) break;
    // Everything else is blocked: SIGSTOP, or news of a group stop.
    GW_RETURN_IF_ERROR(
        internal::proceed(tid, PTRACE_CONT, stop.is_signal_delivery() ? stop.signal : 0));
  }
  constexpr uint64_t kSyscallBytes = 2;
  Registers now;
  GW_RETURN_IF_ERROR(internal::get_registers(tid, now));
  if (now.rip == own_syscall_instruction().value + kSyscallBytes && now.rax == 0)
    return absl::OkStatus();
  return make_error(absl::StatusCode::kInternal,
                    "task {}: the stub's area was not unmapped: rip {:#x}, rax {:#x}", tid.value,
                    uint64_t{now.rip}, uint64_t{now.rax});
}

bool StubArea::stands(HostPid pid) const {
  std::array<std::byte, 1> first{};
  return read_memory(pid, address_, first).ok();
}

absl::StatusOr<bool> StubArea::used_home(HostPid pid) {
  GW_ASSIGN_OR_RETURN(const VdsoImage vdso, read_vdso(pid));
  return look_at_home(vdso.bytes) == Home::kUsedBefore;
}

bool StubArea::at_home(HostPid pid, RemoteAddress at) {
  const auto vdso = read_vdso(pid);
  if (!vdso.ok() || vdso->bytes.size() < home_size()) return false;
  const uint64_t home = vdso->at.value + vdso->bytes.size() - home_size();
  return at.value >= home && at.value < home + home_size();
}

StubArea StubArea::for_child(ImagePid tgid) const {
  StubArea area;
  area.address_ = address_;
  area.size_ = size_;
  area.vdso_syscall_ = vdso_syscall_;
  area.home_ = home_;
  area.tgid_ = tgid;
  area.kept_sets_ = kept_sets_;
  return area;
}

}  // namespace godwit::tracee
