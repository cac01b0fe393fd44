// The freeze: every task stopped by ptrace, what only tasks can tell read by one batch each, then
// held by the cgroup freezer. And the way back.
#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <utility>

#include "base/fault_point.h"
#include "base/log.h"
#include "base/status.h"
#include "kernel/proc/stat.h"
#include "kernel/syscalls.h"
#include "process/left_over.h"
#include "process/source.h"
#include "process/source_context.h"
#include "process/timeouts.h"
#include "resource/memory_map/memory_map.h"
#include "resource/registry.h"
#include "resource/rseq/rseq.h"
#include "resource/tcp_socket/tcp_socket.h"

namespace godwit::process {

void Source::hurry() {
  if (!scanner_) scanner_ = std::make_unique<Background>();
  const bool after_rounds = cpus_ != nullptr;
  if (!cpus_) cpus_ = std::make_unique<WakefulCpus>();
  hurry_ = std::make_unique<Hurry>(after_rounds);
  scanner_->keep_off(hurry_->cpu);
  if (settler_) settler_->keep_off(hurry_->cpu);
}

absl::Status Source::freeze() {
  FAULT_POINT("source.freeze");
  final_ = true;
  if (!hurry_) hurry();
  spans_.restart();
  GW_ASSIGN_OR_RETURN(tracee::FrozenTree stopped,
                      tracee::stop_tree(host_.members, Deadline::in(kTargetTimeout),
                                        [this](HostPid pid, HostPid tid) {
                                          return pid != tid && uses_io_uring(pid) &&
                                                 kernel::is_kernel_worker(tid);
                                        }));
  spans_.mark("stop");
  GW_RETURN_IF_ERROR(adopt_stopped(std::move(stopped)));
  spans_.mark("adopt");
  begin_reading();
  GW_RETURN_IF_ERROR(run_capture_batches());
  spans_.mark("batches");
  GW_RETURN_IF_ERROR(drain_io_uring());
  holding_ = true;
  GW_RETURN_IF_ERROR(host_.hold());
  spans_.mark("hold");
  return absl::OkStatus();
}

absl::Status Source::adopt_stopped(tracee::FrozenTree tree) {
  // The tree as of the last round will do for now: it is read while batches run.
  for (const tracee::StoppedProcess& process : tree.processes) {
    GW_ASSIGN_OR_RETURN(const ImagePid pid, (*translate_)(process.pid));
    const auto known = processes_.find(pid.value);
    if (known != processes_.end() && known->second.host_pid == process.pid) continue;
    GW_RETURN_IF_ERROR(read_tree());
    break;
  }
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
    GW_RETURN_IF_ERROR(forget_old_program(*kept.process));
    // New since the last round, or frozen without any round.
    if (!kept.process->tracker) {
      GW_RETURN_IF_ERROR(close_inherited(*kept.process, kept.stopped.tasks.front()));
      GW_RETURN_IF_ERROR(attach_tracker(*kept.process, kept.stopped.tasks.front()));
    }
  }
  // Those that ended since the last round have nothing to scan.
  std::erase_if(processes_, [&](const auto& entry) {
    return std::none_of(frozen_.begin(), frozen_.end(),
                        [&](const FrozenProcess& f) { return f.process == &entry.second; });
  });
  return absl::OkStatus();
}

// Beside everything else in the freeze: nothing of the program runs, and what batches run in it
// writes only into the stub's area, which is not scanned. (Going back to user mode the kernel also
// writes CPU numbers into rseq areas: the destination's does that anew.)
void Source::start_last_scan() {
  looked_ = std::promise<absl::Status>();
  has_looked_ = looked_.get_future().share();
  scanner_->start([this]() -> absl::Status {
    absl::Status captured;
    for (auto& [pid, process] : processes_) {
      captured.Update(annotate(capture_memory_of(process), fmt::format("process {}", pid)));
      if (!captured.ok()) break;
    }
    if (captured.ok()) captured = host_.look_at_files();
    if (captured.ok()) captured = read_ipc();
    looked_.set_value(captured);
    GW_RETURN_IF_ERROR(captured);
    return scan_frozen();
  });
}

// Beside the making of batches, where there are enough descriptors to gain by another thread.
void Source::begin_reading() {
  if (!settler_ || !file_views_) return;
  read_ = std::promise<absl::Status>();
  reading_ = true;
  settler_->start([this] {
    const absl::Status read = read_descriptors();
    read_.set_value(read);
    return read.ok() ? descriptors_->settle(*context_, known_files_) : read;
  });
}

// The tree is not the one that is being read.
absl::Status Source::give_up_reading() {
  if (!std::exchange(reading_, false)) return absl::OkStatus();
  return settler_->wait();
}

// Tables are known and descriptors taken; capture_descriptions() waits until all are looked at.
absl::Status Source::await_descriptors() {
  if (std::exchange(reading_, false)) return read_.get_future().get();
  GW_RETURN_IF_ERROR(read_descriptors());
  return settle_descriptors();
}

// Beside the batches where there are enough descriptors to gain by another thread;
// capture_descriptions() does what is left.
absl::Status Source::settle_descriptors() {
  constexpr size_t kMany = 64;
  if (!settler_ || descriptors_->descriptions().size() < kMany)
    return descriptors_->settle(*context_, known_files_);
  settler_->start([this] { return descriptors_->settle(*context_, known_files_); });
  return absl::OkStatus();
}

absl::Status Source::capture_memory_of(SourceProcess& process) {
  GW_ASSIGN_OR_RETURN(std::string text,
                      kernel::read_file(fmt::format("/proc/{}/maps", process.host_pid.value)));
  // Mostly nothing was mapped since the last round: neither parsed nor put together again.
  if (!text.empty() && text == process.maps_text)
    return resource::capture_program_layout(process.host_pid, process.memory_map);
  process.maps_text.clear();
  GW_ASSIGN_OR_RETURN(process.maps, kernel::parse_maps(text));
  cut_out_area(process);
  uint64_t unknown = 0;
  const auto capture = [&] {
    return resource::capture_memory_map(process.host_pid, process.maps, &process.memory_map,
                                        &unknown);
  };
  GW_ASSIGN_OR_RETURN(resource::MemoryMapState state, capture());
  if (unknown != 0) {
    // A mapping is new: its flags are in smaps only, which walks the page tables.
    GW_RETURN_IF_ERROR(read_flags_below(process, unknown));
    GW_ASSIGN_OR_RETURN(state, capture());
    // A mapping without its flags would be made anew there, empty.
    if (unknown != 0)
      return make_error(absl::StatusCode::kInternal,
                        "maps and smaps do not agree on what is mapped below {:x}", unknown);
  }
  process.memory_map = std::move(state);
  forget_replaced(process);
  process.memory_map.set_future_locks(process.future_locks);
  process.maps_text = std::move(text);
  return absl::OkStatus();
}

absl::Status Source::scan_frozen() {
  for (auto& [pid, process] : processes_) {
    pages::ScanResult found;
    note_pins(process);
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
}

// Of one process: what its tasks run, and who makes states of the results.
struct Source::Capturing {
  FrozenProcess* frozen = nullptr;
  struct Collecting {
    const resource::TaskResource* resource;
    size_t task;
    resource::TaskResource::Collect collect;
    std::optional<size_t> as;  // of `collecting`: its state is that one's
  };
  std::vector<tracee::Batch> batches;
  std::vector<tracee::StubArea::Run> runs;
  std::vector<Collecting> collecting;
  std::vector<int> expected_fds;  // the descriptors of the last round
  std::vector<size_t> flag_calls;
  size_t brk_call = 0;
  tracee::Batch::Data dead_child;  // siginfo_t
};

// The batches of all processes run side by side, and we read meanwhile what needs no task.
absl::Status Source::run_capture_batches() {
  task_states_.clear();
  std::vector<Capturing> all;
  for (FrozenProcess& frozen : frozen_) {
    all.push_back(Capturing{});
    all.back().frozen = &frozen;
    GW_RETURN_IF_ERROR(annotate(add_capture_calls(all.back()), describe(frozen)));
  }
  spans_.mark("make batches");
  // First, because it may change maps, which the scan is about to read.
  for (Capturing& one : all)
    GW_RETURN_IF_ERROR(
        annotate(one.frozen->process->area->reserve(one.runs), describe(*one.frozen)));
  start_last_scan();
  std::vector<tracee::StubArea::Started> started;
  started.reserve(all.size());
  for (Capturing& one : all) {
    auto run = one.frozen->process->area->start_all(one.runs, Deadline::in(kTargetTimeout));
    if (!run.ok()) return annotate(run.status(), describe(*one.frozen));
    started.push_back(*std::move(run));
  }
  spans_.mark("start batches");
  const bool stands = tree_stands();
  if (!stands) {
    GW_RETURN_IF_ERROR(give_up_reading());
    GW_RETURN_IF_ERROR(read_frozen_tree());
  }
  spans_.mark("read tree");
  GW_RETURN_IF_ERROR(await_descriptors());
  spans_.mark("take descriptors");
  for (size_t i = 0; i < all.size(); ++i)
    GW_RETURN_IF_ERROR(annotate(started[i].finish(), describe(*all[i].frozen)));
  spans_.mark("wait for batches");
  const bool new_zombies = std::any_of(all.begin(), all.end(), [](const Capturing& one) {
    siginfo_t child{};
    std::memcpy(&child, one.batches[0].bytes(one.dead_child).data(), sizeof child);
    return child.si_pid != 0;
  });
  if (stands && new_zombies) GW_RETURN_IF_ERROR(read_frozen_tree());
  for (Capturing& one : all)
    GW_RETURN_IF_ERROR(annotate(collect_states(one), describe(*one.frozen)));
  return absl::OkStatus();
}

std::string Source::describe(const FrozenProcess& frozen) {
  return fmt::format("process {} ({})", frozen.process->pid.value, frozen.process->comm);
}

void Source::prepare_to_see_tasks() {
  size_t most = 0;
  for (const auto& process : tree_.processes) most = std::max(most, process.tasks.size());
  if (without_seen_tasks_ || most < kWorthSeeing) return;
  if (seen_tasks_ && seen_tasks_->capacity() >= most) return;
  // With room for what is born until the freeze.
  auto tasks = resource::SeenTasks::open(static_cast<uint32_t>(std::bit_ceil(most + most / 4)));
  if (tasks.ok()) {
    seen_tasks_ = *std::move(tasks);
    return;
  }
  log_info("threads are asked one by one: {}", message_of(tasks.status()));
  without_seen_tasks_ = true;
}

// Empty: everything is asked by calls.
Source::SeenTasksOf Source::see_tasks(const FrozenProcess& frozen) {
  const size_t count = frozen.stopped.tasks.size();
  if (count < kWorthSeeing || !seen_tasks_ || seen_tasks_->capacity() < count) return {};
  auto seen = seen_tasks_->read(frozen.process->host_pid);
  return seen.ok() ? *std::move(seen) : SeenTasksOf{};
}

absl::Status Source::add_capture_calls(Capturing& one) {
  FrozenProcess& frozen = *one.frozen;
  one.batches.resize(frozen.stopped.tasks.size());
  const SeenTasksOf seen = see_tasks(frozen);
  std::map<std::pair<const resource::TaskResource*, std::string>, size_t> decided;
  for (size_t i = 0; i < frozen.stopped.tasks.size(); ++i) {
    resource::TaskView view;
    view.tgid = frozen.process->pid;
    view.tid = frozen.tids[i];
    view.host_tgid = frozen.process->host_pid;
    view.host_tid = frozen.stopped.tasks[i].tid();
    view.leader = i == 0;
    view.pidfd = frozen.process->pidfd.get();
    view.task = &frozen.stopped.tasks[i];
    const auto found = seen.find(view.host_tid);
    if (!view.leader && found != seen.end()) view.seen = &found->second;
    for (const resource::TaskResource* resource : resource::task_resources()) {
      if (resource->scope() == resource::Scope::kProcess && i != 0) continue;
      if (found != seen.end()) {
        if (auto key = resource->decided_by(found->second)) {
          const auto [same, first] =
              decided.try_emplace({resource, *std::move(key)}, one.collecting.size());
          if (!first) {
            one.collecting.push_back({resource, i, nullptr, same->second});
            continue;
          }
        }
      }
      auto collect = resource->capture(view, one.batches[i]);
      if (!collect.ok()) return annotate(collect.status(), resource->name());
      one.collecting.push_back({resource, i, *std::move(collect), std::nullopt});
    }
  }
  // New zombies: nothing is reaped, a process without children says ECHILD.
  one.dead_child = one.batches[0].reserve(sizeof(siginfo_t));
  one.batches[0].call(SYS_waitid,
                      {P_ALL, 0, one.dead_child, WEXITED | WNOHANG | WNOWAIT | __WALL, 0});
  one.brk_call = one.batches[0].call(SYS_brk, {0}, true);
  one.expected_fds = frozen.process->fds;
  one.flag_calls = resource::add_close_on_exec_calls(one.expected_fds, one.batches[0]);
  for (size_t i = 0; i < one.batches.size(); ++i)
    if (!one.batches[i].empty())
      one.runs.push_back({&frozen.stopped.tasks[i], frozen.tids[i], &one.batches[i]});
  return absl::OkStatus();
}

absl::Status Source::collect_states(Capturing& one) {
  const FrozenProcess& frozen = *one.frozen;
  std::vector<std::string> states(one.collecting.size());
  for (size_t i = 0; i < states.size(); ++i) {
    const Capturing::Collecting& collecting = one.collecting[i];
    if (collecting.as) {
      states[i] = states[*collecting.as];
    } else {
      auto state = collecting.collect(one.batches[collecting.task]);
      if (!state.ok()) return annotate(state.status(), collecting.resource->name());
      states[i] = *std::move(state);
    }
  }
  for (size_t i = 0; i < states.size(); ++i) {
    if (states[i].empty()) continue;
    const Capturing::Collecting& collecting = one.collecting[i];
    task_states_.push_back({{std::string(collecting.resource->name()),
                             static_cast<uint64_t>(frozen.tids[collecting.task].value)},
                            std::move(states[i])});
  }
  GW_RETURN_IF_ERROR(one.batches[0].check(one.brk_call));
  frozen.process->brk = static_cast<uint64_t>(one.batches[0].result(one.brk_call));
  const ImagePid pid = frozen.process->pid;
  const std::vector<int> fds = descriptors_->numbers(pid);
  if (fds == one.expected_fds)
    return descriptors_->set_close_on_exec(pid, one.batches[0], one.flag_calls);
  // Opened or closed since the last round. The area may grow: nobody may be reading maps.
  GW_RETURN_IF_ERROR(scanner_->wait());
  tracee::Batch again;
  const std::vector<size_t> calls = resource::add_close_on_exec_calls(fds, again);
  GW_RETURN_IF_ERROR(frozen.process->area->run(one.frozen->stopped.tasks.front(), frozen.tids[0],
                                               again, Deadline::in(kTargetTimeout)));
  return descriptors_->set_close_on_exec(pid, again, calls);
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
  hurry_.reset();
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
      GW_ASSIGN_OR_RETURN(std::vector<tracee::StoppedTask> tasks,
                          stop_for_calls(process.host_pid, false));
      // Another program: the area went with the memory of the one before.
      if (process.area->stands(process.host_pid)) {
        GW_RETURN_IF_ERROR(resource::leave_critical_section(tasks.front()).status());
        GW_RETURN_IF_ERROR(process.area->unmap(tasks.front()));
      }
      return std::move(tasks.front()).detach();
    }();
    process.area.reset();
    // A process that has ended meanwhile took it along.
    if (errno_of(removed) != ESRCH) first.Update(removed);
  }
  // A process forked since the tree was read last has its parent's area, too.
  const auto members = host_.members();
  first.Update(members.status());
  if (members.ok()) first.Update(remove_left_over(*members, *translate_, perhaps_inherited_));
  perhaps_inherited_.clear();
  return first;
}

}  // namespace godwit::process
