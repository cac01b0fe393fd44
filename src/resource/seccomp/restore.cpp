#include "resource/seccomp/seccomp.h"
#include "resource/state_codec.h"

namespace godwit::resource {

absl::StatusOr<TaskResource::Check> SeccompResource::restore(std::string_view state,
                                                             const TaskView& husk,
                                                             tracee::Batch&) const {
  if (!state.empty())
    return make_error(absl::StatusCode::kDataLoss,
                      "task {}: seccomp has a state of {} bytes, there is none", husk.tid.value,
                      state.size());
  return Check{};
}

}  // namespace godwit::resource
