// What no call tells, the kernel's memory does: with how many requests a queue was made, whether
// any is under way.
#include <fmt/format.h>

#include <algorithm>

#include "base/status.h"
#include "resource/aio/aio.h"
#include "resource/aio/ring.h"
#include "tracee/memory.h"

namespace godwit::resource {
namespace {

using kernel::KernelAddress;
using kernel::KernelMemory;

absl::StatusOr<std::vector<KernelAddress>> queues_of(HostPid pid, const KernelMemory& memory) {
  GW_ASSIGN_OR_RETURN(const KernelAddress task, memory.task(pid));
  GW_ASSIGN_OR_RETURN(const KernelAddress mm, memory.pointer(task, "task_struct", "mm"));
  if (!mm) return errno_status(ESRCH, fmt::format("process {}", pid.value));
  GW_ASSIGN_OR_RETURN(const KernelAddress table, memory.pointer(mm, "mm_struct", "ioctx_table"));
  std::vector<KernelAddress> queues;
  if (!table) return queues;
  GW_ASSIGN_OR_RETURN(const uint64_t count, memory.number(table, "kioctx_table", "nr"));
  if (count > kMostQueues)
    return make_error(absl::StatusCode::kFailedPrecondition, "{} queues are too many", count);
  GW_ASSIGN_OR_RETURN(const KernelAddress list, memory.member(table, "kioctx_table", "table"));
  queues.resize(count);
  GW_RETURN_IF_ERROR(memory.read(list, std::as_writable_bytes(std::span(queues))));
  return queues;
}

struct Queue {
  uint32_t index;
  uint64_t max_requests;
  uint64_t tail;
  AddressRange ring;
};

// kUnavailable: it has requests under way.
absl::StatusOr<std::vector<Queue>> read_queues(HostPid pid, const KernelMemory& memory) {
  GW_ASSIGN_OR_RETURN(const std::vector<KernelAddress> all, queues_of(pid, memory));
  std::vector<Queue> queues;
  int64_t under_way = 0;
  for (size_t index = 0; index < all.size(); ++index) {
    if (!all[index]) continue;
    const auto number = [&](std::string_view path) {
      return memory.number(all[index], "kioctx", path);
    };
    Queue& queue = queues.emplace_back();
    queue.index = static_cast<uint32_t>(index);
    GW_ASSIGN_OR_RETURN(queue.max_requests, number("max_reqs"));
    GW_ASSIGN_OR_RETURN(queue.tail, number("tail"));
    GW_ASSIGN_OR_RETURN(queue.ring.start, number("mmap_base"));
    GW_ASSIGN_OR_RETURN(const uint64_t bytes, number("mmap_size"));
    queue.ring.end = queue.ring.start + bytes;
    GW_ASSIGN_OR_RETURN(const KernelAddress requests, memory.member(all[index], "kioctx", "reqs"));
    GW_ASSIGN_OR_RETURN(const int64_t some, memory.references(requests));
    under_way += some - 1;  // one is the queue's own (ioctx_alloc())
  }
  if (under_way != 0)
    return make_error(absl::StatusCode::kUnavailable,
                      "process {}: {} requests of asynchronous I/O (io_submit) are under way",
                      pid.value, under_way);
  return queues;
}

absl::Status add_ring(HostPid pid, const Queue& queue, AioState& state) {
  const uint64_t bytes = queue.ring.end - queue.ring.start;
  if (bytes > kMostRingBytes)
    return make_error(absl::StatusCode::kFailedPrecondition, "a queue of {} MiB is too large",
                      bytes >> 20);
  AioRingState& ring = *state.add_rings();
  ring.set_address(queue.ring.start);
  ring.set_index(queue.index);
  ring.set_max_requests(static_cast<uint32_t>(queue.max_requests));
  ring.set_tail(static_cast<uint32_t>(queue.tail));
  std::string& content = *ring.mutable_memory();
  content.resize(bytes);
  return tracee::read_memory(pid, {queue.ring.start},
                             std::as_writable_bytes(std::span(content.data(), content.size())));
}

// A ring that was mapped when the process was forked: it is another process's queue, of which no
// call works here (lookup_ioctx() finds none under its index). So it gets an index of its own.
absl::Status add_inherited(HostPid pid, const AddressRange& ring, AioState& state) {
  AioRingHeader header{};
  GW_RETURN_IF_ERROR(
      tracee::read_memory(pid, {ring.start}, std::as_writable_bytes(std::span(&header, 1))));
  const auto taken = [&](uint32_t index) {
    return index == header.id ||
           std::any_of(state.rings().begin(), state.rings().end(),
                       [&](const AioRingState& one) { return one.index() == index; });
  };
  Queue queue{0, most_requests(ring.end - ring.start), 0, ring};
  while (taken(queue.index)) ++queue.index;
  return add_ring(pid, queue, state);
}

}  // namespace

absl::StatusOr<AioState> read_aio(HostPid pid, std::span<const AddressRange> rings,
                                  const KernelMemory& memory) {
  GW_ASSIGN_OR_RETURN(const std::vector<Queue> queues, read_queues(pid, memory));
  AioState state;
  std::vector<AddressRange> inherited;
  for (const AddressRange& ring : rings) {
    const auto queue = std::find_if(queues.begin(), queues.end(), [&](const Queue& one) {
      return one.ring.overlaps(ring.start, ring.end);
    });
    if (queue == queues.end())
      inherited.push_back(ring);
    else if (queue->ring.start != ring.start || queue->ring.end != ring.end)
      return absl::FailedPreconditionError("only a part of a queue's ring is mapped");
    else
      GW_RETURN_IF_ERROR(add_ring(pid, *queue, state));
  }
  // A queue whose ring is not mapped any more no call reaches.
  for (const AddressRange& ring : inherited) GW_RETURN_IF_ERROR(add_inherited(pid, ring, state));
  std::sort(state.mutable_rings()->begin(), state.mutable_rings()->end(),
            [](const auto& a, const auto& b) { return a.index() < b.index(); });
  return state;
}

void refuse_aio(const absl::Status& read, std::string_view process,
                std::vector<Refusal>& refusals) {
  const std::string object = fmt::format("{}, asynchronous I/O (io_setup)", process);
  const std::string reason(message_of(read));
  if (absl::IsFailedPrecondition(read))
    refusals.push_back(
        {"aio.ring", object, reason, "leave the queue's memory as io_setup made it"});
  else
    refusals.push_back({"aio.kernel", object,
                        "this kernel does not show what is under way: " + reason,
                        "a kernel with CONFIG_DEBUG_INFO_BTF, as distributions have it; or switch "
                        "it off in the program (innodb_use_native_aio=0, aio threads)"});
}

}  // namespace godwit::resource
