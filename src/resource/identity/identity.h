// Names and prctl(2) settings of tasks and processes.
#ifndef GODWIT_RESOURCE_IDENTITY_IDENTITY_H_
#define GODWIT_RESOURCE_IDENTITY_IDENTITY_H_

#include "resource/resource.h"

namespace godwit::resource {

// Name, parent-death signal, personality, TSC, machine checks, speculation. Stands after the
// credentials, which clear the parent-death signal.
class TaskIdentityResource final : public TaskResource {
 public:
  std::string_view name() const override { return "task_identity"; }
  Scope scope() const override { return Scope::kTask; }
  Phase phase() const override { return Phase::kFinal; }
  bool keeps_in_husk() const override { return true; }
  absl::StatusOr<Collect> capture(const TaskView& task, tracee::Batch& batch) const override;
  std::optional<std::string> decided_by(const SeenTask& task) const override;
  absl::StatusOr<Check> restore(std::string_view state, const TaskView& husk,
                                tracee::Batch& batch) const override;
  absl::Status precheck(const TaskView& task, std::vector<Refusal>& refusals) const override;
};
const TaskResource& task_identity_resource();

// umask, subreaper, and settings of the memory: huge pages, merging, MDWE, what a core has.
class ProcessIdentityResource final : public TaskResource {
 public:
  std::string_view name() const override { return "process_identity"; }
  Scope scope() const override { return Scope::kProcess; }
  Phase phase() const override { return Phase::kFinal; }
  bool keeps_in_husk() const override { return true; }
  absl::StatusOr<Collect> capture(const TaskView& task, tracee::Batch& batch) const override;
  absl::StatusOr<Check> restore(std::string_view state, const TaskView& husk,
                                tracee::Batch& batch) const override;
  absl::Status precheck(const TaskView& task, std::vector<Refusal>& refusals) const override;
};
const TaskResource& process_identity_resource();

}  // namespace godwit::resource

#endif  // GODWIT_RESOURCE_IDENTITY_IDENTITY_H_
