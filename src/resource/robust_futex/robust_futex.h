// What the kernel does with futexes when a task ends: the robust list (get_robust_list(2)) and the
// address to clear and wake (set_tid_address(2)).
#ifndef GODWIT_RESOURCE_ROBUST_FUTEX_ROBUST_FUTEX_H_
#define GODWIT_RESOURCE_ROBUST_FUTEX_ROBUST_FUTEX_H_

#include "resource/resource.h"

namespace godwit::resource {

// Final: a husk that is killed before would mark locks in shared memory.
class RobustFutexResource final : public TaskResource {
 public:
  std::string_view name() const override { return "robust_futex"; }
  Scope scope() const override { return Scope::kTask; }
  Phase phase() const override { return Phase::kFinal; }
  bool keeps_in_husk() const override { return true; }
  absl::StatusOr<Collect> capture(const TaskView& task, tracee::Batch& batch) const override;
  absl::StatusOr<Check> restore(std::string_view state, const TaskView& husk,
                                tracee::Batch& batch) const override;
  absl::Status precheck(const TaskView& task, std::vector<Refusal>& refusals) const override;
};
const TaskResource& robust_futex_resource();

}  // namespace godwit::resource

#endif  // GODWIT_RESOURCE_ROBUST_FUTEX_ROBUST_FUTEX_H_
