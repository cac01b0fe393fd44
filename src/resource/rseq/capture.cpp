#include <string>

#include "resource/rseq/rseq.h"
#include "resource/rseq/rseq.pb.h"
#include "resource/state_codec.h"

namespace godwit::resource {

absl::StatusOr<TaskResource::Collect> RseqResource::capture(const TaskView& view,
                                                            tracee::Batch&) const {
  if (view.task == nullptr)
    return make_error(absl::StatusCode::kFailedPrecondition, "{} of running task {}", name(),
                      view.host_tid.value);
  GW_RETURN_IF_ERROR(leave_critical_section(*view.task).status());
  GW_ASSIGN_OR_RETURN(const ptrace_rseq_configuration area, view.task->rseq());
  RseqState state;
  if (area.rseq_abi_pointer != 0) {
    state.set_address(area.rseq_abi_pointer);
    state.set_length(area.rseq_abi_size);
    state.set_signature(area.signature);
    state.set_flags(area.flags);
  }
  return Collect([bytes = state.SerializeAsString()](
                     const tracee::Batch&) -> absl::StatusOr<std::string> { return bytes; });
}

absl::Status RseqResource::precheck(const TaskView&, std::vector<Refusal>&) const {
  return absl::OkStatus();
}

std::vector<AddressRange> RseqResource::written_by_kernel(std::string_view bytes) const {
  RseqState state;
  if (!state.ParseFromString(std::string(bytes)) || state.address() == 0 ||
      state.address() > UINT64_MAX - state.length())
    return {};
  return {{state.address(), state.address() + state.length()}};
}

const TaskResource& rseq_resource() {
  static const RseqResource resource;
  return resource;
}

}  // namespace godwit::resource
