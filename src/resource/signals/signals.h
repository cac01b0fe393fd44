// Signal dispositions, alternate signal stacks and pending signals (signal(7)).
#ifndef GODWIT_RESOURCE_SIGNALS_SIGNALS_H_
#define GODWIT_RESOURCE_SIGNALS_SIGNALS_H_

#include "resource/resource.h"

namespace godwit::resource {

// rt_sigaction(2) of all 64 signals.
class SignalActionsResource final : public TaskResource {
 public:
  std::string_view name() const override { return "signal_actions"; }
  Scope scope() const override { return Scope::kProcess; }
  Phase phase() const override { return Phase::kEarly; }
  bool keeps_in_husk() const override { return true; }
  absl::StatusOr<Collect> capture(const TaskView& task, tracee::Batch& batch) const override;
  absl::StatusOr<Check> restore(std::string_view state, const TaskView& husk,
                                tracee::Batch& batch) const override;
  absl::Status precheck(const TaskView& task, std::vector<Refusal>& refusals) const override;
};
const TaskResource& signal_actions_resource();

// sigaltstack(2). Early: a husk never runs on it, so SS_ONSTACK cannot forbid the change.
class SignalStackResource final : public TaskResource {
 public:
  std::string_view name() const override { return "signal_stack"; }
  Scope scope() const override { return Scope::kTask; }
  Phase phase() const override { return Phase::kEarly; }
  bool keeps_in_husk() const override { return true; }
  absl::StatusOr<Collect> capture(const TaskView& task, tracee::Batch& batch) const override;
  absl::StatusOr<Check> restore(std::string_view state, const TaskView& husk,
                                tracee::Batch& batch) const override;
  absl::Status precheck(const TaskView& task, std::vector<Refusal>& refusals) const override;
};
const TaskResource& signal_stack_resource();

// Throws away what became pending in a husk by its making (SIGCHLD, SIGCONT). Stands before all
// that can make a signal pending: timers and the two below.
class SignalFlushResource final : public TaskResource {
 public:
  std::string_view name() const override { return "signal_flush"; }
  Scope scope() const override { return Scope::kTask; }
  Phase phase() const override { return Phase::kFinal; }
  absl::StatusOr<Collect> capture(const TaskView& task, tracee::Batch& batch) const override;
  absl::StatusOr<Check> restore(std::string_view state, const TaskView& husk,
                                tracee::Batch& batch) const override;
  absl::Status precheck(const TaskView& task, std::vector<Refusal>& refusals) const override;
};
const TaskResource& signal_flush_resource();

// Signals sent to the process. Stands after the timers: one that fires while they are read is then
// captured as pending.
class ProcessPendingSignalsResource final : public TaskResource {
 public:
  std::string_view name() const override { return "process_pending_signals"; }
  Scope scope() const override { return Scope::kProcess; }
  Phase phase() const override { return Phase::kFinal; }
  absl::StatusOr<Collect> capture(const TaskView& task, tracee::Batch& batch) const override;
  absl::StatusOr<Check> restore(std::string_view state, const TaskView& husk,
                                tracee::Batch& batch) const override;
  absl::Status precheck(const TaskView& task, std::vector<Refusal>& refusals) const override;
};
const TaskResource& process_pending_signals_resource();

// Signals sent to one task of it.
class TaskPendingSignalsResource final : public TaskResource {
 public:
  std::string_view name() const override { return "task_pending_signals"; }
  Scope scope() const override { return Scope::kTask; }
  Phase phase() const override { return Phase::kFinal; }
  absl::StatusOr<Collect> capture(const TaskView& task, tracee::Batch& batch) const override;
  absl::StatusOr<Check> restore(std::string_view state, const TaskView& husk,
                                tracee::Batch& batch) const override;
  absl::Status precheck(const TaskView& task, std::vector<Refusal>& refusals) const override;
};
const TaskResource& task_pending_signals_resource();

}  // namespace godwit::resource

#endif  // GODWIT_RESOURCE_SIGNALS_SIGNALS_H_
