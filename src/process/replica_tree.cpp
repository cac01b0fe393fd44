// The tree of husks: forked, placed in sessions and groups, given threads.
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <algorithm>
#include <set>
#include <span>

#include "base/status.h"
#include "process/replica.h"
#include "resource/memory_map/memory_map.h"
#include "resource/process_tree/process_tree.h"

namespace godwit::process {
namespace {

constexpr size_t kAreaBytes = size_t{1} << 20;

// Where no image has a mapping: below the address at which fixed executables start if it can be,
// else the highest gap below the usual places. All of the replica's husks use the same one.
absl::StatusOr<RemoteAddress> find_gap(const std::vector<resource::MemoryMapState>& maps) {
  const auto free = [&](uint64_t start, uint64_t end) {
    for (const auto& map : maps)
      for (const auto& mapping : map.mappings())
        if (start < mapping.end() && mapping.start() < end) return false;
    return true;
  };
  // Room to grow: batches of large descriptor tables.
  constexpr uint64_t kRoom = uint64_t{2} << 20;
  for (uint64_t at = 0x100000; at < 0x7f0000000000; at = at < 0x10000000 ? at + kRoom : at * 2)
    if (free(at, at + kRoom)) return RemoteAddress{at};
  return make_error(absl::StatusCode::kResourceExhausted,
                    "no gap of {} bytes in the address spaces of the image for the stub", kRoom);
}

}  // namespace

absl::Status Replica::build_tree() {
  const std::string* bytes = wanted("process_tree", 0);
  resource::ProcessTreeState tree;
  if (bytes == nullptr || !tree.ParseFromString(*bytes))
    return make_error(absl::StatusCode::kDataLoss, "the epoch has no valid process_tree section");
  std::set<int32_t> pids;
  for (const auto& process : tree.processes()) pids.insert(process.pid());
  GW_RETURN_IF_ERROR(remove_ended(pids));
  std::vector<int32_t> ended;
  for (const auto& [pid, host] : zombies_) ended.push_back(pid);
  std::vector<int32_t> existing;
  for (const auto& [pid, husk] : husks_) existing.push_back(pid);
  GW_ASSIGN_OR_RETURN(const std::vector<resource::TreeStep> steps,
                      resource::plan_process_tree(tree, existing, ended));
  for (const resource::TreeStep& step : steps) GW_RETURN_IF_ERROR(run_step(step));
  return check_controlling_terminals(tree);
}

absl::Status Replica::run_step(const resource::TreeStep& step) {
  using Kind = resource::TreeStep::Kind;
  const auto husk = [&](int32_t pid) -> absl::StatusOr<Husk*> {
    const auto found = husks_.find(pid);
    if (found == husks_.end())
      return make_error(absl::StatusCode::kDataLoss, "process tree: process {} is not alive", pid);
    return &found->second;
  };
  switch (step.kind) {
    case Kind::kFork: {
      if (step.by == 1) {
        std::vector<resource::MemoryMapState> maps;
        for (const auto& [key, state] : sections_)
          if (key.kind == "memory_map" && !maps.emplace_back().ParseFromString(state))
            return make_error(absl::StatusCode::kDataLoss, "memory_map of process {} is not valid",
                              key.id);
        GW_ASSIGN_OR_RETURN(const RemoteAddress area, find_gap(maps));
        GW_ASSIGN_OR_RETURN(const HostPid host,
                            host_.spawn_husk({step.pid}, channel_far_.get(), channel_.husk_number));
        GW_ASSIGN_OR_RETURN(Husk made, Husk::from_init_child({step.pid}, host, area, kAreaBytes));
        husks_.emplace(step.pid, std::move(made));
        return absl::OkStatus();
      }
      GW_ASSIGN_OR_RETURN(Husk * parent, husk(step.by));
      if (!step.through_helper) {
        GW_ASSIGN_OR_RETURN(Husk made, parent->fork({step.pid}, step.exit_signal));
        husks_.emplace(step.pid, std::move(made));
        return absl::OkStatus();
      }
      // The helper takes any free pid, and init inherits its child when it ends.
      GW_ASSIGN_OR_RETURN(Husk helper, parent->fork({0}, 0));
      GW_ASSIGN_OR_RETURN(Husk made, helper.fork({step.pid}, step.exit_signal));
      GW_RETURN_IF_ERROR(helper.kill());
      tracee::Batch reap;
      // Exit signal 0: only __WALL sees it (wait4(2)).
      reap.call(SYS_wait4, {-1, 0, __WALL | WNOHANG, 0}, true);
      GW_RETURN_IF_ERROR(parent->run(reap));
      GW_RETURN_IF_ERROR(reap.check_all());
      husks_.emplace(step.pid, std::move(made));
      return absl::OkStatus();
    }
    case Kind::kSetsid:
    case Kind::kSetpgid: {
      GW_ASSIGN_OR_RETURN(Husk * one, husk(step.pid));
      tracee::Batch batch;
      if (step.kind == Kind::kSetsid)
        batch.call(SYS_setsid, {}, true);
      else
        batch.call(SYS_setpgid, {0, step.group}, true);
      GW_RETURN_IF_ERROR(one->run(batch));
      return annotate(batch.check_all(), fmt::format("process {}", step.pid));
    }
    case Kind::kTerminal: {
      GW_ASSIGN_OR_RETURN(Husk * one, husk(step.pid));
      return annotate(take_terminal(*one, step.terminal), fmt::format("process {}", step.pid));
    }
    case Kind::kExit: {
      GW_ASSIGN_OR_RETURN(Husk * one, husk(step.pid));
      if (!step.ghost) {
        tracee::Batch rename;
        // PR_SET_NAME(2const): with its zero; the kernel cuts what is longer than 15 bytes.
        const auto name = std::as_bytes(std::span(step.name.c_str(), step.name.size() + 1));
        rename.call(SYS_prctl, {PR_SET_NAME, rename.data(name)});
        GW_RETURN_IF_ERROR(one->run(rename));
      }
      const HostPid host = one->host_pid();
      GW_RETURN_IF_ERROR(one->exit(step.wait_status));
      husks_.erase(step.pid);
      appliers_.erase(step.pid);
      terminal_of_.erase(step.pid);
      if (!step.ghost) zombies_.emplace(step.pid, host);
      return absl::OkStatus();
    }
    case Kind::kReap: {
      GW_ASSIGN_OR_RETURN(Husk * parent, husk(step.by));
      tracee::Batch reap;
      reap.call(SYS_wait4, {step.pid, 0, __WALL | WNOHANG, 0}, true);
      GW_RETURN_IF_ERROR(parent->run(reap));
      return reap.check_all();
    }
    case Kind::kInvalid:
      break;
  }
  return make_error(absl::StatusCode::kInternal, "process tree: a step without a kind");
}

absl::Status Replica::remove_ended(const std::set<int32_t>& wanted_pids) {
  std::vector<int32_t> gone;
  for (const auto& [pid, husk] : husks_)
    if (!wanted_pids.contains(pid)) gone.push_back(pid);
  for (const int32_t pid : gone) {
    GW_RETURN_IF_ERROR(husks_.at(pid).kill());
    husks_.erase(pid);
    appliers_.erase(pid);
    terminal_of_.erase(pid);
  }
  for (auto at = zombies_.begin(); at != zombies_.end();) {
    if (wanted_pids.contains(at->first)) {
      ++at;
    } else {
      gone.push_back(at->first);
      at = zombies_.erase(at);
    }
  }
  // Whoever is the parent reaps: asking all is simpler than knowing, and this is not the freeze.
  for (const int32_t pid : gone)
    for (auto& [parent, husk] : husks_) {
      tracee::Batch reap;
      reap.call(SYS_wait4, {pid, 0, __WALL | WNOHANG, 0});
      GW_RETURN_IF_ERROR(husk.run(reap));
    }
  return absl::OkStatus();
}

absl::Status Replica::build_threads() {
  resource::ProcessTreeState tree;
  if (!tree.ParseFromString(*wanted("process_tree", 0)))
    return make_error(absl::StatusCode::kDataLoss, "process_tree is not valid");
  for (const auto& process : tree.processes()) {
    const auto found = husks_.find(process.pid());
    if (found == husks_.end()) continue;
    Husk& husk = found->second;
    std::vector<ImagePid> missing;
    for (const int32_t tid : process.threads())
      if (std::none_of(husk.tasks().begin(), husk.tasks().end(),
                       [&](const HuskTask& t) { return t.tid.value == tid; }))
        missing.push_back({tid});
    std::vector<ImagePid> ended;
    for (const HuskTask& task : husk.tasks())
      if (std::find(process.threads().begin(), process.threads().end(), task.tid.value) ==
          process.threads().end())
        ended.push_back(task.tid);
    for (const ImagePid tid : ended) GW_RETURN_IF_ERROR(husk.end_thread(tid));
    GW_RETURN_IF_ERROR(husk.make_threads(missing));
  }
  return absl::OkStatus();
}

}  // namespace godwit::process
