// The three interval timers of a process (getitimer(2)).
#ifndef GODWIT_RESOURCE_ITIMERS_ITIMERS_H_
#define GODWIT_RESOURCE_ITIMERS_ITIMERS_H_

#include "resource/resource.h"

namespace godwit::resource {

// What was left of each at the capture is left of it at the restore: the freeze does not count.
class ItimersResource final : public TaskResource {
 public:
  std::string_view name() const override { return "itimers"; }
  Scope scope() const override { return Scope::kProcess; }
  Phase phase() const override { return Phase::kFinal; }
  absl::StatusOr<Collect> capture(const TaskView& task, tracee::Batch& batch) const override;
  absl::StatusOr<Check> restore(std::string_view state, const TaskView& husk,
                                tracee::Batch& batch) const override;
  absl::Status precheck(const TaskView& task, std::vector<Refusal>& refusals) const override;
};
const TaskResource& itimers_resource();

}  // namespace godwit::resource

#endif  // GODWIT_RESOURCE_ITIMERS_ITIMERS_H_
