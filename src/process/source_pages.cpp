// Pages of an epoch: what the trackers find, and what changed in shared objects.
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>

#include "base/fault_point.h"
#include "base/status.h"
#include "kernel/syscalls.h"
#include "process/shared_objects.h"
#include "process/source.h"
#include "resource/memory_map/memory_map.h"
#include "resource/sysv_ipc/sysv_ipc.h"

namespace godwit::process {

absl::StatusOr<RoundResult> Source::send_pages(stream::Writer& writer, bool frozen) {
  RoundResult result;
  const int64_t begin = monotonic_ns();
  const uint64_t sent_before = control_.pages_sent;
  const uint64_t zero_before = control_.zero_pages;
  const uint64_t bytes_before = writer.bytes_written();
  const uint64_t saved_before = control_.compression().saved();
  if (frozen) {
    GW_RETURN_IF_ERROR(scanner_->wait());
    spans_.mark("scan");
  }
  for (auto& [pid, process] : processes_) {
    if (!process.tracker) {
      if (!frozen) continue;  // appeared in this round: tracked from the next one on
      return make_error(absl::StatusCode::kInternal, "process {} is not tracked", pid);
    }
    const absl::Status sent = send_pages_of(process, writer, frozen, result);
    if (sent.ok()) continue;
    // A process that ends in a round is missing in the next reading of the tree.
    if (!frozen && errno_of(sent) == ESRCH) continue;
    return annotate(sent, fmt::format("pages of process {} ({})", pid, process.comm));
  }
  GW_RETURN_IF_ERROR(send_objects(writer, frozen));
  result.pages = control_.pages_sent - sent_before;
  result.zero_pages = control_.zero_pages - zero_before;
  result.bytes = writer.bytes_written() - bytes_before;
  result.saved = control_.compression().saved() - saved_before;
  result.total_ns = monotonic_ns() - begin;
  return result;
}

absl::Status Source::send_pages_of(SourceProcess& process, stream::Writer& writer, bool frozen,
                                   RoundResult& result) {
  FAULT_POINT("source.send_pages");
  const int64_t begin = monotonic_ns();
  pages::ScanResult found;
  if (frozen) {
    found = std::exchange(process.last_scan, pages::ScanResult());
  } else {
    note_pins(process);
    GW_RETURN_IF_ERROR(process.tracker->scan(pages::private_mappings(process.maps),
                                             pages::ScanMode::kRunning, found));
    GW_RETURN_IF_ERROR(keep_pinned(process, found));
  }
  result.lead_ns += monotonic_ns() - begin;
  if (!found.guards.empty())
    return make_error(absl::StatusCode::kFailedPrecondition,
                      "guard regions (MADV_GUARD_INSTALL) are not carried");
  if (!frozen) {
    pages::PageSet written = found.dirty;
    written.add(found.dirty_file);
    process.working_set.scanned(std::move(written), found.dropped);
    result.classes += process.working_set.classes();
  }
  const auto space = static_cast<uint64_t>(process.pid.value);
  pages::PageSet missing;
  if (leaving_behind_) {
    GW_ASSIGN_OR_RETURN(missing, leave_out_of(process, frozen, found));
  }
  const std::vector<stream::PageRun> dropped = found.dropped.runs();
  for (size_t at = 0; at < dropped.size(); at += stream::kMaxRunsPerFrame)
    GW_RETURN_IF_ERROR(writer.pages_dropped(
        space,
        std::span(dropped).subspan(at, std::min(stream::kMaxRunsPerFrame, dropped.size() - at))));
  if (!process.sender)
    process.sender = std::make_unique<pages::PageSender>(process.host_pid, writer, control_);
  pages::PageSet unreadable;
  GW_RETURN_IF_ERROR(process.sender->send(space, found.dirty, pages::ZeroPages::kDrop, unreadable));
  GW_RETURN_IF_ERROR(
      process.sender->send(space, found.dirty_file, pages::ZeroPages::kCarry, unreadable));
  GW_RETURN_IF_ERROR(writer.pages_missing(space, missing.runs()));
  if (frozen && !unreadable.empty())
    return make_error(absl::StatusCode::kInternal, "{} pages from {:x} on cannot be read",
                      unreadable.pages(), unreadable.ranges().front().start);
  // Unmapped since, most likely; but whatever else it was, they are still to be carried.
  process.tracker->forget(unreadable);
  return absl::OkStatus();
}

// One that nobody has attached: we do, for a moment.
absl::StatusOr<UniqueFd> Source::open_segment(const resource::SharedObjectState& segment) {
  void* memory = nullptr;
  GW_RETURN_IF_ERROR(host_.in_capsule([&]() -> absl::Status {
    GW_ASSIGN_OR_RETURN(memory, resource::attach_segment(segment.segment().shmid(), true));
    return absl::OkStatus();
  }));
  GW_ASSIGN_OR_RETURN(const auto maps, kernel::read_maps(HostPid{::getpid()}));
  const auto at = reinterpret_cast<uint64_t>(memory);
  const auto mapping = std::find_if(maps.begin(), maps.end(),
                                    [&](const kernel::Mapping& one) { return one.start == at; });
  if (mapping == maps.end())
    return make_error(absl::StatusCode::kInternal, "segment {} is not mapped at {:x}",
                      segment.segment().shmid(), at);
  const uint64_t bytes = mapping->size();  // whole pages of its kind
  auto fd = open_own_mapping(memory, bytes, O_RDONLY);
  ::munmap(memory, bytes);
  return fd;
}

absl::StatusOr<ObjectSender*> Source::sender_of_segment(
    const resource::SharedObjectState& segment) {
  if (const auto known = objects_.find(segment.id()); known != objects_.end())
    return known->second.get();
  GW_ASSIGN_OR_RETURN(UniqueFd fd, open_segment(segment));
  auto sender = std::make_unique<ObjectSender>(segment.id(), std::move(fd));
  return objects_.emplace(segment.id(), std::move(sender)).first->second.get();
}

absl::Status Source::send_object(ObjectSender& sender, stream::Writer& writer, bool frozen) {
  if (!frozen) return sender.send(writer, control_, true);
  // Without rounds nobody has made threads.
  if (!pool_) pool_ = std::make_unique<pages::WorkPool>(1);
  return sender.send_frozen(writer, control_, *pool_);
}

absl::Status Source::send_objects(stream::Writer& writer, bool frozen) {
  std::set<uint64_t> present;
  for (auto& [pid, process] : processes_) {
    for (const resource::MappingState& mapping : process.memory_map.mappings()) {
      if (mapping.object() == 0 || !present.insert(mapping.object()).second) continue;
      auto& sender = objects_[mapping.object()];
      if (!sender) {
        auto fd = kernel::open(fmt::format("/proc/{}/map_files/{:x}-{:x}", process.host_pid.value,
                                           mapping.start(), mapping.end()),
                               O_RDONLY | O_CLOEXEC);
        if (!fd.ok()) {
          present.erase(mapping.object());
          if (!frozen) continue;  // unmapped meanwhile
          return fd.status();
        }
        sender = std::make_unique<ObjectSender>(mapping.object(), *std::move(fd));
      }
      GW_RETURN_IF_ERROR(send_object(*sender, writer, frozen));
    }
  }
  for (const resource::SharedObjectState& segment : segments_) {
    if (!present.insert(segment.id()).second) continue;
    const auto sender = sender_of_segment(segment);
    if (!sender.ok()) {
      present.erase(segment.id());
      if (!frozen) continue;  // removed meanwhile
      return sender.status();
    }
    GW_RETURN_IF_ERROR(send_object(**sender, writer, frozen));
  }
  // An inode number may be used again: what is not mapped now is forgotten, and never kept open.
  std::erase_if(objects_, [&](const auto& entry) { return !present.contains(entry.first); });
  return absl::OkStatus();
}

}  // namespace godwit::process
