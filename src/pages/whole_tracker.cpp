#include "pages/whole_tracker.h"

#include "base/status.h"

namespace godwit::pages {

using kernel::abi::kPageIsFile;
using kernel::abi::kPageIsGuard;
using kernel::abi::kPageIsPresent;
using kernel::abi::kPageIsSwapped;

absl::StatusOr<std::unique_ptr<WholeTracker>> WholeTracker::make(HostPid pid) {
  GW_ASSIGN_OR_RETURN(Pagemap pagemap, Pagemap::open(pid));
  return std::unique_ptr<WholeTracker>(new WholeTracker(std::move(pagemap)));
}

absl::Status WholeTracker::scan(std::span<const TrackedMapping> mappings, ScanMode mode,
                                ScanResult& result) {
  if (mode == ScanMode::kRunning) return absl::OkStatus();
  const PageQuery query{.any_of = kPageIsPresent | kPageIsSwapped,
                        .report = kPageIsPresent | kPageIsSwapped | kPageIsFile | kPageIsGuard,
                        .registered = false};
  std::vector<Region> regions(1024);
  for (const TrackedMapping& tracked : mappings) {
    const bool anonymous = tracked.kind == MappingKind::kPrivateAnonymous;
    PageSet& dirty = anonymous ? result.dirty : result.dirty_file;
    const PageRange range{tracked.mapping.start, tracked.mapping.end};
    const int error = pagemap_.scan(query, range, regions, [&](const Region& region) {
      const PageRange found{region.start, region.end};
      if ((region.categories & kPageIsGuard) != 0)
        result.guards.add(found);
      else if (!anonymous && (region.categories & kPageIsFile) != 0)
        return;  // the file's
      else if ((region.categories & kPageIsPresent) != 0 || tracked.huge_page_bytes != 0)
        dirty.add(found);
      else
        pagemap_.add_swapped(found, dirty);
    });
    if (error != 0)
      return errno_status(
          -error, fmt::format("ioctl(PAGEMAP_SCAN) of mapping {:x}-{:x}", range.start, range.end));
  }
  if (!pagemap_.alive()) return errno_status(ESRCH, "ioctl(PAGEMAP_SCAN)");
  return absl::OkStatus();
}

}  // namespace godwit::pages
