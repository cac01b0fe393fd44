#include "pages/uffd_tracker.h"

#include <sys/ioctl.h>

#include <algorithm>
#include <cerrno>
#include <ctime>

#include "base/fault_point.h"
#include "base/status.h"
#include "kernel/abi/userfaultfd.h"

namespace godwit::pages {
namespace {

using kernel::abi::kPageIsFile;
using kernel::abi::kPageIsGuard;
using kernel::abi::kPageIsPresent;
using kernel::abi::kPageIsSwapped;
using kernel::abi::kPageIsWritten;

constexpr uint64_t kPopulated = kPageIsPresent | kPageIsSwapped;
// What a leaf page table spans.
constexpr uint64_t kBlockBytes = uint64_t{2} << 20;
// A frozen scan's unit of work for one thread: 40-80 us when little is dirty.
constexpr uint64_t kFrozenItemBytes = uint64_t{128} << 20;
constexpr size_t kRegionsPerStep = 4096;
// Candidates of the fast scan that are looked at one by one (0.8 us each); a general scan costs
// 2.3 ns a page.
constexpr size_t kCandidates = 256;
constexpr uint64_t kPagesPerCandidate = 350;

PageRange range_of(const TrackedMapping& tracked) {
  return {tracked.mapping.start, tracked.mapping.end};
}

PageRange blocks_around(PageRange range, PageRange limit) {
  const uint64_t end = (range.end + kBlockBytes - 1) / kBlockBytes * kBlockBytes;
  return {std::max(range.start / kBlockBytes * kBlockBytes, limit.start), std::min(end, limit.end)};
}

}  // namespace

UffdTracker::UffdTracker(UniqueFd uffd, HostPid pid, Pagemap pagemap, UffdTrackerOptions options)
    : uffd_(std::move(uffd)),
      pagemap_(std::move(pagemap)),
      options_(options),
      pool_(std::max<size_t>(1, options.threads)),
      regions_(pool_.threads(), std::vector<Region>(kRegionsPerStep)),
      huge_(pid) {}

absl::StatusOr<std::unique_ptr<UffdTracker>> UffdTracker::make(UniqueFd uffd, HostPid pid,
                                                               UffdTrackerOptions options) {
  namespace abi = kernel::abi;
  GW_ASSIGN_OR_RETURN(Pagemap pagemap, Pagemap::open(pid));
  uffdio_api api{};
  api.api = UFFD_API;
  api.features = abi::kUffdFeatureWpAsync | abi::kUffdFeatureWpUnpopulated;
  if (::ioctl(uffd.get(), UFFDIO_API, &api) != 0) {
    // EINVAL: a feature is unknown (before Linux 6.7), or the call was made before.
    if (errno == EINVAL) {
      return make_error(absl::StatusCode::kUnimplemented,
                        "ioctl({}, UFFDIO_API, WP_ASYNC|WP_UNPOPULATED): the kernel has no "
                        "asynchronous write-protect (Linux 6.7)",
                        uffd.get());
    }
    return errno_status(errno, fmt::format("ioctl({}, UFFDIO_API)", uffd.get()));
  }
  return std::unique_ptr<UffdTracker>(
      new UffdTracker(std::move(uffd), pid, std::move(pagemap), options));
}

int UffdTracker::register_range(PageRange range) {
  uffdio_register request{};
  request.range = {range.start, range.end - range.start};
  request.mode = UFFDIO_REGISTER_MODE_WP;
  while (::ioctl(uffd_.get(), UFFDIO_REGISTER, &request) != 0) {
    if (errno != EINTR && errno != EAGAIN) return -errno;
  }
  registered_.add(range);
  return 0;
}

absl::Status UffdTracker::start(std::span<const TrackedMapping> mappings) {
  for (const TrackedMapping& tracked : mappings) {
    // Only the mapping's flags change here: pages are protected by the first scan, in the same
    // step in which they are found. A mapping that is gone already is left for the next maps.
    const int error = register_range(range_of(tracked));
    if (error == -EBUSY) {
      return make_error(absl::StatusCode::kFailedPrecondition,
                        "mapping {:x}-{:x}: the program uses userfaultfd on it itself",
                        tracked.mapping.start, tracked.mapping.end);
    }
    if (error != 0 && !pagemap_.alive()) return errno_status(ESRCH, "ioctl(UFFDIO_REGISTER)");
  }
  return absl::OkStatus();
}

void UffdTracker::pause(ScanMode mode) const {
  if (mode == ScanMode::kFrozen) return;
  const timespec time = absl::ToTimespec(options_.pause);
  ::nanosleep(&time, nullptr);
}

std::vector<UffdTracker::Item> UffdTracker::items_of(std::span<const TrackedMapping> mappings,
                                                     ScanMode mode) const {
  std::vector<Item> items;
  const auto add = [&](size_t mapping, PageRange range, bool armed) {
    const uint64_t most = mode == ScanMode::kFrozen ? kFrozenItemBytes : UINT64_MAX;
    while (range.start < range.end) {
      // Cut at a multiple, so that no page table is walked by two threads.
      const uint64_t cut = most == UINT64_MAX ? range.end : (range.start / most + 1) * most;
      const uint64_t end = std::min(range.end, cut);
      items.push_back({mapping, {range.start, end}, armed});
      range.start = end;
    }
  };
  for (size_t i = 0; i < mappings.size(); ++i) {
    if (mappings[i].kind == MappingKind::kHugePages) continue;
    const PageRange all = range_of(mappings[i]);
    for (const PageRange& seen : seen_.intersect(all)) {
      if (mappings[i].kind != MappingKind::kPrivateAnonymous) {
        items.push_back({i, seen, false});
        continue;
      }
      uint64_t at = seen.start;
      for (const PageRange& armed : armed_.intersect(seen)) {
        // What is not armed holds next to nothing: no reason to cut it.
        if (at < armed.start) items.push_back({i, {at, armed.start}, false});
        add(i, armed, true);
        at = armed.end;
      }
      if (at < seen.end) items.push_back({i, {at, seen.end}, false});
    }
  }
  return items;
}

int UffdTracker::scan_populated(PageRange range, bool only_written, ScanMode mode,
                                std::vector<Region>& regions, PageSet& populated,
                                PageSet& guards) const {
  const PageQuery query{
      .all_of = only_written ? kPageIsWritten : 0,
      .any_of = kPopulated,
      .report = kPopulated | kPageIsGuard,
      .protect = true,
      .max_pages = mode == ScanMode::kFrozen ? 0 : options_.step_bytes / kPageSize};
  return pagemap_.scan(
      query, range, regions,
      [&](const Region& region) {
        const PageRange found{region.start, region.end};
        if ((region.categories & kPageIsGuard) != 0)
          guards.add(found);
        else if ((region.categories & kPageIsPresent) != 0 || only_written)
          populated.add(found);
        else  // marks of an earlier registration, which mremap takes along, look like this
          pagemap_.add_swapped(found, populated);
      },
      [&] { pause(mode); });
}

int UffdTracker::scan_armed(PageRange range, ScanMode mode, std::vector<Region>& regions,
                            ScanResult& pages) const {
  // The kernel's fast path (pagemap_scan_pmd_entry(), fs/proc/task_mmu.c): only WRITTEN asked and
  // reported. It does not say whether a page is there; that is asked, with the protection, where
  // something was written.
  const PageQuery fast{.all_of = kPageIsWritten, .report = kPageIsWritten};
  const PageQuery exact{
      .all_of = kPageIsWritten,
      .report = kPageIsWritten | kPopulated | kPageIsGuard,
      .protect = true,
      .max_pages = mode == ScanMode::kFrozen ? 0 : options_.step_bytes / kPageSize};
  const auto sort_in = [&](const Region& region) {
    const PageRange found{region.start, region.end};
    if ((region.categories & kPageIsGuard) != 0) {
      pages.guards.add(found);
      pages.dropped.add(found);
    } else if ((region.categories & kPopulated) != 0) {
      pages.dirty.add(found);
    } else {
      pages.dropped.add(found);
    }
  };
  std::vector<Region> candidates(kCandidates);
  for (uint64_t at = range.start; at < range.end;) {
    const uint64_t from = at;
    const int n = pagemap_.scan_step(fast, at, range.end, candidates);
    if (n < 0) return n;
    if (n == 0) continue;
    const auto count = static_cast<size_t>(n);
    const PageRange span{candidates.front().start, candidates[count - 1].end};
    int error = 0;
    if (span.pages() < count * kPagesPerCandidate) {
      error = pagemap_.scan(exact, span, regions, sort_in, [&] { pause(mode); });
    } else {
      for (size_t i = 0; i < count && error == 0; ++i) {
        error = pagemap_.scan(exact, {candidates[i].start, candidates[i].end}, regions, sort_in,
                              [&] { pause(mode); });
      }
    }
    if (error != 0) return error;
    if (at <= from) return -EIO;
  }
  return 0;
}

int UffdTracker::keep_copied(PageSet& pages, std::vector<Region>& regions) const {
  // FILE costs a look at each page's struct page (40 ns): asked only here, of what was written.
  const PageQuery query{
      .any_of = kPopulated, .report = kPopulated | kPageIsFile, .registered = false};
  PageSet copied;
  for (const PageRange& range : pages) {
    const int error = pagemap_.scan(query, range, regions, [&](const Region& region) {
      if ((region.categories & kPageIsFile) == 0) copied.add({region.start, region.end});
    });
    if (error != 0) return error;
  }
  pages = std::move(copied);
  return 0;
}

int UffdTracker::find_dropped_copies(PageRange range, std::vector<Region>& regions,
                                     ScanResult& pages) const {
  const PageSet before = copied_.intersect(range);
  if (before.empty()) return 0;
  const PageQuery query{
      .any_of = kPopulated, .report = kPopulated | kPageIsFile | kPageIsGuard, .registered = false};
  PageSet now;
  const PageRange span{before.begin()->start, (before.end() - 1)->end};
  const int error = pagemap_.scan(query, span, regions, [&](const Region& region) {
    if ((region.categories & (kPageIsFile | kPageIsGuard)) != 0) return;
    if ((region.categories & kPageIsPresent) != 0) {
      now.add({region.start, region.end});
      return;
    }
    for (const PageRange& part : before.intersect(PageRange{region.start, region.end}))
      pagemap_.add_swapped(part, now);
  });
  if (error != 0) return error;
  PageSet dropped = before;
  dropped.subtract(now);
  dropped.subtract(pages.dirty_file);
  pages.dropped.add(dropped);
  return 0;
}

void UffdTracker::scan_item(const Item& item, const TrackedMapping& of, ScanMode mode,
                            std::vector<Region>& regions, Outcome& outcome) const {
  ScanResult& pages = outcome.pages;
  if (of.kind == MappingKind::kPrivateAnonymous) {
    if (item.armed) {
      outcome.error = scan_armed(item.range, mode, regions, pages);
    } else {
      outcome.error = scan_populated(item.range, true, mode, regions, pages.dirty, pages.guards);
      pages.dropped.add(pages.guards);
    }
    return;
  }
  outcome.error = scan_populated(item.range, true, mode, regions, pages.dirty_file, pages.guards);
  pages.dropped.add(pages.guards);
  if (outcome.error == 0) outcome.error = keep_copied(pages.dirty_file, regions);
  if (outcome.error == 0) outcome.error = find_dropped_copies(item.range, regions, pages);
}

absl::Status UffdTracker::take_in(MappingKind kind, PageRange range, ScanMode mode,
                                  ScanResult& result) {
  const bool anonymous = kind == MappingKind::kPrivateAnonymous;
  ScanResult pages;
  PageSet& dirty = anonymous ? pages.dirty : pages.dirty_file;
  int error = register_range(range);
  if (error == -EBUSY) {
    return make_error(absl::StatusCode::kFailedPrecondition,
                      "mapping {:x}-{:x}: the program uses userfaultfd on it itself", range.start,
                      range.end);
  }
  if (error == 0) error = scan_populated(range, false, mode, regions_[0], dirty, pages.guards);
  if (error == 0 && !anonymous) error = keep_copied(dirty, regions_[0]);
  // What a failed scan protected was not reported: nothing here counts as seen.
  seen_.subtract(range);
  armed_.subtract(range);
  copied_.subtract(range);
  if (error != 0) {
    if (mode == ScanMode::kFrozen) {
      return errno_status(-error,
                          fmt::format("userfaultfd on mapping {:x}-{:x}", range.start, range.end));
    }
    // Gone, or part of it replaced, since the maps were read.
    result.stale = true;
    return absl::OkStatus();
  }
  if (!first_) {
    // Another mapping may have been here under the same addresses: what is not there now is gone.
    PageSet dropped{range};
    dropped.subtract(dirty);
    pages.dropped.add(dropped);
  }
  seen_.add(range);
  settle(kind, range, pages);
  result.add(pages);
  return absl::OkStatus();
}

absl::Status UffdTracker::scan_huge(const TrackedMapping& tracked, ScanMode mode,
                                    ScanResult& result) {
  const PageRange all = range_of(tracked);
  ScanResult pages;
  int error = huge_.scan(tracked, mode, pagemap_, uffd_.get(), pages);
  if (error == -EPERM) {
    // Another mapping than before, of which nothing is known.
    huge_.forget(PageSet{all});
    pages = ScanResult();
    error = register_range(all);
    if (error == -EBUSY)
      return make_error(absl::StatusCode::kFailedPrecondition,
                        "mapping {:x}-{:x}: the program uses userfaultfd on it itself", all.start,
                        all.end);
    if (error == 0) error = huge_.scan(tracked, mode, pagemap_, uffd_.get(), pages);
    if (error == 0 && !first_) {
      PageSet dropped{all};
      dropped.subtract(pages.dirty_file);
      pages.dropped.add(dropped);
    }
  }
  if (error == 0) {
    result.add(pages);
    return absl::OkStatus();
  }
  huge_.forget(PageSet{all});
  if (mode == ScanMode::kFrozen)
    return errno_status(-error, fmt::format("huge pages of mapping {:x}-{:x}", all.start, all.end));
  result.stale = true;
  return absl::OkStatus();
}

void UffdTracker::settle(MappingKind kind, PageRange range, const ScanResult& pages) {
  if (kind == MappingKind::kPrivateAnonymous) {
    PageSet blocks;
    for (const PageRange& dirty : pages.dirty) blocks.add(blocks_around(dirty, range));
    armed_.add(blocks);
  } else {
    armed_.add(range);
    copied_.subtract(pages.dropped);
    copied_.add(pages.dirty_file);
  }
}

absl::Status UffdTracker::scan(std::span<const TrackedMapping> mappings, ScanMode mode,
                               ScanResult& result) {
  FAULT_POINT("pages.scan");
  PageSet listed;
  PageSet listed_huge;
  for (const TrackedMapping& tracked : mappings)
    (tracked.kind == MappingKind::kHugePages ? listed_huge : listed).add(range_of(tracked));
  huge_.keep(listed_huge);
  seen_ = seen_.intersect(listed);
  armed_ = armed_.intersect(listed);
  copied_ = copied_.intersect(listed);

  const std::vector<Item> items = items_of(mappings, mode);
  std::vector<Outcome> outcomes(items.size());
  const auto scan_one = [&](size_t thread, size_t i) {
    scan_item(items[i], mappings[items[i].mapping], mode, regions_[thread], outcomes[i]);
  };
  uint64_t armed_bytes = 0;
  for (const Item& item : items) armed_bytes += item.armed ? item.range.end - item.range.start : 0;
  if (mode == ScanMode::kFrozen && armed_bytes > options_.alone_bytes) {
    pool_.run(items.size(), scan_one);
  } else {
    for (size_t i = 0; i < items.size(); ++i) scan_one(0, i);
  }

  for (size_t m = 0, i = 0; m < mappings.size(); ++m) {
    const MappingKind kind = mappings[m].kind;
    if (kind == MappingKind::kHugePages) {
      GW_RETURN_IF_ERROR(scan_huge(mappings[m], mode, result));
      continue;
    }
    const PageRange all = range_of(mappings[m]);
    ScanResult pages;
    int error = 0;
    for (; i < items.size() && items[i].mapping == m; ++i) {
      pages.add(outcomes[i].pages);
      if (error == 0) error = outcomes[i].error;
    }
    if (error != 0) {
      // EPERM: replaced by another mapping. What the scan had protected by then is unknown, so all
      // of it is dirty.
      GW_RETURN_IF_ERROR(take_in(kind, all, mode, result));
      continue;
    }
    PageSet fresh{all};
    fresh.subtract(seen_);
    settle(kind, all, pages);
    result.add(pages);
    for (const PageRange& range : fresh) GW_RETURN_IF_ERROR(take_in(kind, range, mode, result));
  }
  if (!pagemap_.alive()) return errno_status(ESRCH, "ioctl(PAGEMAP_SCAN)");
  first_ = false;
  return absl::OkStatus();
}

absl::Status UffdTracker::stop(ScanMode mode) {
  const auto unregister = [&](PageRange range) {
    uffdio_range request = {range.start, range.end - range.start};
    // EINVAL: unmapped since; what is left of it is let go by close(2).
    while (::ioctl(uffd_.get(), UFFDIO_UNREGISTER, &request) != 0 &&
           (errno == EINTR || errno == EAGAIN)) {
    }
  };
  for (const PageRange& range : registered_) {
    if (mode == ScanMode::kFrozen) {
      unregister(range);
      continue;
    }
    // Where nothing was protected there is nothing to walk.
    uint64_t at = range.start;
    for (PageRange armed : armed_.intersect(range)) {
      if (at < armed.start) unregister({at, armed.start});
      at = armed.end;
      while (armed.start < armed.end) {
        const uint64_t end = std::min(armed.end, armed.start + options_.step_bytes);
        unregister({armed.start, end});
        armed.start = end;
        pause(mode);
      }
    }
    if (at < range.end) unregister({at, range.end});
  }
  registered_.clear();
  seen_.clear();
  armed_.clear();
  copied_.clear();
  huge_.clear();
  first_ = true;
  return absl::OkStatus();
}

}  // namespace godwit::pages
