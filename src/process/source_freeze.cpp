// The freeze: every task stopped by ptrace, what only tasks can tell read by one batch each, then
// held by the cgroup freezer. And the way back.
#include "base/fault_point.h"
#include "base/status.h"
#include "process/left_over.h"
#include "process/source.h"
#include "process/source_context.h"
#include "process/timeouts.h"
#include "resource/registry.h"
#include "resource/rseq/rseq.h"
#include "resource/tcp_socket/tcp_socket.h"

namespace godwit::process {

absl::Status Source::freeze() {
  FAULT_POINT("source.freeze");
  final_ = true;
  if (!scanner_) scanner_ = std::make_unique<Background>();
  spans_.restart();
  GW_ASSIGN_OR_RETURN(tracee::FrozenTree stopped,
                      tracee::stop_tree(host_.members, Deadline::in(kTargetTimeout)));
  spans_.mark("stop");
  GW_RETURN_IF_ERROR(read_tree());
  GW_RETURN_IF_ERROR(adopt_stopped(std::move(stopped)));
  spans_.mark("read tree");
  for (auto& [pid, process] : processes_) GW_RETURN_IF_ERROR(read_maps_of(process, false));
  spans_.mark("read maps");
  start_last_scan();
  GW_RETURN_IF_ERROR(read_descriptors());
  GW_RETURN_IF_ERROR(settle_descriptors());
  spans_.mark("take descriptors");
  GW_RETURN_IF_ERROR(run_capture_batches());
  spans_.mark("batches");
  holding_ = true;
  GW_RETURN_IF_ERROR(host_.hold());
  spans_.mark("hold");
  return absl::OkStatus();
}

absl::Status Source::adopt_stopped(tracee::FrozenTree tree) {
  for (tracee::StoppedProcess& process : tree.processes) {
    FrozenProcess frozen;
    GW_ASSIGN_OR_RETURN(const ImagePid pid, (*translate_)(process.pid));
    const auto known = processes_.find(pid.value);
    if (known == processes_.end())
      return make_error(absl::StatusCode::kInternal,
                        "process {} was stopped but is not in the tree", pid.value);
    frozen.process = &known->second;
    for (tracee::StoppedTask& task : process.tasks) {
      // Before anything runs in the task: a restartable sequence is left as preemption leaves it.
      GW_RETURN_IF_ERROR(resource::leave_critical_section(task).status());
      GW_ASSIGN_OR_RETURN(const ImagePid tid, (*translate_)(task.tid()));
      frozen.tids.push_back(tid);
    }
    frozen.stopped = std::move(process);
    frozen_.push_back(std::move(frozen));
    FrozenProcess& kept = frozen_.back();
    // Born since the last round, or frozen without any round.
    if (!kept.process->tracker)
      GW_RETURN_IF_ERROR(attach_tracker(*kept.process, kept.stopped.tasks.front()));
  }
  return absl::OkStatus();
}

// Beside everything else in the freeze: nothing of the program runs, and what batches run in it
// writes only into the stub's area, which is not scanned. (Going back to user mode the kernel also
// writes CPU numbers into rseq areas: the destination's does that anew.)
void Source::start_last_scan() {
  scanner_->start([this]() -> absl::Status {
    for (auto& [pid, process] : processes_) {
      pages::ScanResult found;
      GW_RETURN_IF_ERROR(
          annotate(process.tracker->scan(pages::private_mappings(process.maps),
                                         pages::ScanMode::kFrozen, found),
                   fmt::format("scan the pages of process {} ({})", pid, process.comm)));
      // What an attempt before this one found and never sent must not be forgotten.
      pages::ScanResult& all = process.last_scan;
      all.dirty.subtract(found.dropped);
      all.dirty_file.subtract(found.dropped);
      all.dropped.subtract(found.dirty);
      all.dropped.subtract(found.dirty_file);
      all.add(found);
    }
    return absl::OkStatus();
  });
}

// Beside the batches where there are enough descriptors to gain by another thread;
// capture_descriptions() does what is left.
absl::Status Source::settle_descriptors() {
  constexpr size_t kMany = 64;
  if (!settler_ || descriptors_->descriptions().size() < kMany)
    return descriptors_->look([](size_t count, absl::FunctionRef<void(size_t)> item) {
      for (size_t i = 0; i < count; ++i) item(i);
    });
  settler_->start([this] { return descriptors_->settle(*context_); });
  return absl::OkStatus();
}

absl::Status Source::run_capture_batches() {
  task_states_.clear();
  for (FrozenProcess& frozen : frozen_)
    GW_RETURN_IF_ERROR(
        annotate(capture_process(frozen),
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

  std::vector<tracee::StubArea::Run> runs;
  for (size_t i = 0; i < batches.size(); ++i)
    if (!batches[i].empty())
      runs.push_back({&frozen.stopped.tasks[i], frozen.tids[i], &batches[i]});
  GW_RETURN_IF_ERROR(frozen.process->area->run_all(runs, Deadline::in(kTargetTimeout)));

  for (const Collecting& one : collecting) {
    auto state = one.collect(batches[one.task]);
    if (!state.ok()) return annotate(state.status(), one.resource->name());
    if (!state->empty())
      task_states_.push_back(
          {{std::string(one.resource->name()), static_cast<uint64_t>(frozen.tids[one.task].value)},
           *std::move(state)});
  }
  return descriptors_->set_close_on_exec(pid, batches[0], flags);
}

absl::Status Source::thaw() {
  FAULT_POINT("source.thaw");
  // Sockets first: until then nothing may run that would send.
  absl::Status first;
  if (settler_) first.Update(settler_->wait());
  if (descriptors_)
    for (const auto& description : descriptors_->descriptions())
      if (description.kind != nullptr && description.kind->name() == "tcp_socket")
        first.Update(resource::tcp_end_capture(description.duplicate.get()));
  descriptors_.reset();
  if (scanner_) first.Update(scanner_->wait());
  if (holding_) first.Update(host_.release());
  holding_ = false;
  frozen_.clear();  // detaches every task
  final_ = false;
  return first;
}

absl::Status Source::withdraw() {
  absl::Status first;
  for (auto& [pid, process] : processes_) {
    if (process.tracker) first.Update(process.tracker->stop(pages::ScanMode::kRunning));
    process.tracker.reset();
    if (!process.area) continue;
    absl::Status removed = [&]() -> absl::Status {
      GW_ASSIGN_OR_RETURN(tracee::SeizedTask seized, tracee::SeizedTask::seize(process.host_pid));
      GW_RETURN_IF_ERROR(seized.interrupt());
      GW_ASSIGN_OR_RETURN(tracee::StoppedTask task,
                          std::move(seized).wait_stopped(Deadline::in(kTargetTimeout)));
      GW_RETURN_IF_ERROR(resource::leave_critical_section(task).status());
      GW_RETURN_IF_ERROR(process.area->unmap(task));
      return std::move(task).detach();
    }();
    process.area.reset();
    // A process that has ended meanwhile took it along.
    if (errno_of(removed) != ESRCH) first.Update(removed);
  }
  // A process forked since the tree was read last has its parent's area, too.
  const auto members = host_.members();
  first.Update(members.status());
  if (members.ok()) first.Update(remove_left_over(*members, *translate_));
  return first;
}

}  // namespace godwit::process
