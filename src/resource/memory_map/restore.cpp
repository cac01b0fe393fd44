#include <linux/prctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>

#include "base/status.h"
#include "kernel/huge_pages.h"
#include "resource/aio/aio.h"
#include "resource/memory_map/memory_map.h"

namespace godwit::resource {
namespace {

constexpr uint64_t kArchMapVdso64 = 0x2003;  // asm/prctl.h, Linux 4.8
constexpr uint64_t kPrSetVma = 0x53564d41;   // linux/prctl.h, 5.17
constexpr long kSysMseal = 462;              // asm/unistd_64.h, 6.10
#ifndef MAP_FIXED_NOREPLACE
#error "Linux 4.17 headers or newer are needed"
#endif

enum class Action { kKeep, kProtect, kMap };

// A part of `wanted` on which one action is right.
struct Piece {
  const MappingState* mapping;
  uint64_t start;
  uint64_t end;
  Action action;
  uint32_t old_flags;
};

bool same_backing(const MappingState& a, const MappingState& b) {
  constexpr uint32_t kAtMmap = kMapGrowsDown | kMapNoReserve | kMapMayWrite;
  if (a.kind() != b.kind() || ((a.flags() ^ b.flags()) & kAtMmap) != 0 ||
      a.huge_page_bytes() != b.huge_page_bytes())
    return false;
  if (a.kind() == MappingState::KIND_ANONYMOUS) return true;
  return a.path() == b.path() && a.object() == b.object() &&
         a.offset() - a.start() == b.offset() - b.start();
}

struct Difference {
  std::vector<AddressRange> unmap;
  std::vector<Piece> pieces;
};

// Cuts `wanted` along the borders of `now`.
Difference compare(const MemoryMapState& now, const MemoryMapState& wanted) {
  Difference difference;
  std::vector<AddressRange> kept;  // parts of `now` that stay
  int at = 0;
  for (const MappingState& want : wanted.mappings()) {
    uint64_t from = want.start();
    while (from < want.end()) {
      while (at < now.mappings_size() && now.mappings(at).end() <= from) ++at;
      const MappingState* have = at < now.mappings_size() ? &now.mappings(at) : nullptr;
      Piece piece{&want, from, want.end(), Action::kMap, 0};
      if (have != nullptr && have->start() <= from) {
        piece.end = std::min(want.end(), have->end());
        if (same_backing(*have, want)) {
          piece.action = have->protection() == want.protection() ? Action::kKeep : Action::kProtect;
          piece.old_flags = have->flags();
          kept.push_back({piece.start, piece.end});
        }
      } else if (have != nullptr) {
        piece.end = std::min(want.end(), have->start());
      }
      auto& pieces = difference.pieces;
      if (!pieces.empty() && pieces.back().mapping == piece.mapping &&
          pieces.back().action == piece.action && pieces.back().old_flags == piece.old_flags)
        pieces.back().end = piece.end;
      else
        pieces.push_back(piece);
      from = piece.end;
    }
  }
  // What of `now` is not kept goes.
  size_t k = 0;
  for (const MappingState& have : now.mappings()) {
    uint64_t from = have.start();
    while (k < kept.size() && kept[k].end <= from) ++k;
    for (size_t i = k; i < kept.size() && kept[i].start < have.end(); ++i) {
      if (kept[i].start > from) difference.unmap.push_back({from, kept[i].start});
      from = std::max(from, kept[i].end);
    }
    if (from < have.end()) difference.unmap.push_back({from, have.end()});
  }
  return difference;
}

struct Advice {
  MapFlag flag;
  int set;
  int clear;
};
constexpr Advice kAdvice[] = {
    {kMapDontFork, MADV_DONTFORK, MADV_DOFORK},
    {kMapDontDump, MADV_DONTDUMP, MADV_DODUMP},
    {kMapWipeOnFork, MADV_WIPEONFORK, MADV_KEEPONFORK},
    {kMapMergeable, MADV_MERGEABLE, MADV_UNMERGEABLE},
    {kMapSequential, MADV_SEQUENTIAL, MADV_NORMAL},
    {kMapRandom, MADV_RANDOM, MADV_NORMAL},
};

void add_advice(const Piece& piece, tracee::Batch& batch) {
  const uint64_t length = piece.end - piece.start;
  const uint32_t now = piece.mapping->flags();
  const uint32_t changed = now ^ piece.old_flags;
  const auto advise = [&](int advice) {
    batch.call(SYS_madvise, {piece.start, length, advice}, true);
  };
  for (const Advice& one : kAdvice)
    if ((changed & one.flag) != 0) advise((now & one.flag) != 0 ? one.set : one.clear);
  // No advice takes VM_HUGEPAGE and VM_NOHUGEPAGE both away: a mapping that had one and lost it
  // can only be new, and a new one starts with neither.
  if ((changed & kMapHugePage) != 0 && (now & kMapHugePage) != 0) advise(MADV_HUGEPAGE);
  if ((changed & kMapNoHugePage) != 0 && (now & kMapNoHugePage) != 0) advise(MADV_NOHUGEPAGE);
  if ((changed & kMapLocked) != 0) {
    // What cannot be touched, for its protection or behind the end of its file, is locked all the
    // same, with an error (__mlock_posix_error_return(), mm/mlock.c); mlockall(2) locks it without.
    const bool all_there = piece.mapping->kind() == MappingState::KIND_ANONYMOUS &&
                           piece.mapping->protection() != PROT_NONE;
    if ((now & kMapLocked) != 0)
      batch.call(SYS_mlock2,
                 {piece.start, length, (now & kMapLockOnFault) != 0 ? MLOCK_ONFAULT : 0},
                 all_there);
    else
      batch.call(SYS_munlock, {piece.start, length}, true);
  }
}

// A copy of a part of what is attached (mremap(2), an old size of 0), so that the kernel counts and
// ends it as an attach. Huge pages cannot be copied so: the part itself goes there.
void add_attach(const Piece& piece, uint64_t attached_at, tracee::Batch& batch) {
  const MappingState& mapping = *piece.mapping;
  const uint64_t offset = mapping.offset() + (piece.start - mapping.start());
  const uint64_t length = piece.end - piece.start;
  batch.call(SYS_mremap,
             {attached_at + offset, mapping.huge_page_bytes() != 0 ? length : 0, length,
              MREMAP_MAYMOVE | MREMAP_FIXED, piece.start},
             true);
  const uint32_t attached =
      (mapping.flags() & kMapMayWrite) != 0 ? PROT_READ | PROT_WRITE : PROT_READ;
  if (mapping.protection() != attached)
    batch.call(SYS_mprotect, {piece.start, length, mapping.protection()}, true);
}

absl::Status add_map(const Piece& piece, BackingOf backing_of, tracee::Batch& batch) {
  const MappingState& mapping = *piece.mapping;
  uint64_t flags = MAP_FIXED_NOREPLACE;
  tracee::Batch::Argument fd = -1;
  uint64_t offset = 0;
  if ((mapping.flags() & kMapNoReserve) != 0) flags |= MAP_NORESERVE;
  if ((mapping.flags() & kMapGrowsDown) != 0) flags |= MAP_GROWSDOWN;
  switch (mapping.kind()) {
    case MappingState::KIND_ANONYMOUS:
      flags |= MAP_PRIVATE | MAP_ANONYMOUS;
      if (mapping.huge_page_bytes() != 0)
        flags |= MAP_HUGETLB | kernel::huge_size_flag(mapping.huge_page_bytes());
      break;
    case MappingState::KIND_PRIVATE_FILE:
    case MappingState::KIND_SHARED_FILE:
    case MappingState::KIND_SHARED_OBJECT: {
      flags |= mapping.kind() == MappingState::KIND_PRIVATE_FILE ? MAP_PRIVATE : MAP_SHARED;
      GW_ASSIGN_OR_RETURN(const Backing backing, backing_of(mapping));
      if (backing.attached_at != 0) {
        add_attach(piece, backing.attached_at, batch);
        return absl::OkStatus();
      }
      fd = backing.fd;
      offset = mapping.offset() + (piece.start - mapping.start());
      break;
    }
    default:
      return make_error(absl::StatusCode::kInvalidArgument,
                        "memory map: mapping {:x}-{:x} has an unknown kind", mapping.start(),
                        mapping.end());
  }
  batch.call(SYS_mmap,
             {piece.start, piece.end - piece.start, mapping.protection(), flags, fd, offset}, true);
  if (!mapping.name().empty()) {
    const auto name =
        batch.data(std::as_bytes(std::span(mapping.name().c_str(), mapping.name().size() + 1)));
    batch.call(SYS_prctl, {kPrSetVma, 0, piece.start, piece.end - piece.start, name});
  }
  return absl::OkStatus();
}

// Asked when something is mapped, not when all is done: of nothing at all, which every kernel that
// has the call lets pass.
absl::Status check_seals(const MemoryMapState& wanted) {
  for (const MappingState& mapping : wanted.mappings())
    if ((mapping.flags() & kMapSealed) != 0 && ::syscall(kSysMseal, 0, 0, 0) != 0)
      return make_error(absl::StatusCode::kFailedPrecondition,
                        "mapping {:x}-{:x} is sealed (mseal(2)), which this kernel cannot do: "
                        "Linux 6.10 or later is needed",
                        mapping.start(), mapping.end());
  return absl::OkStatus();
}

absl::Status check_huge_pages(const MemoryMapState& wanted) {
  for (const MappingState& mapping : wanted.mappings()) {
    const uint64_t bytes = mapping.huge_page_bytes();
    if (bytes == 0) continue;
    if (!kernel::has_huge_pages_of(bytes))
      return make_error(absl::StatusCode::kFailedPrecondition,
                        "mapping {:x}-{:x} has huge pages of {} KiB, which this machine has not",
                        mapping.start(), mapping.end(), bytes >> 10);
    if (mapping.start() % bytes != 0 || mapping.end() % bytes != 0)
      return make_error(absl::StatusCode::kDataLoss,
                        "mapping {:x}-{:x} of huge pages of {} KiB cannot be right",
                        mapping.start(), mapping.end(), bytes >> 10);
  }
  return absl::OkStatus();
}

}  // namespace

std::vector<AddressRange> replaced_ranges(const MemoryMapState& now, const MemoryMapState& wanted) {
  Difference difference = compare(now, wanted);
  for (const Piece& piece : difference.pieces)
    if (piece.action == Action::kMap) difference.unmap.push_back({piece.start, piece.end});
  return difference.unmap;
}

absl::Status add_memory_map_calls(const MemoryMapState& now, const MemoryMapState& wanted,
                                  BackingOf backing, tracee::Batch& batch) {
  GW_RETURN_IF_ERROR(check_seals(wanted));
  GW_RETURN_IF_ERROR(check_huge_pages(wanted));
  for (const MappingState& mapping : wanted.mappings())
    if (mapping.kind() == MappingState::KIND_AIO_RING)
      GW_RETURN_IF_ERROR(check_aio_size(mapping.end() - mapping.start()));
  const Difference difference = compare(now, wanted);
  for (const AddressRange& range : difference.unmap)
    batch.call(SYS_munmap, {range.start, range.end - range.start}, true);
  bool vdso_done = false;
  for (const Piece& piece : difference.pieces) {
    if (piece.mapping->kind() == MappingState::KIND_KERNEL) {
      // The first of the three has the lowest address, and one call maps them all.
      if (piece.action == Action::kMap && !vdso_done)
        batch.call(SYS_arch_prctl, {kArchMapVdso64, piece.start}, true);
      vdso_done = true;
      continue;
    }
    // Made at the end, when nothing else is left to map.
    if (piece.mapping->kind() == MappingState::KIND_AIO_RING ||
        piece.mapping->kind() == MappingState::KIND_IO_URING)
      continue;
    if (piece.action == Action::kMap) GW_RETURN_IF_ERROR(add_map(piece, backing, batch));
    if (piece.action == Action::kProtect)
      batch.call(SYS_mprotect, {piece.start, piece.end - piece.start, piece.mapping->protection()},
                 true);
    add_advice(piece, batch);
  }
  return absl::OkStatus();
}

void add_seal_calls(const MemoryMapState& wanted, tracee::Batch& batch) {
  for (const MappingState& mapping : wanted.mappings())
    if ((mapping.flags() & kMapSealed) != 0)
      batch.call(kSysMseal, {mapping.start(), mapping.end() - mapping.start(), 0}, true);
}

void add_mm_fields_call(const MemoryMapState& wanted, int exe_fd, tracee::Batch& batch) {
  const auto auxv = batch.data(std::as_bytes(std::span(wanted.auxv())));
  prctl_mm_map map{};
  map.start_code = wanted.start_code();
  map.end_code = wanted.end_code();
  map.start_data = wanted.start_data();
  map.end_data = wanted.end_data();
  map.start_brk = wanted.start_brk();
  map.brk = wanted.brk();
  map.start_stack = wanted.start_stack();
  map.arg_start = wanted.arg_start();
  map.arg_end = wanted.arg_end();
  map.env_start = wanted.env_start();
  map.env_end = wanted.env_end();
  map.auxv_size = static_cast<uint32_t>(wanted.auxv().size());
  map.exe_fd = static_cast<uint32_t>(exe_fd);
  const auto fields = batch.data(std::as_bytes(std::span(&map, 1)));
  batch.patch_pointer(fields, offsetof(prctl_mm_map, auxv), auxv);
  batch.call(SYS_prctl, {PR_SET_MM, PR_SET_MM_MAP, fields, sizeof map, 0}, true);
}

}  // namespace godwit::resource
