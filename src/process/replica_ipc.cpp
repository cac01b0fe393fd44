// Semaphores and message queues of a replica: made in the last epoch, and what processes' ends give
// back by operations of those processes.
#include "base/status.h"
#include "process/replica.h"
#include "resource/posix_mqueue/posix_mqueue.h"
#include "resource/sysv_ipc/queues.h"
#include "resource/sysv_ipc/semaphores.h"

namespace godwit::process {

// Before their descriptors.
absl::Status Replica::make_posix_queues() {
  std::vector<resource::PosixQueueState> queues;
  for (auto at = sections_.lower_bound({"posix_queue", 0});
       at != sections_.end() && at->first.kind == "posix_queue"; ++at) {
    GW_ASSIGN_OR_RETURN(resource::PosixQueueState queue, resource::parse_posix_queue(at->second));
    queues.push_back(std::move(queue));
  }
  if (queues.empty()) return absl::OkStatus();
  return host_.in_capsule([&]() -> absl::Status {
    for (const auto& queue : queues) GW_RETURN_IF_ERROR(resource::make_posix_queue(queue));
    return absl::OkStatus();
  });
}

absl::Status Replica::make_ipc() {
  std::vector<resource::SemaphoreSetState> sets;
  std::vector<resource::MessageQueueState> queues;
  for (auto at = sections_.lower_bound({"semaphores", 0});
       at != sections_.end() && at->first.kind == "semaphores"; ++at) {
    GW_ASSIGN_OR_RETURN(resource::SemaphoreSetState set, resource::parse_semaphores(at->second));
    sets.push_back(std::move(set));
  }
  for (auto at = sections_.lower_bound({"message_queue", 0});
       at != sections_.end() && at->first.kind == "message_queue"; ++at) {
    GW_ASSIGN_OR_RETURN(resource::MessageQueueState queue, resource::parse_queue(at->second));
    queues.push_back(std::move(queue));
  }
  if (sets.empty() && queues.empty()) return absl::OkStatus();
  GW_RETURN_IF_ERROR(host_.in_capsule([&]() -> absl::Status {
    absl::Status made;
    for (const auto& set : sets)
      if (made.ok()) made = resource::make_semaphores(set);
    for (const auto& queue : queues)
      if (made.ok()) made = resource::make_queue(queue);
    return made;
  }));
  for (auto& [pid, husk] : husks_) {
    tracee::Batch batch;
    for (const auto& set : sets) resource::add_undo_calls(set, husk.pid(), batch);
    if (batch.empty()) continue;
    GW_RETURN_IF_ERROR(husk.run(batch));
    GW_RETURN_IF_ERROR(annotate(batch.check_all(), fmt::format("process {}", pid)));
  }
  return absl::OkStatus();
}

}  // namespace godwit::process
