// How tasks are scheduled (sched(7)), I/O priority (ioprio_set(2)), timer slack
// (PR_SET_TIMERSLACK)\nand the OOM killer's adjustment (proc_pid_oom_score_adj(5)).
#ifndef GODWIT_RESOURCE_SCHEDULING_SCHEDULING_H_
#define GODWIT_RESOURCE_SCHEDULING_SCHEDULING_H_

#include "resource/resource.h"

namespace godwit::resource {

// The very last: a husk under SCHED_IDLE or nice 19 would run the batches of the switchover late.
class SchedulingResource final : public TaskResource {
 public:
  std::string_view name() const override { return "scheduling"; }
  Scope scope() const override { return Scope::kTask; }
  Phase phase() const override { return Phase::kLast; }
  absl::StatusOr<Collect> capture(const TaskView& task, tracee::Batch& batch) const override;
  absl::StatusOr<Check> restore(std::string_view state, const TaskView& husk,
                                tracee::Batch& batch) const override;
  absl::Status precheck(const TaskView& task, std::vector<Refusal>& refusals) const override;
};
const TaskResource& scheduling_resource();

// To go below what the process was born with needs CAP_SYS_RESOURCE.
class OomScoreAdjResource final : public TaskResource {
 public:
  std::string_view name() const override { return "oom_score_adj"; }
  Scope scope() const override { return Scope::kProcess; }
  Phase phase() const override { return Phase::kEarly; }
  bool keeps_in_husk() const override { return true; }
  absl::StatusOr<Collect> capture(const TaskView& task, tracee::Batch& batch) const override;
  absl::StatusOr<Check> restore(std::string_view state, const TaskView& husk,
                                tracee::Batch& batch) const override;
  absl::Status precheck(const TaskView& task, std::vector<Refusal>& refusals) const override;
};
const TaskResource& oom_score_adj_resource();

}  // namespace godwit::resource

#endif  // GODWIT_RESOURCE_SCHEDULING_SCHEDULING_H_
