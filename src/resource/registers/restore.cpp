#include <array>
#include <cstring>

#include "resource/registers/registers.h"
#include "resource/registers/registers.pb.h"
#include "resource/state_codec.h"

namespace godwit::resource {

absl::StatusOr<TaskResource::Check> RegistersResource::restore(std::string_view bytes,
                                                               const TaskView& husk,
                                                               tracee::Batch&) const {
  GW_ASSIGN_OR_RETURN(const RegistersState state, parse_state<RegistersState>(bytes, name()));
  std::array<uint64_t, sizeof(tracee::Registers) / sizeof(uint64_t)> general;
  if (static_cast<size_t>(state.general_size()) != general.size())
    return make_error(absl::StatusCode::kDataLoss, "state of registers has {} values, not {}",
                      state.general_size(), general.size());
  std::copy(state.general().begin(), state.general().end(), general.begin());
  tracee::Registers registers;
  std::memcpy(&registers, general.data(), sizeof registers);

  // PTRACE_SETREGSET takes a shorter xstate too and leaves the rest as it was in the husk; a
  // longer one names components that this CPU has not.
  GW_ASSIGN_OR_RETURN(std::vector<std::byte> xstate, husk.task->xstate());
  if (xstate.size() != state.xstate().size())
    return make_error(absl::StatusCode::kFailedPrecondition,
                      "task {}: floating point and vector state has {} bytes at the source, {} "
                      "here: the CPUs or kernels differ; enable the same CPU features on both",
                      husk.tid.value, state.xstate().size(), xstate.size());
  std::memcpy(xstate.data(), state.xstate().data(), xstate.size());

  GW_RETURN_IF_ERROR(husk.task->set_registers(registers));
  GW_RETURN_IF_ERROR(husk.task->set_xstate(xstate));
  GW_RETURN_IF_ERROR(husk.task->set_signal_mask(state.signal_mask()));
  return Check{};
}

}  // namespace godwit::resource
