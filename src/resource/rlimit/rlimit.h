// Resource limits of a process (getrlimit(2), prlimit(2)).
#ifndef GODWIT_RESOURCE_RLIMIT_RLIMIT_H_
#define GODWIT_RESOURCE_RLIMIT_RLIMIT_H_

#include "resource/resource.h"

namespace godwit::resource {

// Stands after the descriptors (RLIMIT_NOFILE may be below an open one) and before the credentials.
class RlimitResource final : public TaskResource {
 public:
  std::string_view name() const override { return "rlimit"; }
  Scope scope() const override { return Scope::kProcess; }
  Phase phase() const override { return Phase::kFinal; }
  bool keeps_in_husk() const override { return true; }
  absl::StatusOr<Collect> capture(const TaskView& task, tracee::Batch& batch) const override;
  absl::StatusOr<Check> restore(std::string_view state, const TaskView& husk,
                                tracee::Batch& batch) const override;
  absl::Status precheck(const TaskView& task, std::vector<Refusal>& refusals) const override;
};
const TaskResource& rlimit_resource();

}  // namespace godwit::resource

#endif  // GODWIT_RESOURCE_RLIMIT_RLIMIT_H_
