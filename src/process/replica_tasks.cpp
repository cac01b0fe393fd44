// State of tasks: everything that is neither memory nor descriptor.
#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include <cstring>
#include <functional>
#include <set>
#include <utility>
#include <vector>

#include "base/fault_point.h"
#include "base/status.h"
#include "process/replica.h"
#include "process/replica_context.h"
#include "process/timeouts.h"
#include "resource/memory_map/memory_map.h"
#include "resource/registry.h"
#include "resource/signals/actions.h"

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

// In a round: what husks have, so that the freeze is not for giving them the same.
absl::Status Replica::learn_tasks() {
  for (auto& [pid, husk] : husks_)
    for (HuskTask& task : husk.tasks())
      if (task.known.empty())
        GW_RETURN_IF_ERROR(annotate(learn(husk, task), fmt::format("process {}", pid)));
  return absl::OkStatus();
}

absl::Status Replica::learn(Husk& husk, HuskTask& task) {
  const resource::TaskView view = view_of(husk, task);
  tracee::Batch batch;
  std::vector<std::pair<const resource::TaskResource*, resource::TaskResource::Collect>> all;
  for (const resource::TaskResource* resource : resource::task_resources()) {
    if (!resource->keeps_in_husk()) continue;
    if (resource->scope() == resource::Scope::kProcess && !view.leader) continue;
    auto collect = resource->capture(view, batch);
    if (!collect.ok()) return annotate(collect.status(), resource->name());
    all.emplace_back(resource, *std::move(collect));
  }
  GW_RETURN_IF_ERROR(husk.area().run(task.task, task.tid, batch, Deadline::in(kTargetTimeout)));
  for (const auto& [resource, collect] : all) {
    auto state = collect(batch);
    // Not to be had: then it is restored whatever it is.
    if (state.ok()) task.known.emplace(resource, *std::move(state));
  }
  return absl::OkStatus();
}

absl::Status Replica::restore_tasks() {
  FAULT_POINT("replica.restore_tasks");
  std::vector<Restoring> all;
  std::set<uint64_t> finished;
  for (auto& [pid, husk] : husks_) {
    Restoring& one =
        all.emplace_back(Restoring{&husk, std::vector<tracee::Batch>(husk.tasks().size()), {}});
    GW_RETURN_IF_ERROR(annotate(add_finish_calls(one, finished), fmt::format("process {}", pid)));
    GW_RETURN_IF_ERROR(annotate(add_task_calls(one), fmt::format("process {}", pid)));
  }
  GW_RETURN_IF_ERROR(finish_under_way(finished));
  context_->drop_stash();
  spans_.mark("build batches");
  // A process's own batch before those of its other threads: an action that ignores a signal takes
  // it out of the queues of all threads (sigaction(2); do_sigaction(), kernel/signal.c), a pending
  // one that was just restored as well as the mark at the end of a batch. Processes side by side.
  for (const Husk::Which which : {Husk::Which::kLeader, Husk::Which::kOthers}) {
    std::vector<tracee::StubArea::Started> started;
    started.reserve(all.size());
    for (Restoring& one : all) {
      GW_ASSIGN_OR_RETURN(tracee::StubArea::Started run,
                          one.husk->start_in_tasks(one.batches, which));
      started.push_back(std::move(run));
    }
    for (tracee::StubArea::Started& run : started) GW_RETURN_IF_ERROR(run.finish());
  }
  ignoring_faults_.clear();
  for (const Restoring& one : all) {
    const auto check_all = [&]() -> absl::Status {
      for (const tracee::Batch& batch : one.batches) GW_RETURN_IF_ERROR(batch.check_all());
      resource::KernelSigaction fault{};
      std::memcpy(&fault, one.batches[0].bytes(one.fault_action).data(), sizeof fault);
      if (fault.handler == reinterpret_cast<uint64_t>(SIG_IGN))
        ignoring_faults_.insert(one.husk->pid().value);
      for (const auto& [task, check] : one.checks) GW_RETURN_IF_ERROR(check(one.batches[task]));
      return absl::OkStatus();
    };
    GW_RETURN_IF_ERROR(annotate(check_all(), fmt::format("process {}", one.husk->pid().value)));
  }
  return absl::OkStatus();
}

absl::Status Replica::add_task_calls(Restoring& one) {
  using resource::Phase;
  using resource::Scope;
  Husk& husk = *one.husk;
  // Nothing is mapped here any more, and the process may be about to lose the privilege.
  if (const uint32_t locks = husk.memory_map.future_locks(); locks != 0)
    one.batches[0].call(SYS_mlockall,
                        {MCL_FUTURE | ((locks & resource::kMapLockOnFault) != 0 ? MCL_ONFAULT : 0)},
                        true);
  for (const resource::TaskResource* resource : resource::task_resources()) {
    if (resource->phase() == Phase::kLast) continue;
    for (size_t i = 0; i < husk.tasks().size(); ++i) {
      HuskTask& task = husk.tasks()[i];
      if (resource->scope() == Scope::kProcess && i != 0) break;
      const std::string* state = wanted(resource->name(), static_cast<uint64_t>(task.tid.value));
      if (state == nullptr) continue;
      resource::TaskView view = view_of(husk, task);
      if (const auto known = task.known.find(resource); known != task.known.end()) {
        if (known->second == *state) continue;
        view.known = known->second;
      }
      view.notes = &one.notes;
      auto check = resource->restore(*state, view, one.batches[i]);
      if (!check.ok()) return annotate(check.status(), resource->name());
      if (*check)
        one.checks.emplace_back(i,
                                [resource, check = *std::move(check)](const tracee::Batch& batch) {
                                  return annotate(check(batch), resource->name());
                                });
    }
  }
  one.fault_action = one.batches[0].reserve(sizeof(resource::KernelSigaction));
  one.batches[0].call(SYS_rt_sigaction, {SIGSEGV, 0, one.fault_action, sizeof(uint64_t)}, true);
  // The channel goes with the last batch: no descriptor of ours stays.
  one.batches[0].call(SYS_close, {channel_.husk_number}, true);
  return absl::OkStatus();
}

absl::Status Replica::seal_memory() {
  for (auto& [pid, husk] : husks_) {
    tracee::Batch batch;
    resource::add_seal_calls(husk.memory_map, batch);
    GW_RETURN_IF_ERROR(husk.run(batch));
    GW_RETURN_IF_ERROR(annotate(batch.check_all(), fmt::format("process {}", pid)));
  }
  return absl::OkStatus();
}

absl::Status Replica::restore_last() {
  GW_RETURN_IF_ERROR(seal_memory());
  for (auto& [pid, husk] : husks_)
    GW_RETURN_IF_ERROR(
        annotate(husk.start_removing_stub(ignoring_faults_.contains(pid), vdso_syscall_offset_),
                 fmt::format("process {}", pid)));
  for (auto& [pid, husk] : husks_) {
    GW_RETURN_IF_ERROR(annotate(husk.finish_removing_stub(), fmt::format("process {}", pid)));
    for (HuskTask& task : husk.tasks()) {
      for (const resource::TaskResource* resource : resource::task_resources()) {
        if (resource->phase() != resource::Phase::kLast) continue;
        const std::string* state = wanted(resource->name(), static_cast<uint64_t>(task.tid.value));
        if (state == nullptr)
          return make_error(absl::StatusCode::kDataLoss, "thread {} has no {} section",
                            task.tid.value, resource->name());
        resource::TaskView view = view_of(husk, task);
        if (const auto known = task.known.find(resource); known != task.known.end())
          view.known = known->second;
        tracee::Batch unused;
        auto check = resource->restore(*state, view, unused);
        if (!check.ok()) return annotate(check.status(), resource->name());
      }
    }
  }
  return absl::OkStatus();
}

}  // namespace godwit::process
