// The freeze: every task stopped by ptrace, what only tasks can tell read by one batch each, then
// held by the cgroup freezer. And the way back.
#include <algorithm>

#include "base/fault_point.h"
#include "base/status.h"
#include "process/source.h"
#include "process/source_context.h"
#include "process/timeouts.h"
#include "resource/registry.h"
#include "resource/rseq/rseq.h"
#include "resource/tcp_socket/tcp_socket.h"

namespace godwit::process {
namespace {

constexpr size_t kAreaBytes = size_t{64} << 10;
constexpr size_t kBytesPerCall = 128;  // of the area: a table entry and its data, generously

}  // namespace

absl::Status Source::freeze() {
  FAULT_POINT("source.freeze");
  final_ = true;
  spans_.restart();
  GW_ASSIGN_OR_RETURN(tracee::FrozenTree stopped,
                      tracee::stop_tree(host_.members, Deadline::in(kTargetTimeout)));
  spans_.mark("stop");
  GW_RETURN_IF_ERROR(read_tree());
  for (tracee::StoppedProcess& process : stopped.processes) {
    FrozenProcess frozen;
    GW_ASSIGN_OR_RETURN(const ImagePid pid, (*translate_)(process.pid));
    const auto known = processes_.find(pid.value);
    if (known == processes_.end())
      return make_error(absl::StatusCode::kInternal, "process {} was stopped but is not in the tree",
                        pid.value);
    frozen.process = &known->second;
    for (tracee::StoppedTask& task : process.tasks) {
      // Before anything runs in the task: a restartable sequence is left as preemption leaves it.
      GW_RETURN_IF_ERROR(resource::leave_critical_section(task).status());
      GW_ASSIGN_OR_RETURN(const ImagePid tid, (*translate_)(task.tid()));
      frozen.tids.push_back(tid);
    }
    frozen.stopped = std::move(process);
    frozen_.push_back(std::move(frozen));
  }
  spans_.mark("read tree");
  GW_ASSIGN_OR_RETURN(resource::Descriptors descriptors, resource::Descriptors::read(holders()));
  descriptors_ = std::make_unique<resource::Descriptors>(std::move(descriptors));
  spans_.mark("take descriptors");
  GW_RETURN_IF_ERROR(run_capture_batches());
  spans_.mark("batches");
  holding_ = true;
  GW_RETURN_IF_ERROR(host_.hold());
  spans_.mark("hold");
  return absl::OkStatus();
}

absl::Status Source::run_capture_batches() {
  task_states_.clear();
  for (FrozenProcess& frozen : frozen_)
    GW_RETURN_IF_ERROR(annotate(
        capture_process(frozen),
        fmt::format("process {} ({})", frozen.process->pid.value, frozen.process->comm)));
  return absl::OkStatus();
}

absl::Status Source::capture_process(FrozenProcess& frozen) {
  const ImagePid pid = frozen.process->pid;
  struct Collecting {
    const resource::TaskResource* resource;
    size_t task;
    resource::TaskResource::Collect collect;
  };
  std::vector<tracee::Batch> batches(frozen.stopped.tasks.size());
  std::vector<Collecting> collecting;
  for (size_t i = 0; i < frozen.stopped.tasks.size(); ++i) {
    resource::TaskView view;
    view.tgid = pid;
    view.tid = frozen.tids[i];
    view.host_tgid = frozen.process->host_pid;
    view.host_tid = frozen.stopped.tasks[i].tid();
    view.leader = i == 0;
    view.pidfd = frozen.process->pidfd.get();
    view.task = &frozen.stopped.tasks[i];
    for (const resource::TaskResource* resource : resource::task_resources()) {
      if (resource->scope() == resource::Scope::kProcess && i != 0) continue;
      auto collect = resource->capture(view, batches[i]);
      if (!collect.ok()) return annotate(collect.status(), resource->name());
      collecting.push_back({resource, i, *std::move(collect)});
    }
  }
  const std::vector<size_t> flags = descriptors_->add_close_on_exec_calls(pid, batches[0]);

  size_t calls = 0;
  for (const tracee::Batch& batch : batches) calls += batch.size();
  GW_ASSIGN_OR_RETURN(tracee::StubArea area,
                      tracee::StubArea::map(frozen.stopped.tasks[0], pid,
                                            std::max(kAreaBytes, calls * kBytesPerCall)));
  frozen.area = std::move(area);
  std::vector<tracee::StubArea::Run> runs;
  for (size_t i = 0; i < batches.size(); ++i)
    if (!batches[i].empty())
      runs.push_back({&frozen.stopped.tasks[i], frozen.tids[i], &batches[i]});
  GW_RETURN_IF_ERROR(frozen.area->run_all(runs, Deadline::in(kTargetTimeout)));

  for (const Collecting& one : collecting) {
    auto state = one.collect(batches[one.task]);
    if (!state.ok()) return annotate(state.status(), one.resource->name());
    if (!state->empty())
      task_states_.push_back({{std::string(one.resource->name()),
                               static_cast<uint64_t>(frozen.tids[one.task].value)},
                              *std::move(state)});
  }
  return descriptors_->set_close_on_exec(pid, batches[0], flags);
}

absl::Status Source::thaw() {
  FAULT_POINT("source.thaw");
  // Sockets first: until then nothing may run that would send.
  absl::Status first;
  if (descriptors_)
    for (const auto& description : descriptors_->descriptions())
      if (description.kind != nullptr && description.kind->name() == "tcp_socket")
        first.Update(resource::tcp_end_capture(description.duplicate.get()));
  descriptors_.reset();
  // A frozen task runs no call: thawed by its cgroup first, while ptrace still holds it.
  if (holding_) first.Update(host_.release());
  holding_ = false;
  for (FrozenProcess& frozen : frozen_)
    if (frozen.area) first.Update(frozen.area->unmap(frozen.stopped.tasks[0]));
  frozen_.clear();  // detaches every task
  final_ = false;
  return first;
}

}  // namespace godwit::process
