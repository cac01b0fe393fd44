#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include <algorithm>
#include <optional>

#include "base/status.h"
#include "kernel/huge_pages.h"
#include "kernel/proc/stat.h"
#include "kernel/syscalls.h"
#include "resource/io_uring/io_uring.h"
#include "resource/memory_map/memory_map.h"
#include "resource/shared_object/shared_object.h"
#include "resource/sysv_ipc/sysv_ipc.h"

namespace godwit::resource {
namespace {

struct FlagName {
  const char* code;
  MapFlag flag;
};
// Documentation/filesystems/proc.rst, VmFlags.
constexpr FlagName kFlagNames[] = {
    {"gd", kMapGrowsDown},  {"lo", kMapLocked},    {"lf", kMapLockOnFault}, {"nr", kMapNoReserve},
    {"dc", kMapDontFork},   {"dd", kMapDontDump},  {"wf", kMapWipeOnFork},  {"hg", kMapHugePage},
    {"nh", kMapNoHugePage}, {"mg", kMapMergeable}, {"sr", kMapSequential},  {"rr", kMapRandom},
    {"sl", kMapSealed},
};

bool is_memory_object(const kernel::Mapping& mapping) {
  return mapping.shared && mapping.inode != 0 &&
         (mapping.path.starts_with("/memfd:") || mapping.path == "/dev/zero (deleted)" ||
          (mapping.path == kernel::kAnonymousHugePages && kernel::huge_page_bytes(mapping) != 0));
}

bool is_private_huge(const kernel::Mapping& mapping) {
  return !mapping.shared && mapping.path == kernel::kAnonymousHugePages &&
         kernel::huge_page_bytes(mapping) != 0;
}

// A segment's file has no name in any file system, as only a removed one has elsewhere; the first
// segment's number is 0.
bool is_segment(const kernel::Mapping& mapping) {
  return mapping.shared && is_segment_name(mapping.path) && mapping.path.ends_with(kDeletedMark) &&
         major(mapping.dev) == 0;
}

bool is_kernel_object(const kernel::Mapping& mapping) {
  return (mapping.path.starts_with("anon_inode:") && !is_io_uring(mapping)) ||
         mapping.path.starts_with("/anon_inode:") || mapping.path.starts_with("socket:");
}

// Of hugetlbfs, and none of what is carried of it.
bool is_huge_file(const kernel::Mapping& mapping, MappingState::Kind kind) {
  return kernel::huge_page_bytes(mapping) != 0 && kind != MappingState::KIND_ANONYMOUS &&
         kind != MappingState::KIND_SHARED_OBJECT;
}

uint32_t flags_of(const kernel::Mapping& mapping) {
  uint32_t flags = 0;
  for (const FlagName& name : kFlagNames)
    if (mapping.has_flag(name.code)) flags |= name.flag;
  if (mapping.shared && mapping.has_flag("mw")) flags |= kMapMayWrite;
  return flags;
}

MappingState::Kind kind_of(const kernel::Mapping& mapping) {
  if (mapping.of_kernel()) return MappingState::KIND_KERNEL;
  if (is_aio_ring(mapping)) return MappingState::KIND_AIO_RING;
  if (is_io_uring(mapping)) return MappingState::KIND_IO_URING;
  if (is_memory_object(mapping) || is_segment(mapping)) return MappingState::KIND_SHARED_OBJECT;
  if (mapping.anonymous() || is_private_huge(mapping)) return MappingState::KIND_ANONYMOUS;
  return mapping.shared ? MappingState::KIND_SHARED_FILE : MappingState::KIND_PRIVATE_FILE;
}

bool same_thing(const MappingState& a, const MappingState& b) {
  return a.kind() == b.kind() && a.object() == b.object() &&
         a.huge_page_bytes() == b.huge_page_bytes() &&
         (a.kind() == MappingState::KIND_ANONYMOUS || a.path() == b.path());
}

// The flags of what covered `wanted` before, if nothing that maps shows says that they may have
// changed. Mappings that have become one had the same. A border that was not there before is one of
// advice or locks (madvise(2), mlock(2)), unless on its other side nothing is mapped now.
std::optional<uint32_t> flags_before(const MemoryMapState& before, const MappingState& wanted,
                                     bool touches_lower, bool touches_higher) {
  const auto& list = before.mappings();
  const auto first =
      std::upper_bound(list.begin(), list.end(), wanted.start(),
                       [](uint64_t a, const MappingState& m) { return a < m.end(); });
  if (first == list.end()) return std::nullopt;
  if (first->start() > wanted.start()) return std::nullopt;
  if (first->start() < wanted.start() && touches_lower) return std::nullopt;
  uint64_t covered = wanted.start();
  for (auto at = first; at != list.end() && at->start() <= covered; ++at) {
    if (!same_thing(*at, wanted) || at->flags() != first->flags()) return std::nullopt;
    covered = at->end();
    if (covered < wanted.end()) continue;
    if (covered > wanted.end() && touches_higher) return std::nullopt;
    return first->flags();
  }
  return std::nullopt;
}

}  // namespace

bool is_aio_ring(const kernel::Mapping& mapping) {
  return mapping.shared && mapping.path == "/[aio] (deleted)" && major(mapping.dev) == 0;
}

bool is_io_uring(const kernel::Mapping& mapping) {
  return mapping.shared && major(mapping.dev) == 0 &&
         (mapping.path == kIoUringLink || mapping.path == "/anon_inode:[io_uring]");
}

absl::StatusOr<MappingState> mapping_state(const kernel::Mapping& mapping) {
  MappingState state;
  state.set_start(mapping.start);
  state.set_end(mapping.end);
  state.set_kind(kind_of(mapping));
  // Made since the precheck.
  if (is_kernel_object(mapping) || is_huge_file(mapping, state.kind()))
    return make_error(absl::StatusCode::kFailedPrecondition,
                      "mapping {:x}-{:x} {} is not carried: the precheck tells why", mapping.start,
                      mapping.end, mapping.path);
  state.set_protection((mapping.read ? PROT_READ : 0U) | (mapping.write ? PROT_WRITE : 0U) |
                       (mapping.execute ? PROT_EXEC : 0U));
  state.set_flags(flags_of(mapping));
  state.set_huge_page_bytes(kernel::huge_page_bytes(mapping));
  switch (state.kind()) {
    case MappingState::KIND_ANONYMOUS:
      if (mapping.path.starts_with("[anon:"))
        state.set_name(mapping.path.substr(6, mapping.path.size() - 7));
      break;
    case MappingState::KIND_SHARED_OBJECT:
      state.set_offset(mapping.offset);
      state.set_object(is_segment(mapping)
                           ? object_of_segment(mapping.inode)
                           : object_of_memory(mapping.inode, state.huge_page_bytes()));
      state.set_path(std::string(without_mark(mapping.path)));
      break;
    case MappingState::KIND_PRIVATE_FILE:
    case MappingState::KIND_SHARED_FILE:
      state.set_offset(mapping.offset);
      state.set_path(std::string(without_mark(mapping.path)));
      if (mapping.path.ends_with(kDeletedMark))
        state.set_object(object_of_file(mapping.path, mapping.inode));
      break;
    default:
      state.set_offset(mapping.offset);
      state.set_path(mapping.path);
      if (state.kind() == MappingState::KIND_IO_URING) state.set_ring(mapping.inode);
  }
  return state;
}

// Also of a file that is really called "... (deleted)".
static bool has_a_name(HostPid pid, const kernel::Mapping& mapping) {
  const std::string link =
      fmt::format("/proc/{}/map_files/{:x}-{:x}", pid.value, mapping.start, mapping.end);
  struct stat stat {};
  return ::stat(link.c_str(), &stat) == 0 && stat.st_nlink > 0;
}

absl::Status precheck_mapping(HostPid pid, const kernel::Mapping& mapping, std::string_view process,
                              std::vector<Refusal>& refusals) {
  const auto refuse = [&](std::string code, std::string reason, std::string way_out) {
    refusals.push_back(
        {std::move(code),
         fmt::format("{}, mapping {:x}-{:x} {}", process, mapping.start, mapping.end, mapping.path),
         std::move(reason), std::move(way_out)});
  };
  const MappingState::Kind kind = kind_of(mapping);
  if (kind == MappingState::KIND_KERNEL) {
    if (mapping.has_flag("sl"))
      refuse("mapping.sealed", "this kernel seals its own mappings, which could not be made there",
             "a kernel without CONFIG_MSEAL_SYSTEM_MAPPINGS");
    return absl::OkStatus();
  }
  if (mapping.has_flag("ht") && kernel::huge_page_bytes(mapping) == 0)
    refuse("mapping.hugetlb", "files on a mounted hugetlbfs are not carried",
           "use huge pages without a file: MAP_HUGETLB, MFD_HUGETLB or SHM_HUGETLB");
  else if (is_huge_file(mapping, kind))
    refuse("mapping.hugetlb", "a private mapping of a memfd of huge pages is not carried",
           "map it shared, or use MAP_HUGETLB");
  else if (mapping.has_flag("io") || mapping.has_flag("pf"))
    refuse("mapping.device", "memory of a device cannot move to another machine",
           "stop using the device");
  else if (mapping.has_flag("ss"))
    refuse("mapping.shadow_stack", "shadow stacks are not restored",
           "start the program without them (glibc.cpu.x86_shstk=off)");
  else if (mapping.has_flag("um") || mapping.has_flag("ui"))
    refuse("mapping.userfaultfd", "the program handles its own page faults (userfaultfd)",
           "move it when it has stopped doing so");
  else if (kind == MappingState::KIND_AIO_RING && !(mapping.read && mapping.write))
    refuse("mapping.aio", "the memory of this queue (io_setup) is protected",
           "leave it as io_setup made it");
  else if ((kind == MappingState::KIND_PRIVATE_FILE || kind == MappingState::KIND_SHARED_FILE) &&
           mapping.path.ends_with(kDeletedMark) && has_a_name(pid, mapping))
    refuse("mapping.deleted",
           "the name that the mapped file had has been removed while it has another one",
           "restart the program, so that it maps the file by a name that it has");
  else if (is_kernel_object(mapping))
    refuse("mapping.kernel_object", "rings and buffers shared with the kernel are not carried",
           "configure the program without them (perf, packet rings)");
  return absl::OkStatus();
}

void leave_out(AddressRange own, std::vector<kernel::Mapping>& maps) {
  std::vector<kernel::Mapping> rest;
  for (kernel::Mapping& mapping : maps) {
    if (!own.overlaps(mapping.start, mapping.end)) {
      rest.push_back(std::move(mapping));
      continue;
    }
    if (mapping.start < own.start) {
      rest.push_back(mapping);
      rest.back().end = own.start;
    }
    if (mapping.end > own.end) {
      rest.push_back(mapping);
      rest.back().start = own.end;
    }
  }
  maps = std::move(rest);
}

std::optional<uint32_t> future_locks(AddressRange own, std::span<const kernel::Mapping> maps) {
  for (const kernel::Mapping& mapping : maps)
    if (own.overlaps(mapping.start, mapping.end) && !mapping.vm_flags.empty())
      return flags_of(mapping) & (kMapLocked | kMapLockOnFault);
  return std::nullopt;
}

absl::StatusOr<MemoryMapState> capture_memory_map(HostPid pid,
                                                  std::span<const kernel::Mapping> maps,
                                                  const MemoryMapState* before,
                                                  uint64_t* unknown_below) {
  MemoryMapState state;
  *unknown_below = 0;
  uint64_t heap_end = 0;
  for (size_t i = 0; i < maps.size(); ++i) {
    const kernel::Mapping& mapping = maps[i];
    if (mapping.path == "[vsyscall]") continue;
    GW_ASSIGN_OR_RETURN(MappingState one, mapping_state(mapping));
    if (mapping.vm_flags.empty()) {
      const bool touches_lower = i > 0 && maps[i - 1].end == mapping.start;
      const bool touches_higher = i + 1 < maps.size() && maps[i + 1].start == mapping.end;
      const auto flags = before != nullptr
                             ? flags_before(*before, one, touches_lower, touches_higher)
                             : std::nullopt;
      if (flags)
        one.set_flags(*flags);
      else
        *unknown_below = one.end();
    }
    if (mapping.path == "[heap]") heap_end = mapping.end;
    *state.add_mappings() = std::move(one);
  }
  GW_RETURN_IF_ERROR(capture_program_layout(pid, state));
  state.set_brk(heap_end != 0 ? heap_end : state.start_brk());
  return state;
}

absl::Status capture_program_layout(HostPid pid, MemoryMapState& state) {
  GW_ASSIGN_OR_RETURN(const kernel::TaskStat stat, kernel::read_task_stat(pid));
  state.set_start_code(stat.start_code);
  state.set_end_code(stat.end_code);
  state.set_start_data(stat.start_data);
  state.set_end_data(stat.end_data);
  state.set_start_brk(stat.start_brk);
  state.set_start_stack(stat.start_stack);
  state.set_arg_start(stat.arg_start);
  state.set_arg_end(stat.arg_end);
  state.set_env_start(stat.env_start);
  state.set_env_end(stat.env_end);
  GW_ASSIGN_OR_RETURN(std::string auxv, kernel::read_file(fmt::format("/proc/{}/auxv", pid.value)));
  state.set_auxv(std::move(auxv));
  GW_ASSIGN_OR_RETURN(std::string exe,
                      kernel::readlinkat(-100, fmt::format("/proc/{}/exe", pid.value)));
  state.set_exe(std::move(exe));
  return absl::OkStatus();
}

}  // namespace godwit::resource
