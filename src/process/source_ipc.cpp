// What belongs to the capsule's ipc namespace. Segments are shared objects, which travel in rounds;
// semaphores and queues are small, and only their last state counts.
#include <fcntl.h>

#include "base/status.h"
#include "kernel/syscalls.h"
#include "process/source.h"
#include "resource/posix_mqueue/posix_mqueue.h"
#include "resource/sysv_ipc/queues.h"
#include "resource/sysv_ipc/semaphores.h"
#include "resource/sysv_ipc/sysv_ipc.h"

namespace godwit::process {

absl::StatusOr<const kernel::KernelMemory*> Source::kernel_memory() const {
  std::lock_guard lock(kernel_memory_mutex_);
  if (!kernel_memory_) {
    GW_ASSIGN_OR_RETURN(kernel_memory_, kernel::KernelMemory::open());
  }
  return kernel_memory_.get();
}

absl::Status Source::read_semaphores(std::vector<resource::SemaphoreSetState>& sets) {
  GW_RETURN_IF_ERROR(host_.in_capsule([&]() -> absl::Status {
    GW_ASSIGN_OR_RETURN(sets, resource::read_semaphores());
    return absl::OkStatus();
  }));
  if (sets.empty()) return absl::OkStatus();
  GW_ASSIGN_OR_RETURN(const kernel::KernelMemory* memory, kernel_memory());
  std::vector<std::pair<ImagePid, HostPid>> pids;
  for (const auto& [pid, process] : processes_) pids.emplace_back(process.pid, process.host_pid);
  return resource::read_undo(pids, *memory, sets);
}

absl::Status Source::precheck_ipc(std::vector<resource::Refusal>& refusals) {
  std::vector<resource::SemaphoreSetState> sets;
  const absl::Status read = read_semaphores(sets);
  if (!read.ok()) {
    const std::string object = fmt::format("{} sets of System V semaphores", sets.size());
    if (absl::IsFailedPrecondition(read))
      refusals.push_back({"ipc.undo", object, std::string(message_of(read)),
                          "let the program use threads instead"});
    else if (!sets.empty())
      refusals.push_back({"ipc.semaphores", object,
                          "this kernel does not show what it would undo when a process ends "
                          "(SEM_UNDO): " +
                              std::string(message_of(read)),
                          "a kernel with CONFIG_DEBUG_INFO_BTF, as distributions have it; or "
                          "remove unused sets (ipcrm)"});
    else
      return read;
  }
  GW_RETURN_IF_ERROR(host_.in_capsule([&]() -> absl::Status {
    GW_ASSIGN_OR_RETURN(queue_folder_, resource::open_queue_folder());
    const absl::Status queues = resource::read_queues().status();
    if (!absl::IsFailedPrecondition(queues)) return queues;
    refusals.push_back({"ipc.queues", "a System V message queue", std::string(message_of(queues)),
                        "let the program read some of it"});
    return absl::OkStatus();
  }));
  return for_named_queues([&](int queue, const std::string& name) {
    return resource::refuse_posix_queue(
        queue, "POSIX message queue /" + name, [&] { return kernel_memory(); }, refusals);
  });
}

// Of POSIX. They live without a descriptor.
absl::Status Source::for_named_queues(
    absl::FunctionRef<absl::Status(int, const std::string&)> each) const {
  GW_ASSIGN_OR_RETURN(const std::vector<std::string> names,
                      resource::queue_names(queue_folder_.get()));
  for (const std::string& name : names) {
    auto queue = kernel::openat(queue_folder_.get(), name, O_RDONLY | O_CLOEXEC);
    if (errno_of(queue.status()) == ENOENT) continue;  // just removed
    GW_RETURN_IF_ERROR(queue.status());
    GW_RETURN_IF_ERROR(each(queue->get(), name));
  }
  return absl::OkStatus();
}

absl::Status Source::read_ipc() {
  ipc_states_.clear();
  std::vector<resource::MessageQueueState> queues;
  GW_RETURN_IF_ERROR(host_.in_capsule([&]() -> absl::Status {
    GW_ASSIGN_OR_RETURN(segments_, resource::read_segments());
    if (!queue_folder_) {
      GW_ASSIGN_OR_RETURN(queue_folder_, resource::open_queue_folder());
    }
    if (!final_) return absl::OkStatus();
    GW_ASSIGN_OR_RETURN(queues, resource::read_queues());
    return absl::OkStatus();
  }));
  if (!final_) return absl::OkStatus();
  GW_RETURN_IF_ERROR(for_named_queues([&](int fd, const std::string& name) -> absl::Status {
    GW_ASSIGN_OR_RETURN(const auto queue,
                        resource::read_posix_queue(fd, name, [&] { return kernel_memory(); }));
    ipc_states_.emplace_back(stream::SectionKey{"posix_queue", queue.id()},
                             queue.SerializeAsString());
    return absl::OkStatus();
  }));
  std::vector<resource::SemaphoreSetState> sets;
  GW_RETURN_IF_ERROR(read_semaphores(sets));
  for (const auto& set : sets)
    ipc_states_.emplace_back(
        stream::SectionKey{"semaphores", static_cast<uint64_t>(set.number()) + 1},
        set.SerializeAsString());
  for (const auto& queue : queues)
    ipc_states_.emplace_back(
        stream::SectionKey{"message_queue", static_cast<uint64_t>(queue.number()) + 1},
        queue.SerializeAsString());
  return absl::OkStatus();
}

}  // namespace godwit::process
