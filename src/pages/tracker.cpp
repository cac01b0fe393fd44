#include "pages/tracker.h"

#include "kernel/huge_pages.h"

namespace godwit::pages {

std::vector<TrackedMapping> private_mappings(std::span<const kernel::Mapping> mappings) {
  std::vector<TrackedMapping> tracked;
  for (const kernel::Mapping& mapping : mappings) {
    if (mapping.of_kernel() || mapping.shared) continue;
    const uint64_t huge = kernel::huge_page_bytes(mapping);
    const MappingKind kind = huge != 0             ? MappingKind::kHugePages
                             : mapping.anonymous() ? MappingKind::kPrivateAnonymous
                                                   : MappingKind::kPrivateFile;
    tracked.push_back({mapping, kind, huge});
  }
  return tracked;
}

void ScanResult::add(const ScanResult& other) {
  dirty.add(other.dirty);
  dirty_file.add(other.dirty_file);
  dropped.add(other.dropped);
  guards.add(other.guards);
  stale |= other.stale;
}

}  // namespace godwit::pages
