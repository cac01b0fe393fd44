#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <string>

#include "resource/robust_futex/robust_futex.h"
#include "resource/robust_futex/robust_futex.pb.h"
#include "resource/state_codec.h"

namespace godwit::resource {

absl::StatusOr<TaskResource::Collect> RobustFutexResource::capture(const TaskView& view,
                                                                   tracee::Batch& batch) const {
  if (view.task == nullptr)
    return make_error(absl::StatusCode::kFailedPrecondition, "{} of running task {}", name(),
                      view.host_tid.value);
  uint64_t head = 0;
  size_t length = 0;
  if (::syscall(SYS_get_robust_list, view.host_tid.value, &head, &length) != 0)
    return errno_status(errno, fmt::format("get_robust_list({})", view.host_tid.value));
  const auto state_of = [head, length](uint64_t clear_child_tid) {
    RobustFutexState state;
    state.set_list_head(head);
    // Reported also without a head.
    state.set_list_length(head == 0 ? 0 : length);
    state.set_clear_child_tid(clear_child_tid);
    return state.SerializeAsString();
  };
  if (view.seen != nullptr)
    return Collect([bytes = state_of(view.seen->clear_child_tid)](
                       const tracee::Batch&) -> absl::StatusOr<std::string> { return bytes; });
  // PR_GET_TID_ADDRESS: Linux 3.5, CONFIG_CHECKPOINT_RESTORE.
  const tracee::Batch::Data address = batch.reserve(sizeof(uint64_t));
  const size_t call = batch.call(SYS_prctl, {PR_GET_TID_ADDRESS, address, 0, 0, 0});
  return Collect([=](const tracee::Batch& done) -> absl::StatusOr<std::string> {
    GW_RETURN_IF_ERROR(done.check(call));
    return state_of(value_in<uint64_t>(done, address));
  });
}

absl::Status RobustFutexResource::precheck(const TaskView&, std::vector<Refusal>&) const {
  return absl::OkStatus();
}

const TaskResource& robust_futex_resource() {
  static const RobustFutexResource resource;
  return resource;
}

}  // namespace godwit::resource
