// Asynchronous and direct I/O: what of it is under way when a process stands still, and pages that
// it writes without a fault.
#include <fcntl.h>
#include <poll.h>
#include <sys/syscall.h>

#include <algorithm>

#include "base/clock.h"
#include "base/status.h"
#include "process/source.h"
#include "process/timeouts.h"
#include "resource/aio/aio.h"
#include "resource/io_uring/io_uring.h"

namespace godwit::process {
namespace {

using resource::MappingState;

// What a disk does with requests that it has; what waits for a peer would last for ever.
constexpr absl::Duration kUnderWay = absl::Milliseconds(20);
constexpr int64_t kNapNs = 100'000;

std::vector<resource::AddressRange> aio_rings(const resource::MemoryMapState& map) {
  std::vector<resource::AddressRange> rings;
  for (const MappingState& mapping : map.mappings())
    if (mapping.kind() == MappingState::KIND_AIO_RING)
      rings.push_back({mapping.start(), mapping.end()});
  return rings;
}

bool has_io_uring(const resource::MemoryMapState& map) {
  return std::any_of(map.mappings().begin(), map.mappings().end(), [](const MappingState& one) {
    return one.kind() == MappingState::KIND_IO_URING;
  });
}

}  // namespace

void Source::note_io_uring(SourceProcess& process) {
  process.io_uring = has_io_uring(process.memory_map);
}

// As of the last round; without any it is not known, and whoever runs is looked at.
bool Source::uses_io_uring(HostPid pid) const {
  for (const auto& [image, process] : processes_)
    if (process.host_pid == pid) return process.io_uring || process.memory_map.mappings().empty();
  return true;
}

// Before the tasks are held: what a device has done with is ended by the thread that asked for it
// (task_work_add(), kernel/task_work.c), which stands still. It runs a call of no effect.
absl::Status Source::drain_io_uring() {
  const Deadline deadline = Deadline::in(kUnderWay);
  for (FrozenProcess& frozen : frozen_) {
    if (!frozen.process->io_uring) continue;
    GW_ASSIGN_OR_RETURN(const kernel::KernelMemory* memory, kernel_memory());
    while (!deadline.passed()) {
      std::vector<size_t> busy;
      for (size_t i = 0; i < frozen.stopped.tasks.size(); ++i) {
        const auto requests = resource::io_uring_requests(frozen.stopped.tasks[i].tid(), *memory);
        // One that cannot be asked: capture says so.
        if (requests.ok() && *requests > 0) busy.push_back(i);
      }
      if (busy.empty()) break;
      std::vector<tracee::Batch> batches(busy.size());
      std::vector<tracee::StubArea::Run> runs;
      for (size_t i = 0; i < busy.size(); ++i) {
        batches[i].call(SYS_getpid, {});
        runs.push_back({&frozen.stopped.tasks[busy[i]], frozen.tids[busy[i]], &batches[i]});
      }
      GW_RETURN_IF_ERROR(annotate(frozen.process->area->run_all(runs, Deadline::in(kTargetTimeout)),
                                  describe(frozen)));
      const timespec nap{0, kNapNs};
      ::ppoll(nullptr, 0, &nap, nullptr);
    }
  }
  return absl::OkStatus();
}

bool Source::has_ring(uint64_t inode) const {
  const auto& all = descriptors_->descriptions();
  return std::any_of(all.begin(), all.end(), [&](const auto& one) {
    return one.file.link == resource::kIoUringLink && one.file.stat.st_ino == inode;
  });
}

absl::Status Source::precheck_aio(const SourceProcess& process, std::string_view name,
                                  std::vector<resource::Refusal>& refusals) const {
  std::vector<resource::AddressRange> rings;
  for (const kernel::Mapping& mapping : process.maps)
    if (resource::is_io_uring(mapping) && !has_ring(mapping.inode))
      refusals.push_back(
          {"io_uring.closed",
           fmt::format("{}, mapping {:x}-{:x} {}", name, mapping.start, mapping.end, mapping.path),
           "no process has the ring's descriptor open any more",
           "keep it open, or unmap its memory"});
  for (const kernel::Mapping& mapping : process.maps)
    if (resource::is_aio_ring(mapping) && mapping.read && mapping.write)
      rings.push_back({mapping.start, mapping.end});
  if (rings.empty() && !process.direct_io) return absl::OkStatus();
  const auto read = [&]() -> absl::Status {
    GW_ASSIGN_OR_RETURN(const kernel::KernelMemory* memory, kernel_memory());
    GW_RETURN_IF_ERROR(pages::PinnedPages::open(*memory).status());
    if (rings.empty()) return absl::OkStatus();
    return resource::read_aio(process.host_pid, rings, *memory).status();
  }();
  // The program runs: its requests come and go, and so does it.
  if (read.ok() || absl::IsUnavailable(read) || errno_of(read) == ESRCH) return absl::OkStatus();
  if (rings.empty())
    refusals.push_back({"aio.direct", fmt::format("{}, files open with O_DIRECT", name),
                        "this kernel does not show which pages calls on them hold: " +
                            std::string(message_of(read)),
                        "a kernel with CONFIG_DEBUG_INFO_BTF, as distributions have it; or open "
                        "them without"});
  else
    resource::refuse_aio(read, name, refusals);
  return absl::OkStatus();
}

// Nothing new begins while everything is stopped, and what a device has to do it does now.
absl::Status Source::capture_aio() {
  aio_states_.clear();
  GW_RETURN_IF_ERROR(has_looked_.get());
  const Deadline deadline = Deadline::in(kUnderWay);
  for (auto& [pid, process] : processes_) {
    note_io_uring(process);
    for (const MappingState& mapping : process.memory_map.mappings())
      if (mapping.kind() == MappingState::KIND_IO_URING && !has_ring(mapping.ring()))
        return make_error(absl::StatusCode::kFailedPrecondition,
                          "process {}: a ring of io_uring is mapped whose descriptor was closed",
                          pid);
    const std::vector<resource::AddressRange> rings = aio_rings(process.memory_map);
    if (rings.empty()) continue;
    GW_ASSIGN_OR_RETURN(const kernel::KernelMemory* memory, kernel_memory());
    auto state = resource::read_aio(process.host_pid, rings, *memory);
    while (absl::IsUnavailable(state.status()) && !deadline.passed()) {
      const timespec nap{0, kNapNs};
      ::ppoll(nullptr, 0, &nap, nullptr);
      state = resource::read_aio(process.host_pid, rings, *memory);
    }
    GW_RETURN_IF_ERROR(state.status());
    aio_states_.emplace_back(stream::SectionKey{"aio", static_cast<uint64_t>(pid)},
                             state->SerializeAsString());
  }
  spans_.mark("asynchronous I/O");
  return absl::OkStatus();
}

// read(2) into memory by a device holds pages as long as the call lasts.
void Source::note_direct_io() {
  for (auto& [pid, process] : processes_) process.direct_io = false;
  for (const auto& description : descriptors_->descriptions()) {
    // Of pipes, named or not, it says that each write is a packet (pipe(2)).
    if (description.kind == nullptr || S_ISFIFO(description.file.stat.st_mode) ||
        (description.file.status_flags & O_DIRECT) == 0)
      continue;
    for (const auto& [tgid, table] : descriptors_->tables())
      for (const auto& entry : table.entries())
        if (entry.description() == description.file.id)
          if (const auto process = processes_.find(tgid.value); process != processes_.end())
            process->second.direct_io = true;
  }
}

// Before a scan. A request that began just after we looked last may have been under way in the scan
// that followed: what that found counts as written once more.
void Source::note_pins(SourceProcess& process) {
  const bool now = process.direct_io || has_io_uring(process.memory_map) ||
                   !aio_rings(process.memory_map).empty();
  if (now && !process.pins) process.tracker->forget(process.last_written);
  process.pins = now;
}

// A page that a request holds may be written by it after this scan, and no later scan would find
// it: it is sent again until nobody holds it.
absl::Status Source::keep_pinned(SourceProcess& process, const pages::ScanResult& found) {
  process.last_written.clear();
  pages::PageSet written = found.dirty;
  written.add(found.dirty_file);
  if (!process.pins) {
    process.last_written = std::move(written);
    return absl::OkStatus();
  }
  if (!pinned_) {
    GW_ASSIGN_OR_RETURN(const kernel::KernelMemory* memory, kernel_memory());
    GW_ASSIGN_OR_RETURN(pinned_, pages::PinnedPages::open(*memory));
  }
  GW_ASSIGN_OR_RETURN(const pages::PageSet held, pinned_->among(process.host_pid, written));
  process.tracker->forget(held);
  // What the freeze will need takes some milliseconds to make ready.
  if (const auto rings = aio_rings(process.memory_map); !rings.empty()) {
    GW_ASSIGN_OR_RETURN(const kernel::KernelMemory* memory, kernel_memory());
    resource::read_aio(process.host_pid, rings, *memory).status().IgnoreError();
  }
  return absl::OkStatus();
}

}  // namespace godwit::process
