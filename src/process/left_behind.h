// Which pages a process can run without at first: what both ends of post-copy have to know.
#ifndef GODWIT_PROCESS_LEFT_BEHIND_H_
#define GODWIT_PROCESS_LEFT_BEHIND_H_

#include <algorithm>
#include <cstdint>
#include <string>
#include <string_view>

#include "absl/functional/function_ref.h"
#include "pages/page_set.h"
#include "resource/memory_map/memory_map.h"
#include "resource/registry.h"

namespace godwit::process {

// userfaultfd(2) knows the absence of pages of memory without a file only, and a huge page can only
// come as a whole, for which a program would wait long. What is locked must be
// there at all times, a child must not get what is wiped, and the main stack is small and needed.
inline bool can_come_later(const resource::MappingState& mapping) {
  return mapping.kind() == resource::MappingState::KIND_ANONYMOUS &&
         mapping.huge_page_bytes() == 0 &&
         (mapping.flags() & (resource::kMapLocked | resource::kMapLockOnFault |
                             resource::kMapWipeOnFork | resource::kMapGrowsDown)) == 0;
}

inline void add_around(uint64_t address, uint64_t bytes, pages::PageSet& pages) {
  const uint64_t first = address / pages::kPageSize * pages::kPageSize;
  const uint64_t last = (address + bytes - 1) / pages::kPageSize * pages::kPageSize;
  if (first <= last && last + pages::kPageSize > last) pages.add({first, last + pages::kPageSize});
}

// Where a thread goes on, its stack and its thread-local state: without these it would wait at
// once.
inline void add_first_needed(uint64_t rip, uint64_t rsp, uint64_t fs_base, pages::PageSet& pages) {
  constexpr uint64_t kRedZone = 128;
  constexpr uint64_t kStack = 2 * pages::kPageSize;
  add_around(rip, 1, pages);
  if (rsp >= kRedZone) add_around(rsp - kRedZone, kStack, pages);
  if (fs_base >= pages::kPageSize) add_around(fs_base - 64, pages::kPageSize, pages);
}

// What the kernel writes on the way to user mode (rseq(2)) must not wait at all.
inline void add_written_by_kernel(const resource::TaskResource& resource, std::string_view state,
                                  pages::PageSet& pages) {
  for (const resource::AddressRange& range : resource.written_by_kernel(state))
    add_around(range.start, range.end - range.start, pages);
}

}  // namespace godwit::process

#endif  // GODWIT_PROCESS_LEFT_BEHIND_H_
