#include "node/process_check.h"

#include <sys/stat.h>

#include <algorithm>
#include <deque>

#include "base/status.h"
#include "base/utf8.h"
#include "capsule/enter.h"
#include "kernel/proc/status.h"
#include "kernel/proc/tasks.h"
#include "pages/page_set.h"
#include "process/source.h"

namespace godwit::node {
namespace {

// It and all below it; those that end meanwhile are left out.
absl::StatusOr<std::vector<HostPid>> tree_below(HostPid root) {
  std::vector<HostPid> all;
  std::deque<HostPid> next{root};
  while (!next.empty()) {
    const HostPid pid = next.front();
    next.pop_front();
    const auto tasks = kernel::read_tasks(pid);
    if (!tasks.ok()) continue;
    all.push_back(pid);
    for (const HostPid tid : *tasks) {
      const auto children = kernel::read_children(pid, tid);
      if (children.ok()) next.insert(next.end(), children->begin(), children->end());
    }
  }
  if (all.empty())
    return make_error(absl::StatusCode::kNotFound, "there is no process {}", root.value);
  std::sort(all.begin(), all.end());
  return all;
}

// Pipes that somebody has given it as its standard streams.
std::array<ino_t, 3> standard_streams(HostPid pid) {
  std::array<ino_t, 3> inodes = {0, 0, 0};
  for (size_t i = 0; i < inodes.size(); ++i) {
    struct stat stat {};
    const std::string path = fmt::format("/proc/{}/fd/{}", pid.value, i);
    if (::stat(path.c_str(), &stat) == 0 && S_ISFIFO(stat.st_mode)) inodes[i] = stat.st_ino;
  }
  return inodes;
}

}  // namespace

absl::StatusOr<ProcessCheck> check_process(HostPid root) {
  const auto status = kernel::read_task_status(root);
  if (!status.ok())
    return make_error(absl::StatusCode::kNotFound, "there is no process {}", root.value);
  auto entered = capsule::CapsuleThread::start(root);
  if (!entered.ok())
    return annotate(entered.status(), fmt::format("the namespaces of process {}", root.value));
  const auto thread = *std::move(entered);
  process::SourceHost host;
  host.init = root;
  host.members = [root] { return tree_below(root); };
  host.in_capsule = [&](absl::FunctionRef<absl::Status()> action) { return thread->run(action); };
  host.stdio_inodes = standard_streams(root);
  GW_ASSIGN_OR_RETURN(const auto source, process::Source::create(std::move(host)));
  std::vector<resource::Refusal> refusals;
  GW_RETURN_IF_ERROR(source->precheck(refusals));
  GW_ASSIGN_OR_RETURN(const process::MemoryEstimate memory, source->estimate());

  ProcessCheck check;
  check.descriptions = source->descriptions_by_kind();
  api::MigrateResult& result = check.result;
  result.set_name(fmt::format("process {} ({})", root.value, escape_non_utf8(status->name)));
  result.set_outcome(refusals.empty() ? "movable" : "refused");
  for (const resource::Refusal& each : refusals) {
    api::Refusal& refusal = *result.add_refusals();
    refusal.set_code(each.code);
    refusal.set_object(escape_non_utf8(each.object));
    refusal.set_reason(escape_non_utf8(each.reason));
    refusal.set_way_out(each.way_out);
  }
  const process::SourceCounts counts = source->counts();
  api::MigrationStatistics& statistics = *result.mutable_statistics();
  statistics.set_processes(counts.processes);
  statistics.set_threads(counts.threads);
  statistics.set_descriptors(counts.descriptors);
  statistics.set_connections(counts.connections);
  statistics.set_memory_bytes(memory.resident_pages * pages::kPageSize);
  return check;
}

}  // namespace godwit::node
