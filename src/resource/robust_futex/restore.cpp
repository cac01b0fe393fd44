#include <linux/futex.h>
#include <sys/syscall.h>

#include "resource/robust_futex/robust_futex.h"
#include "resource/robust_futex/robust_futex.pb.h"
#include "resource/state_codec.h"

namespace godwit::resource {

absl::StatusOr<TaskResource::Check> RobustFutexResource::restore(std::string_view bytes,
                                                                 const TaskView& husk,
                                                                 tracee::Batch& batch) const {
  GW_ASSIGN_OR_RETURN(const RobustFutexState state, parse_state<RobustFutexState>(bytes, name()));
  // set_robust_list(2) takes no other length, for no list (head 0) either.
  const uint64_t length = state.list_head() == 0 ? sizeof(robust_list_head) : state.list_length();
  const size_t list = batch.call(SYS_set_robust_list, {state.list_head(), length});
  const size_t address = batch.call(SYS_set_tid_address, {state.clear_child_tid()});
  return Check([=, tid = husk.tid](const tracee::Batch& done) {
    GW_RETURN_IF_ERROR(done.check(list));
    GW_RETURN_IF_ERROR(done.check(address));
    // It gives the caller's tid: a batch that ran in another task would be seen here.
    if (done.result(address) != tid.value)
      return make_error(absl::StatusCode::kInternal, "set_tid_address in task {} gave tid {}",
                        tid.value, done.result(address));
    return absl::OkStatus();
  });
}

}  // namespace godwit::resource
