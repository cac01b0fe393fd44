// State of tasks: everything that is neither memory nor descriptor.
#include <sys/syscall.h>

#include "base/fault_point.h"
#include "base/status.h"
#include "process/replica.h"
#include "resource/registry.h"

namespace godwit::process {
namespace {

resource::TaskView view_of(Husk& husk, HuskTask& task) {
  resource::TaskView view;
  view.tgid = husk.pid();
  view.tid = task.tid;
  view.host_tgid = husk.host_pid();
  view.host_tid = task.task.tid();
  view.leader = task.tid == husk.pid();
  view.task = &task.task;
  return view;
}

}  // namespace

absl::Status Replica::restore_tasks() {
  FAULT_POINT("replica.restore_tasks");
  for (auto& [pid, husk] : husks_)
    GW_RETURN_IF_ERROR(annotate(restore_tasks_of(husk), fmt::format("process {}", pid)));
  return absl::OkStatus();
}

absl::Status Replica::restore_tasks_of(Husk& husk) {
  using resource::Phase;
  using resource::Scope;
  std::vector<tracee::Batch> batches(husk.tasks().size());
  struct Pending {
    const resource::TaskResource* resource;
    size_t task;
    resource::TaskResource::Check check;
  };
  std::vector<Pending> checks;
  for (const resource::TaskResource* resource : resource::task_resources()) {
    if (resource->phase() == Phase::kLast) continue;
    for (size_t i = 0; i < husk.tasks().size(); ++i) {
      HuskTask& task = husk.tasks()[i];
      if (resource->scope() == Scope::kProcess && i != 0) break;
      const std::string* state = wanted(resource->name(), static_cast<uint64_t>(task.tid.value));
      if (state == nullptr) continue;
      auto check = resource->restore(*state, view_of(husk, task), batches[i]);
      if (!check.ok()) return annotate(check.status(), resource->name());
      if (*check) checks.push_back({resource, i, *std::move(check)});
    }
  }
  // The channel goes with the last batch: no descriptor of ours stays.
  batches[0].call(SYS_close, {channel_.husk_number}, true);
  GW_RETURN_IF_ERROR(husk.run_in_tasks(batches));
  for (tracee::Batch& batch : batches) GW_RETURN_IF_ERROR(batch.check_all());
  for (const Pending& pending : checks)
    GW_RETURN_IF_ERROR(annotate(pending.check(batches[pending.task]), pending.resource->name()));
  return absl::OkStatus();
}

absl::Status Replica::restore_last() {
  for (auto& [pid, husk] : husks_) {
    GW_RETURN_IF_ERROR(annotate(husk.remove_stub(), fmt::format("process {}", pid)));
    for (HuskTask& task : husk.tasks()) {
      for (const resource::TaskResource* resource : resource::task_resources()) {
        if (resource->phase() != resource::Phase::kLast) continue;
        const std::string* state = wanted(resource->name(), static_cast<uint64_t>(task.tid.value));
        if (state == nullptr)
          return make_error(absl::StatusCode::kDataLoss, "thread {} has no {} section",
                            task.tid.value, resource->name());
        tracee::Batch unused;
        auto check = resource->restore(*state, view_of(husk, task), unused);
        if (!check.ok()) return annotate(check.status(), resource->name());
      }
    }
  }
  return absl::OkStatus();
}

}  // namespace godwit::process
