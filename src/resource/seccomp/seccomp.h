// seccomp(2) mode of a task: there is nothing to restore, strict mode and filters are refused.
#ifndef GODWIT_RESOURCE_SECCOMP_SECCOMP_H_
#define GODWIT_RESOURCE_SECCOMP_SECCOMP_H_

#include "resource/resource.h"

namespace godwit::resource {

// A filter set between the precheck and the freeze makes the capture fail.
class SeccompResource final : public TaskResource {
 public:
  std::string_view name() const override { return "seccomp"; }
  Scope scope() const override { return Scope::kTask; }
  Phase phase() const override { return Phase::kEarly; }
  bool keeps_in_husk() const override { return true; }
  absl::StatusOr<Collect> capture(const TaskView& task, tracee::Batch& batch) const override;
  absl::StatusOr<Check> restore(std::string_view state, const TaskView& husk,
                                tracee::Batch& batch) const override;
  absl::Status precheck(const TaskView& task, std::vector<Refusal>& refusals) const override;
};
const TaskResource& seccomp_resource();

}  // namespace godwit::resource

#endif  // GODWIT_RESOURCE_SECCOMP_SECCOMP_H_
