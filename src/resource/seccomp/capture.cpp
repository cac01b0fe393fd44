#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include <string>

#include "kernel/proc/status.h"
#include "resource/seccomp/seccomp.h"
#include "resource/state_codec.h"

namespace godwit::resource {

// PTRACE_O_SUSPEND_SECCOMP lets the call through; it gives the mode all the same.
absl::StatusOr<TaskResource::Collect> SeccompResource::capture(const TaskView& view,
                                                               tracee::Batch& batch) const {
  if (view.task == nullptr)
    return make_error(absl::StatusCode::kFailedPrecondition, "{} of running task {}", name(),
                      view.host_tid.value);
  const size_t mode = batch.call(SYS_prctl, {PR_GET_SECCOMP, 0, 0, 0, 0});
  return Collect([mode, tid = view.tid](const tracee::Batch& done) -> absl::StatusOr<std::string> {
    // EINVAL: a kernel without seccomp.
    if (error_in(done.result(mode)) == EINVAL || done.result(mode) == SECCOMP_MODE_DISABLED)
      return std::string();
    GW_RETURN_IF_ERROR(done.check(mode));
    return make_error(absl::StatusCode::kFailedPrecondition,
                      "task {} has set a seccomp {} since the precheck: it cannot move", tid.value,
                      done.result(mode) == SECCOMP_MODE_STRICT ? "mode (strict)" : "filter");
  });
}

absl::Status SeccompResource::precheck(const TaskView& view, std::vector<Refusal>& refusals) const {
  GW_ASSIGN_OR_RETURN(const kernel::TaskStatus status, kernel::read_task_status(view.host_tid));
  if (status.seccomp == SECCOMP_MODE_DISABLED) return absl::OkStatus();
  const bool strict = status.seccomp == SECCOMP_MODE_STRICT;
  refusals.push_back(
      {.code = strict ? "seccomp.strict" : "seccomp.filter",
       .object =
           fmt::format("process {} ({}), task {}", view.tgid.value, status.name, view.tid.value),
       .reason = strict ? std::string("it is in seccomp's strict mode")
                        : fmt::format("it has {} seccomp filter(s)", status.seccomp_filters),
       .way_out = "start it without a sandbox (systemd: no SystemCallFilter=, containers: "
                  "seccomp=unconfined, or the program's own switch)"});
  return absl::OkStatus();
}

const TaskResource& seccomp_resource() {
  static const SeccompResource resource;
  return resource;
}

}  // namespace godwit::resource
