// General, floating point and vector registers and the signal mask of a task, by PTRACE_GETREGSET,
// PTRACE_GETSIGMASK and their SET forms (ptrace(2)).
#ifndef GODWIT_RESOURCE_REGISTERS_REGISTERS_H_
#define GODWIT_RESOURCE_REGISTERS_REGISTERS_H_

#include "resource/resource.h"

namespace godwit::resource {

// The mask is restored here and not earlier: until the last batch has run, a husk blocks all
// signals.
class RegistersResource final : public TaskResource {
 public:
  std::string_view name() const override { return "registers"; }
  Scope scope() const override { return Scope::kTask; }
  Phase phase() const override { return Phase::kLast; }
  absl::StatusOr<Collect> capture(const TaskView& task, tracee::Batch& batch) const override;
  absl::StatusOr<Check> restore(std::string_view state, const TaskView& husk,
                                tracee::Batch& batch) const override;
  absl::Status precheck(const TaskView& task, std::vector<Refusal>& refusals) const override;
};
const TaskResource& registers_resource();

}  // namespace godwit::resource

#endif  // GODWIT_RESOURCE_REGISTERS_REGISTERS_H_
