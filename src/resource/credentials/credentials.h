// Who a task is to the kernel: users, groups, capabilities, securebits, no_new_privs, dumpable
// (credentials(7), capabilities(7)).
#ifndef GODWIT_RESOURCE_CREDENTIALS_CREDENTIALS_H_
#define GODWIT_RESOURCE_CREDENTIALS_CREDENTIALS_H_

#include "resource/resource.h"

namespace godwit::resource {

// Stands after everything for which a husk needs to be root, and before the parent-death signal
// (identity), which every change of users clears (commit_creds(), kernel/cred.c). A husk has none
// to lose: clone(2) gives none.
class CredentialsResource final : public TaskResource {
 public:
  std::string_view name() const override { return "credentials"; }
  Scope scope() const override { return Scope::kTask; }
  Phase phase() const override { return Phase::kFinal; }
  bool keeps_in_husk() const override { return true; }
  absl::StatusOr<Collect> capture(const TaskView& task, tracee::Batch& batch) const override;
  std::optional<std::string> decided_by(const SeenTask& task) const override;
  absl::StatusOr<Check> restore(std::string_view state, const TaskView& husk,
                                tracee::Batch& batch) const override;
  absl::Status precheck(const TaskView& task, std::vector<Refusal>& refusals) const override;
};
const TaskResource& credentials_resource();

}  // namespace godwit::resource

#endif  // GODWIT_RESOURCE_CREDENTIALS_CREDENTIALS_H_
