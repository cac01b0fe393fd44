#include <linux/rseq.h>
#include <sys/syscall.h>

#include "resource/rseq/rseq.h"
#include "resource/rseq/rseq.pb.h"
#include "resource/state_codec.h"

namespace godwit::resource {

absl::StatusOr<TaskResource::Check> RseqResource::restore(std::string_view bytes,
                                                          const TaskView& husk,
                                                          tracee::Batch& batch) const {
  GW_ASSIGN_OR_RETURN(const RseqState state, parse_state<RseqState>(bytes, name()));
  GW_ASSIGN_OR_RETURN(const ptrace_rseq_configuration now, husk.task->rseq());
  const bool same = now.rseq_abi_pointer == state.address() &&
                    now.rseq_abi_size == state.length() && now.signature == state.signature();
  if (same) return Check{};
  std::vector<size_t> calls;
  if (now.rseq_abi_pointer != 0)
    calls.push_back(batch.call(SYS_rseq, {uint64_t{now.rseq_abi_pointer}, now.rseq_abi_size,
                                          RSEQ_FLAG_UNREGISTER, now.signature}));
  if (state.address() != 0)
    calls.push_back(
        batch.call(SYS_rseq, {state.address(), state.length(), state.flags(), state.signature()}));
  return Check([calls](const tracee::Batch& done) {
    for (const size_t call : calls) GW_RETURN_IF_ERROR(done.check(call));
    return absl::OkStatus();
  });
}

}  // namespace godwit::resource
