// Mappings, their protections and advice, and the mm's own fields.
//
// Facts: /proc/PID/maps and smaps (proc(5)): advice, mlock and growth show only as VmFlags in
// smaps, whose reading walks the page tables (about a millisecond per GiB), so it is read in the
// rounds and in the freeze only for mappings that are new. ARCH_MAP_VDSO_64 (arch_prctl, Linux 4.8)
// maps [vvar], [vvar_vclock] and [vdso] at an address once the old ones are gone. PR_SET_MM_MAP
// (prctl(2), 3.18) sets all fields at once without CAP_SYS_RESOURCE.
#ifndef GODWIT_RESOURCE_MEMORY_MAP_MEMORY_MAP_H_
#define GODWIT_RESOURCE_MEMORY_MAP_MEMORY_MAP_H_

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "base/ids.h"
#include "kernel/proc/maps.h"
#include "resource/memory_map/memory_map.pb.h"
#include "resource/resource.h"
#include "tracee/batch.h"

namespace godwit::resource {

enum MapFlag : uint32_t {
  kMapGrowsDown = 1 << 0,
  kMapLocked = 1 << 1,
  kMapLockOnFault = 1 << 2,
  kMapNoReserve = 1 << 3,
  kMapDontFork = 1 << 4,
  kMapDontDump = 1 << 5,
  kMapWipeOnFork = 1 << 6,
  kMapHugePage = 1 << 7,
  kMapNoHugePage = 1 << 8,
  kMapMergeable = 1 << 9,
  kMapSequential = 1 << 10,
  kMapRandom = 1 << 11,
  kMapMayWrite = 1 << 12,  // of a shared file: was opened for writing
  kMapSealed = 1 << 13,    // mseal(2)
};

// Takes the stub's area out, which the kernel may have merged with a neighbour.
void leave_out(AddressRange own, std::vector<kernel::Mapping>& maps);
// How the kernel locks new mappings of the process (mlockall(2), MCL_FUTURE): nothing tells but one
// that has been made, as the stub's. `maps` of smaps; nullopt: they do not show it.
std::optional<uint32_t> future_locks(AddressRange own, std::span<const kernel::Mapping> maps);

// Of io_setup(2): a file of the kernel's own that has no other name (fs/aio.c).
bool is_aio_ring(const kernel::Mapping& mapping);
// Of io_uring(7): each ring's file has an inode of its own.
bool is_io_uring(const kernel::Mapping& mapping);
absl::StatusOr<MappingState> mapping_state(const kernel::Mapping& mapping);
absl::Status precheck_mapping(HostPid pid, const kernel::Mapping& mapping, std::string_view process,
                              std::vector<Refusal>& refusals);

// `maps`: of smaps (vm_flags set) or of maps, whose flags are taken from `before` where the same
// was mapped and no new border hints at advice; `unknown_below` is the end of the last one that had
// no counterpart, for which smaps must be read, 0 if all had.
absl::StatusOr<MemoryMapState> capture_memory_map(HostPid pid,
                                                  std::span<const kernel::Mapping> maps,
                                                  const MemoryMapState* before,
                                                  uint64_t* unknown_below);
// Of `state` what no mapping shows, but the end of the heap: where the program's parts are, what it
// was started with, and from what file.
absl::Status capture_program_layout(HostPid pid, MemoryMapState& state);

// What a husk has of a mapping's file or object.
struct Backing {
  // Open on it: a number, or the result of an open in the batch.
  tracee::Batch::Argument fd = -1;
  // Not 0: a System V segment is attached there, from its first byte on, while the batch runs.
  uint64_t attached_at = 0;
};
using BackingOf = absl::FunctionRef<absl::StatusOr<Backing>(const MappingState&)>;

// What add_memory_map_calls() unmaps or maps anew: a husk has nothing there afterwards. Some are
// named twice.
std::vector<AddressRange> replaced_ranges(const MemoryMapState& now, const MemoryMapState& wanted);

// Adds the calls that bring a husk from `now` to `wanted`; mappings are equal modulo merging.
// `backing` may add calls to the batch. Unmaps first. Pages of ranges that are mapped anew are
// gone.
absl::Status add_memory_map_calls(const MemoryMapState& now, const MemoryMapState& wanted,
                                  BackingOf backing, tracee::Batch& batch);

// Seals what is sealed in `wanted` (mseal(2), Linux 6.10): no other call changes that afterwards,
// for the process or for us, but to track, fill and drop pages.
void add_seal_calls(const MemoryMapState& wanted, tracee::Batch& batch);

// PR_SET_MM_MAP with everything but the exe link (`exe_fd` -1), or with it. The old exe's mappings
// must be gone before it can change.
void add_mm_fields_call(const MemoryMapState& wanted, int exe_fd, tracee::Batch& batch);

}  // namespace godwit::resource

#endif  // GODWIT_RESOURCE_MEMORY_MAP_MEMORY_MAP_H_
