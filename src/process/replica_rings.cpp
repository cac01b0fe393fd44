// Rings of io_uring of a replica, in the last epoch: what only their issuers can do, and what is
// mapped of them.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <map>

#include "base/status.h"
#include "kernel/proc/maps.h"
#include "kernel/syscalls.h"
#include "process/replica.h"
#include "process/replica_context.h"
#include "resource/io_uring/io_uring.h"

namespace godwit::process {

using resource::MappingState;

// A ring cannot be passed in a message (scm_fp_copy(), net/core/scm.c, Linux 6.8): the husk takes
// it out of our table (pidfd_getfd(2)), which it may as long as it is root.
absl::Status Replica::place_rings(Husk& husk, std::span<const Placement> rings) {
  if (rings.empty()) return absl::OkStatus();
  int highest = 0;
  for (const Placement& ring : rings) highest = std::max(highest, ring.number);
  tracee::Batch batch;
  GW_ASSIGN_OR_RETURN(const size_t own, lend_own_table(husk, highest + 1, batch));
  for (const Placement& ring : rings) {
    // Its number is taken first, so that the kernel does not give it.
    batch.call(SYS_dup3, {tracee::Batch::ResultOf{own}, ring.number, O_CLOEXEC}, true);
    const size_t taken =
        batch.call(SYS_pidfd_getfd, {tracee::Batch::ResultOf{own}, ring.fd, 0}, true);
    batch.call(SYS_dup3,
               {tracee::Batch::ResultOf{taken}, ring.number, ring.close_on_exec ? O_CLOEXEC : 0},
               true);
    batch.call(SYS_close, {tracee::Batch::ResultOf{taken}}, true);
  }
  batch.call(SYS_close, {tracee::Batch::ResultOf{own}}, true);
  GW_RETURN_IF_ERROR(husk.run(batch));
  return batch.check_all();
}

// A descriptor for ourselves in the husk, at `lowest` or above: the result of the call.
absl::StatusOr<size_t> Replica::lend_own_table(Husk& husk, int lowest, tracee::Batch& batch) {
  GW_ASSIGN_OR_RETURN(const UniqueFd self, kernel::pidfd_open(HostPid{::getpid()}));
  const int fd = self.get();
  GW_ASSIGN_OR_RETURN(const std::vector<int> lent, husk.lend(channel_, std::span(&fd, 1)));
  const size_t own = batch.call(SYS_fcntl, {lent[0], F_DUPFD_CLOEXEC, lowest}, true);
  batch.call(SYS_close, {lent[0]}, true);
  return own;
}

absl::Status Replica::make_rings() {
  std::map<uint64_t, int> rings;  // ours, by the inodes at the source
  for (const auto& [id, description] : descriptions_) {
    if (description.of != &resource::io_uring_kind()) continue;
    GW_ASSIGN_OR_RETURN(const resource::IoUringState state,
                        resource::parse_io_uring(description.state));
    const int fd = description.fd.get();
    GW_RETURN_IF_ERROR(resource::register_with_io_uring(state, fd, *context_));
    if (state.issuer() != 0) GW_RETURN_IF_ERROR(move_ring_on(state, id, fd));
    GW_RETURN_IF_ERROR(resource::complete_io_uring(state, fd));
    rings[state.inode()] = fd;
  }
  for (auto& [pid, husk] : husks_)
    GW_RETURN_IF_ERROR(annotate(map_rings(husk, rings), fmt::format("rings of process {}", pid)));
  return absl::OkStatus();
}

absl::Status Replica::move_ring_on(const resource::IoUringState& state, uint64_t id, int fd) {
  const auto issuer = husks_.find(state.issuer());
  if (issuer == husks_.end())
    return make_error(absl::StatusCode::kDataLoss, "a ring is process {}'s, which is not there",
                      state.issuer());
  Husk& husk = issuer->second;
  for (const auto& entry : husk.fd_table.entries()) {
    if (entry.description() != id) continue;
    for (bool first = true;; first = false) {
      tracee::Batch batch;
      GW_RETURN_IF_ERROR(resource::add_io_uring_progress(state, fd, entry.fd(), first, batch));
      if (batch.empty()) return absl::OkStatus();
      GW_RETURN_IF_ERROR(husk.run(batch));
      GW_RETURN_IF_ERROR(batch.check_all());
    }
  }
  return make_error(absl::StatusCode::kDataLoss, "process {} has not its own ring open",
                    state.issuer());
}

// io_uring takes no address (io_uring_get_unmapped_area(), io_uring/memmap.c), neither does
// mremap(2) of what is mapped: the kernel chooses. So it gets no choice: every hole of the address
// space is filled but the one.
absl::Status Replica::map_rings(Husk& husk, const std::map<uint64_t, int>& rings) {
  std::vector<std::pair<const MappingState*, int>> wanted;
  for (const MappingState& mapping : husk.memory_map.mappings()) {
    if (mapping.kind() != MappingState::KIND_IO_URING) continue;
    const auto ring = rings.find(mapping.ring());
    if (ring == rings.end())
      return make_error(absl::StatusCode::kDataLoss, "mapping {:x}-{:x} is of a ring without state",
                        mapping.start(), mapping.end());
    wanted.emplace_back(&mapping, ring->second);
  }
  if (wanted.empty()) return absl::OkStatus();
  tracee::Batch batch;
  GW_ASSIGN_OR_RETURN(const size_t own, lend_own_table(husk, 0, batch));
  // The lent descriptor's calls come first; what they map is nothing.
  GW_ASSIGN_OR_RETURN(const auto maps, kernel::read_maps(husk.host_pid()));
  std::vector<resource::AddressRange> holes;
  constexpr uint64_t kPage = 0x1000;
  constexpr uint64_t kLowest = 0x10000;      // vm.mmap_min_addr
  constexpr uint64_t kEnd = 0x7ffffffff000;  // TASK_SIZE_MAX, as far as no hint asks for more
  uint64_t from = kLowest;
  for (const kernel::Mapping& mapping : maps) {
    if (mapping.start >= kEnd) break;
    if (mapping.start > from) holes.push_back({from, mapping.start});
    from = std::max(from, mapping.end);
  }
  if (from < kEnd) holes.push_back({from, kEnd});
  const auto fill = [&](uint64_t start, uint64_t end, bool must) {
    batch.call(SYS_mmap,
               {start, end - start, PROT_NONE,
                MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0},
               must);
  };
  // Below it only some may map anything; where we may not, the kernel does not either.
  fill(kPage, kLowest, false);
  for (const resource::AddressRange& hole : holes) fill(hole.start, hole.end, true);
  std::vector<size_t> mapped;
  for (const auto& [mapping, fd] : wanted) {
    const uint64_t length = mapping->end() - mapping->start();
    batch.call(SYS_munmap, {mapping->start(), length}, true);
    const size_t ring = batch.call(SYS_pidfd_getfd, {tracee::Batch::ResultOf{own}, fd, 0}, true);
    mapped.push_back(batch.call(SYS_mmap,
                                {0, length, mapping->protection(), MAP_SHARED,
                                 tracee::Batch::ResultOf{ring}, mapping->offset()},
                                true));
    if ((mapping->flags() & resource::kMapDontFork) != 0)
      batch.call(SYS_madvise, {mapping->start(), length, MADV_DONTFORK}, true);
    if ((mapping->flags() & resource::kMapDontDump) != 0)
      batch.call(SYS_madvise, {mapping->start(), length, MADV_DONTDUMP}, true);
    batch.call(SYS_close, {tracee::Batch::ResultOf{ring}}, true);
  }
  for (const resource::AddressRange& hole : holes) {
    uint64_t at = hole.start;
    for (const auto& [mapping, fd] : wanted) {
      if (!hole.overlaps(mapping->start(), mapping->end())) continue;
      if (mapping->start() > at) batch.call(SYS_munmap, {at, mapping->start() - at}, true);
      at = mapping->end();
    }
    if (at < hole.end) batch.call(SYS_munmap, {at, hole.end - at}, true);
  }
  batch.call(SYS_munmap, {kPage, kLowest - kPage}, true);
  batch.call(SYS_close, {tracee::Batch::ResultOf{own}}, true);
  GW_RETURN_IF_ERROR(husk.run(batch));
  GW_RETURN_IF_ERROR(batch.check_all());
  for (size_t i = 0; i < mapped.size(); ++i)
    if (static_cast<uint64_t>(batch.result(mapped[i])) != wanted[i].first->start())
      return make_error(absl::StatusCode::kInternal, "a ring was mapped at {:x}, not at {:x}",
                        batch.result(mapped[i]), wanted[i].first->start());
  return absl::OkStatus();
}

}  // namespace godwit::process
