// Post-copy, at the source: which pages stay here when the program goes.
#include <algorithm>
#include <array>

#include "base/fault_point.h"
#include "base/status.h"
#include "process/left_behind.h"
#include "process/source.h"

namespace godwit::process {
namespace {

using resource::MappingState;

// What was written between the last list of pages and the freeze is what the program works with:
// so much of it goes along, some 2 ms of the freeze.
constexpr uint64_t kHotPages = 1024;

}  // namespace

absl::StatusOr<pages::PageSet> Source::first_needed(const SourceProcess& process) const {
  pages::PageSet needed;
  for (const FrozenProcess& frozen : frozen_) {
    if (frozen.process != &process) continue;
    for (const tracee::StoppedTask& task : frozen.stopped.tasks) {
      GW_ASSIGN_OR_RETURN(const tracee::Registers registers, task.registers());
      add_first_needed(registers.rip, registers.rsp, registers.fs_base, needed);
    }
    for (const auto& [key, state] : task_states_) {
      const bool ours = std::any_of(frozen.tids.begin(), frozen.tids.end(), [&](ImagePid tid) {
        return static_cast<uint64_t>(tid.value) == key.id;
      });
      if (!ours) continue;
      for (const resource::TaskResource* resource : resource::task_resources())
        if (resource->name() == key.kind) add_written_by_kernel(*resource, state, needed);
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
    if (can_come_later(mapping)) lazy.add({mapping.start(), mapping.end()});
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
