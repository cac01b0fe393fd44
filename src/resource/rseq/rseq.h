// The restartable-sequences area of a task (rseq(2), Linux 4.18).
#ifndef GODWIT_RESOURCE_RSEQ_RSEQ_H_
#define GODWIT_RESOURCE_RSEQ_RSEQ_H_

#include "resource/resource.h"

namespace godwit::resource {

// The page of the area must be there: the kernel writes to it in the batch (a fault it cannot
// resolve is a SIGSEGV).
class RseqResource final : public TaskResource {
 public:
  std::string_view name() const override { return "rseq"; }
  Scope scope() const override { return Scope::kTask; }
  Phase phase() const override { return Phase::kFinal; }
  bool keeps_in_husk() const override { return true; }
  absl::StatusOr<Collect> capture(const TaskView& task, tracee::Batch& batch) const override;
  absl::StatusOr<Check> restore(std::string_view state, const TaskView& husk,
                                tracee::Batch& batch) const override;
  absl::Status precheck(const TaskView& task, std::vector<Refusal>& refusals) const override;
  // The area: numbers of CPU, node and concurrency (rseq_update_cpu_node_id(), kernel/rseq.c).
  std::vector<AddressRange> written_by_kernel(std::string_view state) const override;
};
const TaskResource& rseq_resource();

// A critical section that the task stopped in must be left before its rip is moved for a batch: the
// kernel compares rip at the next return to user mode, finds it elsewhere and clears rseq_cs, and
// the section would go on unprotected. A ptrace stop is a preemption, after which the kernel aborts
// the section anyway; this does the same now: rip becomes the abort handler, rseq_cs 0.
// True if the task was in one. To be called after every stop before anything runs in the task.
absl::StatusOr<bool> leave_critical_section(tracee::StoppedTask& task);

}  // namespace godwit::resource

#endif  // GODWIT_RESOURCE_RSEQ_RSEQ_H_
