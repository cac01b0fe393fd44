// By batch, from the process itself: prlimit(2) on a process of another user needs
// CAP_SYS_RESOURCE. While it runs, /proc/PID/limits.
#include <sys/resource.h>
#include <sys/syscall.h>

#include <string>

#include "kernel/proc/limits.h"
#include "resource/rlimit/rlimit.h"
#include "resource/rlimit/rlimit.pb.h"
#include "resource/state_codec.h"

namespace godwit::resource {
namespace {

static_assert(sizeof(rlimit) == 2 * sizeof(uint64_t));  // the struct rlimit64 of prlimit64(2)

std::string state_of(const kernel::Limits& limits) {
  RlimitState state;
  for (const rlimit& limit : limits) {
    Rlimit& one = *state.add_limits();
    one.set_soft(limit.rlim_cur);
    one.set_hard(limit.rlim_max);
  }
  return state.SerializeAsString();
}

}  // namespace

absl::StatusOr<TaskResource::Collect> RlimitResource::capture(const TaskView& view,
                                                              tracee::Batch& batch) const {
  if (view.task == nullptr) {
    GW_ASSIGN_OR_RETURN(const kernel::Limits limits, kernel::read_limits(view.host_tgid));
    return Collect([bytes = state_of(limits)](const tracee::Batch&) -> absl::StatusOr<std::string> {
      return bytes;
    });
  }
  const tracee::Batch::Data all = batch.reserve(RLIM_NLIMITS * sizeof(rlimit));
  std::vector<size_t> calls;
  for (size_t i = 0; i < RLIM_NLIMITS; ++i)
    calls.push_back(
        batch.call(SYS_prlimit64, {0, i, 0, slice(all, i * sizeof(rlimit), sizeof(rlimit))}));
  return Collect([=](const tracee::Batch& done) -> absl::StatusOr<std::string> {
    kernel::Limits limits{};
    for (size_t i = 0; i < RLIM_NLIMITS; ++i) {
      GW_RETURN_IF_ERROR(done.check(calls[i]));
      limits[i] = value_in<rlimit>(done, all, i);
    }
    return state_of(limits);
  });
}

absl::Status RlimitResource::precheck(const TaskView&, std::vector<Refusal>&) const {
  return absl::OkStatus();
}

const TaskResource& rlimit_resource() {
  static const RlimitResource resource;
  return resource;
}

}  // namespace godwit::resource
