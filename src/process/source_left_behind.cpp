// Post-copy, at the source: which pages stay here when the program goes.
#include <algorithm>
#include <array>

#include "base/fault_point.h"
#include "base/status.h"
#include "process/source.h"
#include "resource/memory_map/memory_map.h"
#include "resource/registry.h"

namespace godwit::process {
namespace {

using resource::MappingState;

// What was written between the last list of pages and the freeze is what the program works with:
// so much of it goes along, some 2 ms of the freeze.
constexpr uint64_t kHotPages = 1024;

// userfaultfd(2) knows the absence of pages of memory without a file only. What is locked must be
// there at all times, a child must not get what is wiped, and the main stack is small and needed.
bool can_stay(const MappingState& mapping) {
  return mapping.kind() == MappingState::KIND_ANONYMOUS &&
         (mapping.flags() & (resource::kMapLocked | resource::kMapLockOnFault |
                             resource::kMapWipeOnFork | resource::kMapGrowsDown)) == 0;
}

void add_around(uint64_t address, uint64_t bytes, pages::PageSet& pages) {
  const uint64_t first = address / pages::kPageSize * pages::kPageSize;
  const uint64_t last = (address + bytes - 1) / pages::kPageSize * pages::kPageSize;
  if (first <= last && last + pages::kPageSize > last) pages.add({first, last + pages::kPageSize});
}

}  // namespace

// Where a thread goes on, its stack and its thread-local state: without these it would wait at
// once, and what the kernel writes on the way to user mode (rseq(2)) must not wait at all.
absl::StatusOr<pages::PageSet> Source::first_needed(const SourceProcess& process) const {
  constexpr uint64_t kRedZone = 128;
  constexpr uint64_t kStack = 2 * pages::kPageSize;
  pages::PageSet needed;
  for (const FrozenProcess& frozen : frozen_) {
    if (frozen.process != &process) continue;
    for (const tracee::StoppedTask& task : frozen.stopped.tasks) {
      GW_ASSIGN_OR_RETURN(const tracee::Registers registers, task.registers());
      add_around(registers.rip, 1, needed);
      if (registers.rsp >= kRedZone) add_around(registers.rsp - kRedZone, kStack, needed);
      if (registers.fs_base >= pages::kPageSize)
        add_around(registers.fs_base - 64, pages::kPageSize, needed);
    }
    for (const auto& [key, state] : task_states_) {
      const bool ours = std::any_of(frozen.tids.begin(), frozen.tids.end(), [&](ImagePid tid) {
        return static_cast<uint64_t>(tid.value) == key.id;
      });
      if (!ours) continue;
      for (const resource::TaskResource* resource : resource::task_resources())
        if (resource->name() == key.kind)
          for (const resource::AddressRange& range : resource->written_by_kernel(state))
            add_around(range.start, range.end - range.start, needed);
    }
  }
  return needed;
}

// Takes out of `found` what is not sent now; gives what the replica has to be told of.
absl::StatusOr<pages::PageSet> Source::leave_out_of(SourceProcess& process, bool frozen,
                                                    pages::ScanResult& found) {
  pages::PageSet lazy, own;
  for (const MappingState& mapping : process.memory_map.mappings()) {
    if (mapping.kind() == MappingState::KIND_ANONYMOUS) own.add({mapping.start(), mapping.end()});
    if (can_stay(mapping)) lazy.add({mapping.start(), mapping.end()});
  }
  pages::PageSet& left = process.left_behind;
  left.subtract(found.dropped);
  // Unmapped since, or not to stay any more (locked).
  pages::PageSet elsewhere = left;
  elsewhere.subtract(lazy);
  left.subtract(elsewhere);
  const pages::PageSet still_there = elsewhere.intersect(own);
  elsewhere.subtract(still_there);
  found.dropped.add(elsewhere);
  pages::PageSet dirty = found.dirty.intersect(lazy);
  found.dirty.subtract(dirty);
  found.dirty.add(still_there);
  pages::PageSet missing = dirty;
  if (frozen) {
    GW_ASSIGN_OR_RETURN(pages::PageSet sent, first_needed(process));
    pages::PageSet candidates = left;
    candidates.add(dirty);
    sent = sent.intersect(candidates);
    if (dirty.pages() <= kHotPages) sent.add(dirty);
    found.dirty.add(sent);
    missing.subtract(left);  // told already
    missing.subtract(sent);
    left.add(missing);
    left.subtract(sent);
    return missing;
  }
  left.add(dirty);
  return missing;
}

absl::StatusOr<RoundResult> Source::leave_behind(stream::Writer& writer, const Extra& extra) {
  FAULT_POINT("source.leave_behind");
  leaving_behind_ = true;
  return round(writer, extra);
}

uint64_t Source::pages_left_behind() const {
  uint64_t pages = 0;
  for (const auto& [pid, process] : processes_) pages += process.left_behind.pages();
  return pages;
}

std::vector<std::pair<ImagePid, HostPid>> Source::processes() const {
  std::vector<std::pair<ImagePid, HostPid>> list;
  for (const auto& [pid, process] : processes_) list.emplace_back(process.pid, process.host_pid);
  return list;
}

}  // namespace godwit::process
