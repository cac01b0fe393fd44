// Linux facts: kernel/signal.c. A blocked signal is never dropped when it is sent, an ignored one
// is unless the task is traced; a task may send itself any siginfo (rt_tgsigqueueinfo), and with
// si_code >= 0 a standard signal is queued past RLIMIT_SIGPENDING; a task's own queue is served
// before its process's; a signal that is blocked when its signal-delivery stop ends goes back into
// its queue with its siginfo (ptrace_signal); a pending interrupt is taken before any signal.
#include <sys/ptrace.h>
#include <sys/syscall.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <cstring>
#include <vector>

#include "base/status.h"
#include "tracee/batch.h"
#include "tracee/memory.h"
#include "tracee/ptrace_calls.h"
#include "tracee/stub_frame.h"
#include "tracee/syscall_restart.h"

namespace godwit::tracee {
namespace {

using internal::kCodeSize;
using internal::kGap;
using internal::slice_size;

constexpr absl::Duration kAbandonTime = absl::Seconds(2);
// No pid is as large (PID_MAX_LIMIT is 2^22): the sender of our end marks.
constexpr int32_t kMarkPid = 0x47570001;

constexpr uint64_t bit(int signal) { return uint64_t{1} << (signal - 1); }

struct Mark {
  int signal = 0;        // 0: by syscall stops
  bool blocked = false;  // by the program
};

// See the head of StubArea.
absl::StatusOr<Mark> choose_mark(const StoppedTask& task, uint64_t mask,
                                 const internal::SignalSets& sets) {
  constexpr std::array kIgnoredByDefault{SIGURG, SIGWINCH, SIGCHLD};
  // Those whose number alone makes the kernel or the machine act are left out.
  constexpr uint64_t kStandard = (uint64_t{1} << 31) - 1;
  constexpr uint64_t kNever = bit(SIGKILL) | bit(SIGSTOP) | bit(SIGCONT) | bit(SIGTSTP) |
                              bit(SIGTTIN) | bit(SIGTTOU) | bit(SIGSEGV) | bit(SIGBUS) |
                              bit(SIGFPE) | bit(SIGILL) | bit(SIGTRAP) | bit(SIGSYS);
  uint64_t candidates = sets.ignored & kStandard & ~kNever;
  for (const int signal : kIgnoredByDefault) candidates |= bit(signal) & ~sets.caught;
  if (const uint64_t open = candidates & ~mask; open != 0) {
    for (const int signal : kIgnoredByDefault) {
      if (open & bit(signal)) return Mark{.signal = signal, .blocked = false};
    }
    return Mark{.signal = std::countr_zero(open) + 1, .blocked = false};
  }
  if (candidates == 0) return Mark{};
  // A standard signal is queued once: one of the program's would swallow ours.
  GW_ASSIGN_OR_RETURN(const auto pending, task.pending_signals(/*of_process=*/false));
  for (const siginfo_t& info : pending) {
    if (info.si_signo < 32) candidates &= ~bit(info.si_signo);
  }
  if (candidates == 0) return Mark{};
  return Mark{.signal = std::countr_zero(candidates) + 1, .blocked = true};
}

// A siginfo that only we send: SI_USER from a process that cannot be.
siginfo_t mark_siginfo(int signal) {
  siginfo_t info{};
  info.si_signo = signal;
  info.si_code = SI_USER;
  info.si_pid = kMarkPid;
  return info;
}

absl::StatusOr<bool> is_our_mark(HostPid tid) {
  siginfo_t info{};
  GW_RETURN_IF_ERROR(internal::request(PTRACE_GETSIGINFO, "PTRACE_GETSIGINFO", tid, 0,
                                       reinterpret_cast<uint64_t>(&info)));
  return info.si_code == SI_USER && info.si_pid == kMarkPid;
}

}  // namespace

struct StubArea::Running {
  StoppedTask* task;
  ImagePid tid;
  Batch* batch;
  RemoteAddress frame;
  Registers saved;
  uint64_t mask = 0;
  Mark mark;
  std::vector<std::byte> image;
  bool started = false;
};

absl::Status StubArea::run(StoppedTask& task, ImagePid tid, Batch& batch, Deadline deadline) {
  Run one{.task = &task, .tid = tid, .batch = &batch};
  return run_all(std::span(&one, 1), deadline);
}

absl::Status StubArea::run_all(std::span<Run> runs, Deadline deadline) {
  GW_ASSIGN_OR_RETURN(Started started, start_all(runs, deadline));
  return started.finish();
}

absl::Status StubArea::reserve(std::span<Run> runs) {
  uint64_t need = 0;
  for (const Run& run : runs) need += slice_size(run.batch->image_size());
  return kCodeSize + need > size_ ? grow(*runs.front().task, 2 * need) : absl::OkStatus();
}

absl::StatusOr<StubArea::Started> StubArea::start_all(std::span<Run> runs, Deadline deadline) {
  GW_RETURN_IF_ERROR(reserve(runs));
  Started started(*this, deadline);
  if (runs.empty()) return started;
  GW_ASSIGN_OR_RETURN(const internal::SignalSets sets,
                      kept_sets_ ? absl::StatusOr<internal::SignalSets>(*kept_sets_)
                                 : internal::signal_sets(runs.front().task->tid()));
  started.all_.reserve(runs.size());
  RemoteAddress slice = address_ + kCodeSize;
  for (const Run& run : runs) {
    Running& running = started.all_.emplace_back(Running{.task = run.task,
                                                         .tid = run.tid,
                                                         .batch = run.batch,
                                                         .frame = slice + kGap,
                                                         .saved = {},
                                                         .mark = {},
                                                         .image = {}});
    slice = slice + slice_size(run.batch->image_size());
    GW_RETURN_IF_ERROR(start(running, sets));
  }
  return started;
}

StubArea::Started::Started(const StubArea& area, Deadline deadline)
    : area_(&area), deadline_(deadline) {}

StubArea::Started::Started(Started&& other) noexcept
    : area_(other.area_), deadline_(other.deadline_), all_(std::move(other.all_)) {
  other.all_.clear();
}

StubArea::Started::~Started() { finish().IgnoreError(); }

absl::Status StubArea::Started::finish() {
  absl::Status result;
  for (const Running& running : all_)
    for (const auto& work : running.batch->meanwhile_) result.Update(work());
  for (Running& running : all_)
    if (running.started) result.Update(area_->finish(running, deadline_));
  all_.clear();
  return result;
}

absl::Status StubArea::keep_signal_sets(const StoppedTask& task) {
  GW_ASSIGN_OR_RETURN(internal::SignalSets sets, internal::signal_sets(task.tid()));
  kept_sets_ = std::make_shared<const internal::SignalSets>(sets);
  return absl::OkStatus();
}

absl::Status StubArea::start(Running& running, const internal::SignalSets& sets) const {
  StoppedTask& task = *running.task;
  const HostPid tid = task.tid();
  running.batch->new_tasks_.clear();
  GW_RETURN_IF_ERROR(internal::get_registers(tid, running.saved));
  GW_RETURN_IF_ERROR(internal::get_signal_mask(tid, running.mask));
  GW_ASSIGN_OR_RETURN(running.mark, choose_mark(task, running.mask, sets));
  const Mark& mark = running.mark;

  std::vector<std::byte>& image = running.image;
  running.batch->make_image(running.frame, image);
  internal::StubFrame frame{};
  std::memcpy(&frame, image.data(), sizeof frame);
  frame.all_mask = internal::kAllSignals;
  frame.mark_mask = internal::kAllSignals;
  frame.saved_mask = running.mask;
  frame.mark_nr = SYS_getpid;
  if (mark.signal != 0) {
    frame.mark_mask &= ~bit(mark.signal);
    frame.mark_nr = SYS_rt_tgsigqueueinfo;
    frame.mark_arguments[0] = static_cast<uint64_t>(tgid_.value);
    frame.mark_arguments[1] = static_cast<uint64_t>(running.tid.value);
    frame.mark_arguments[2] = static_cast<uint64_t>(mark.signal);
    const siginfo_t info = mark_siginfo(mark.signal);
    static_assert(sizeof info == sizeof frame.siginfo);
    std::memcpy(frame.siginfo.data(), &info, sizeof info);
  }
  // The tail is a plain jump, without the kernel's restart of system calls.
  internal::save_registers(registers_rewound(running.saved), frame);
  std::memcpy(image.data(), &frame, sizeof frame);
  GW_RETURN_IF_ERROR(write_memory(tid, running.frame, image));

  // From here on the task finishes the batch by itself if we die. The mask comes second: blocked
  // signals under the program's own registers would stay blocked for ever.
  Registers registers = running.saved;
  registers.rip = address_.value;
  registers.rbx = running.frame.value;
  registers.orig_rax = internal::kAllSignals;  // -1: not in a system call
  GW_RETURN_IF_ERROR(internal::set_registers(tid, registers));
  GW_RETURN_IF_ERROR(internal::set_signal_mask(tid, internal::kAllSignals));
  GW_RETURN_IF_ERROR(internal::proceed(tid, mark.signal != 0 ? PTRACE_CONT : PTRACE_SYSCALL, 0));
  running.started = true;
  return absl::OkStatus();
}

// Waits for the end mark and leaves the task in a stop from which it may go on.
absl::Status StubArea::wait_mark(Running& running, Deadline deadline) const {
  StoppedTask& task = *running.task;
  const HostPid tid = task.tid();
  const long how = running.mark.signal != 0 ? PTRACE_CONT : PTRACE_SYSCALL;
  const auto settle = [&](int signal) -> absl::Status {
    GW_ASSIGN_OR_RETURN(const internal::Stop stop, internal::settle(tid, signal, deadline));
    if (stop.is_group_stop()) task.group_stop_ = true;
    return absl::OkStatus();
  };
  for (;;) {
    GW_ASSIGN_OR_RETURN(const internal::Stop stop, internal::wait_stop(tid, deadline));
    if (stop.is_group_stop()) task.group_stop_ = true;
    if (stop.event == PTRACE_EVENT_CLONE || stop.event == PTRACE_EVENT_FORK ||
        stop.event == PTRACE_EVENT_VFORK) {
      GW_ASSIGN_OR_RETURN(const unsigned long child, task.event_message());
      running.batch->new_tasks_.push_back(HostPid{static_cast<pid_t>(child)});
    }
    if (stop.syscall) {
      Registers now;
      GW_RETURN_IF_ERROR(internal::get_registers(tid, now));
      if (now.orig_rax == SYS_rt_sigprocmask &&
          now.rsi == running.frame.value + STUB_FRAME_MARK_MASK) {
        return settle(0);
      }
    }
    if (stop.is_signal_delivery() && stop.signal == running.mark.signal) {
      if (!running.mark.blocked) return absl::OkStatus();
      // The program has this signal blocked and may be waiting for one: if we died in this stop
      // with its mask put back, ours would be left in its queue.
      GW_ASSIGN_OR_RETURN(const bool ours, is_our_mark(tid));
      if (ours) return settle(0);
      // One of its own came first. Blocked again, it goes back to where it was.
      GW_RETURN_IF_ERROR(internal::set_signal_mask(tid, internal::kAllSignals));
      return settle(stop.signal);
    }
    // Everything else is blocked: SIGSTOP, or news of a group stop.
    GW_RETURN_IF_ERROR(internal::proceed(tid, how, stop.is_signal_delivery() ? stop.signal : 0));
  }
}

absl::Status StubArea::finish(Running& running, Deadline deadline) const {
  const HostPid tid = running.task->tid();
  absl::Status status = wait_mark(running, deadline);
  if (absl::IsDeadlineExceeded(status)) {
    // A call of the batch hangs: get it out of there.
    GW_RETURN_IF_ERROR(internal::interrupt(tid));
    GW_RETURN_IF_ERROR(internal::wait_stop(tid, Deadline::in(kAbandonTime)).status());
    GW_RETURN_IF_ERROR(internal::settle(tid, 0, Deadline::in(kAbandonTime)).status());
    status = annotate(status, "batch abandoned");
  } else if (!status.ok()) {
    return status;
  }
  std::vector<std::byte>& image = running.image;
  GW_RETURN_IF_ERROR(read_memory(tid, running.frame, image));
  internal::StubFrame frame;
  std::memcpy(&frame, image.data(), sizeof frame);
  if (frame.left != 0) {
    // The mark could not be queued (a wrong tid): the program runs again, its registers are its
    // own.
    Registers now;
    GW_RETURN_IF_ERROR(internal::get_registers(tid, now));
    repair_interrupted_syscall(now);
    GW_RETURN_IF_ERROR(internal::set_registers(tid, now));
    return make_error(absl::StatusCode::kInternal,
                      "task {} ran out of its batch: is {} its tid in its own pid namespace?",
                      tid.value, running.tid.value);
  }
  // The mask first: if we die in between, the stub's tail puts back both.
  GW_RETURN_IF_ERROR(internal::set_signal_mask(tid, running.mask));
  GW_RETURN_IF_ERROR(internal::set_registers(tid, running.saved));
  running.batch->take_image(image);
  return status;
}

}  // namespace godwit::tracee
