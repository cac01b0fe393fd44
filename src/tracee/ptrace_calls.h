// ptrace(2) requests and the wait for a stop, as the classes of this folder use them. Not for
// other folders.
#ifndef GODWIT_TRACEE_PTRACE_CALLS_H_
#define GODWIT_TRACEE_PTRACE_CALLS_H_

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/clock.h"
#include "base/ids.h"
#include "tracee/task.h"

namespace godwit::tracee::internal {

// A wait status, decoded once (ptrace(2), "Stopped states").
struct Stop {
  int signal = 0;              // the signal of a signal-delivery stop or a group stop
  int event = 0;               // PTRACE_EVENT_*
  bool syscall = false;        // syscall-entry or -exit stop (PTRACE_O_TRACESYSGOOD)
  bool is_event_stop() const;  // PTRACE_EVENT_STOP: interrupt, group stop, first stop
  bool is_group_stop() const;  // PTRACE_EVENT_STOP while the group is stopped
  bool is_signal_delivery() const { return event == 0 && !syscall; }
};

constexpr unsigned long kBaseOptions = PTRACE_O_TRACESYSGOOD;
constexpr uint64_t kAllSignals = ~uint64_t{0};

// Waits for the next stop of `tid`. ESRCH when it has ended (the end is reaped) or has become a
// zombie leader of threads that still run. kDeadlineExceeded names the state it hangs in.
absl::StatusOr<Stop> wait_stop(HostPid tid, Deadline deadline);

// Whether wait_stop() has something to return by `deadline`; it is still there for it.
bool stops_until(HostPid tid, Deadline deadline);

// A ptrace request whose result is only success. `name` is for the message.
absl::Status request(long request, std::string_view name, HostPid tid, uint64_t address,
                     uint64_t data);

absl::Status interrupt(HostPid tid);
// `how`: PTRACE_CONT or PTRACE_SYSCALL.
absl::Status proceed(HostPid tid, long how, int signal);
absl::Status get_registers(HostPid tid, Registers& registers);
absl::Status set_registers(HostPid tid, const Registers& registers);
absl::Status get_signal_mask(HostPid tid, uint64_t& mask);
absl::Status set_signal_mask(HostPid tid, uint64_t mask);

// From any stop to a PTRACE_EVENT_STOP without one instruction of the task run: the pending trap
// is taken inside get_signal() before the return to user mode. `signal` is passed on (0: none).
// Stop signals that come first are passed on too. Every StoppedTask at rest is in such a stop, or
// in a signal-delivery stop: only there the kernel looks at orig_rax and the -ERESTART codes when
// the task goes on (arch/x86/kernel/signal.c, arch_do_signal_or_restart); after a syscall-exit
// stop the program would see them.
absl::StatusOr<Stop> settle(HostPid tid, int signal, Deadline deadline);

// Dispositions of the process, of signals 1 to 31.
struct SignalSets {
  uint64_t ignored = 0;
  uint64_t caught = 0;
};
absl::StatusOr<SignalSets> signal_sets(HostPid tid);

// In our pid namespace.
absl::StatusOr<HostPid> parent_of(HostPid pid);

// The task's tid in its own pid namespace: the last of NSpid (Linux 4.1).
absl::StatusOr<ImagePid> innermost_tid(HostPid tid);

// One letter, as in proc(5) stat: R S D T t Z X; 0 when there is no such task.
char task_state(HostPid tid);

// The tids of the thread group of `pid` (any of its tids); empty when it has gone.
absl::StatusOr<std::vector<HostPid>> tasks_of(HostPid pid);

absl::StatusOr<std::string> read_proc_file(const std::string& path);

}  // namespace godwit::tracee::internal

#endif  // GODWIT_TRACEE_PTRACE_CALLS_H_
