// seccomp(2) of a task: strict mode, or the filters that it has set or inherited.
//
// In a husk as in a source every call of ours goes past them (PTRACE_O_SUSPEND_SECCOMP), so that
// they may be set before anything else: as long as the task is privileged, which needs no
// no_new_privs then.
#ifndef GODWIT_RESOURCE_SECCOMP_SECCOMP_H_
#define GODWIT_RESOURCE_SECCOMP_SECCOMP_H_

#include "resource/resource.h"

namespace godwit::resource {

class SeccompResource final : public TaskResource {
 public:
  std::string_view name() const override { return "seccomp"; }
  Scope scope() const override { return Scope::kTask; }
  Phase phase() const override { return Phase::kFinal; }  // filters only become more
  bool keeps_in_husk() const override { return true; }
  absl::StatusOr<Collect> capture(const TaskView& task, tracee::Batch& batch) const override;
  absl::StatusOr<Check> restore(std::string_view state, const TaskView& husk,
                                tracee::Batch& batch) const override;
  // Filters are shown only of a stopped task: one that has some is stopped for a moment.
  absl::Status precheck(const TaskView& task, std::vector<Refusal>& refusals) const override;
};
const TaskResource& seccomp_resource();

}  // namespace godwit::resource

#endif  // GODWIT_RESOURCE_SECCOMP_SECCOMP_H_
