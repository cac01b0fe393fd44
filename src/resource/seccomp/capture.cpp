#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include <algorithm>
#include <charconv>
#include <cstring>
#include <string>

#include "kernel/proc/status.h"
#include "kernel/syscalls.h"
#include "resource/seccomp/seccomp.h"
#include "resource/seccomp/seccomp.pb.h"
#include "resource/state_codec.h"
#include "tracee/seccomp_filters.h"

namespace godwit::resource {
namespace {

using Filters = std::vector<tracee::SeccompFilter>;

// The filters may be heard by a process that got a descriptor for them
// (SECCOMP_FILTER_FLAG_NEW_LISTENER), wherever it is. Nothing but the filter's code tells: what it
// returns, or that this is computed.
bool may_notify(const tracee::SeccompFilter& filter) {
  return std::any_of(filter.code.begin(), filter.code.end(), [](const sock_filter& step) {
    if (BPF_CLASS(step.code) != BPF_RET) return false;
    return BPF_RVAL(step.code) != BPF_K ||
           (step.k & SECCOMP_RET_ACTION_FULL) == SECCOMP_RET_USER_NOTIF;
  });
}

bool any_may_notify(const Filters& filters) {
  return std::any_of(filters.begin(), filters.end(), may_notify);
}

bool same(const tracee::SeccompFilter& a, const tracee::SeccompFilter& b) {
  return a.log == b.log && a.code.size() == b.code.size() &&
         std::memcmp(a.code.data(), b.code.data(), a.code.size() * sizeof(sock_filter)) == 0;
}

size_t common_to(const Filters& a, const Filters& b) {
  const size_t most = std::min(a.size(), b.size());
  size_t count = 0;
  while (count < most && same(a[count], b[count])) ++count;
  return count;
}

absl::StatusOr<size_t> common_to_all(HostPid tgid, const Filters& filters) {
  size_t common = filters.size();
  GW_ASSIGN_OR_RETURN(const auto names,
                      kernel::list_folder(fmt::format("/proc/{}/task", tgid.value)));
  for (const std::string& tid_text : names) {
    HostPid tid;
    std::from_chars(tid_text.data(), tid_text.data() + tid_text.size(), tid.value);
    if (tid == tgid) continue;
    const auto others = tracee::seccomp_filters(tid);
    if (errno_of(others.status()) == ESRCH) continue;  // it has ended
    GW_RETURN_IF_ERROR(others.status());
    common = std::min(common, common_to(filters, *others));
  }
  return common;
}

absl::StatusOr<std::string> filter_state(const TaskView& view) {
  GW_ASSIGN_OR_RETURN(const Filters filters, tracee::seccomp_filters(view.host_tid));
  if (any_may_notify(filters))
    return make_error(absl::StatusCode::kFailedPrecondition,
                      "task {} has set a seccomp filter since the precheck that asks another "
                      "process: it cannot move",
                      view.tid.value);
  SeccompState state;
  state.set_mode(SECCOMP_MODE_FILTER);
  size_t left_out = 0;
  if (view.leader) {
    GW_ASSIGN_OR_RETURN(const size_t common, common_to_all(view.host_tgid, filters));
    state.set_common(static_cast<uint32_t>(common));
  } else {
    GW_ASSIGN_OR_RETURN(const Filters of_leader, tracee::seccomp_filters(view.host_tgid));
    left_out = common_to(filters, of_leader);
    state.set_of_leader(static_cast<uint32_t>(left_out));
  }
  for (size_t i = left_out; i < filters.size(); ++i) {
    SeccompFilterState& one = *state.add_filters();
    one.set_code(filters[i].code.data(), filters[i].code.size() * sizeof(sock_filter));
    one.set_log(filters[i].log);
  }
  return state.SerializeAsString();
}

// Fails also where calls of ours would not go past them.
absl::StatusOr<Filters> filters_of_running(HostPid tid) {
  GW_ASSIGN_OR_RETURN(tracee::SeizedTask seized, tracee::SeizedTask::seize(tid));
  GW_RETURN_IF_ERROR(seized.interrupt());
  GW_ASSIGN_OR_RETURN(const tracee::StoppedTask task,
                      std::move(seized).wait_stopped(Deadline::in(absl::Seconds(5))));
  if (!task.seccomp_suspended())
    return absl::PermissionDeniedError("ptrace(2) refuses PTRACE_O_SUSPEND_SECCOMP");
  return tracee::seccomp_filters(tid);
}

}  // namespace

absl::StatusOr<TaskResource::Collect> SeccompResource::capture(const TaskView& view,
                                                               tracee::Batch& batch) const {
  if (view.task == nullptr)
    return make_error(absl::StatusCode::kFailedPrecondition, "{} of running task {}", name(),
                      view.host_tid.value);
  if (view.seen != nullptr && view.seen->seccomp_mode == SECCOMP_MODE_DISABLED)
    return Collect([](const tracee::Batch&) -> absl::StatusOr<std::string> { return ""; });
  const size_t mode = batch.call(SYS_prctl, {PR_GET_SECCOMP, 0, 0, 0, 0});
  return Collect([mode, view](const tracee::Batch& done) -> absl::StatusOr<std::string> {
    // EINVAL: a kernel without seccomp.
    if (error_in(done.result(mode)) == EINVAL || done.result(mode) == SECCOMP_MODE_DISABLED)
      return std::string();
    GW_RETURN_IF_ERROR(done.check(mode));
    if (done.result(mode) == SECCOMP_MODE_FILTER) return filter_state(view);
    SeccompState state;
    state.set_mode(SECCOMP_MODE_STRICT);
    return state.SerializeAsString();
  });
}

absl::Status SeccompResource::precheck(const TaskView& view, std::vector<Refusal>& refusals) const {
  GW_ASSIGN_OR_RETURN(const kernel::TaskStatus status, kernel::read_task_status(view.host_tid));
  if (status.seccomp == SECCOMP_MODE_DISABLED) return absl::OkStatus();
  if (!view.leader) {
    // Threads mostly have what their process has.
    GW_ASSIGN_OR_RETURN(const kernel::TaskStatus leader, kernel::read_task_status(view.host_tgid));
    if (leader.seccomp == status.seccomp && leader.seccomp_filters == status.seccomp_filters)
      return absl::OkStatus();
  }
  Refusal refusal{.code = {},
                  .object = fmt::format("process {} ({}), task {}", view.tgid.value, status.name,
                                        view.tid.value),
                  .reason = {},
                  .way_out = {}};
  const absl::StatusOr<Filters> filters = filters_of_running(view.host_tid);
  if (errno_of(filters.status()) == ESRCH) return filters.status();
  if (!filters.ok()) {
    refusal.code = "seccomp.unreadable";
    refusal.reason = fmt::format("it is under seccomp, which cannot be read or passed by: {}",
                                 std::string(filters.status().message()));
    refusal.way_out =
        "a kernel with CONFIG_CHECKPOINT_RESTORE, and Godwit with CAP_SYS_ADMIN and "
        "without filters of its own (systemd: no SystemCallFilter=)";
  } else if (any_may_notify(*filters)) {
    refusal.code = "seccomp.notify";
    refusal.reason =
        "a seccomp filter of it asks another process what to do "
        "(SECCOMP_RET_USER_NOTIF), or computes what it returns";
    refusal.way_out = "start it without that filter";
  } else {
    return absl::OkStatus();
  }
  refusals.push_back(std::move(refusal));
  return absl::OkStatus();
}

const TaskResource& seccomp_resource() {
  static const SeccompResource resource;
  return resource;
}

}  // namespace godwit::resource
