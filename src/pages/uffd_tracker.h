// Dirty tracking by userfaultfd(2) with asynchronous write-protect (Linux 6.7) and PAGEMAP_SCAN.
// The program never stops and never waits for us: a write to a protected page drops the mark in
// the kernel's own fault handler.
//
// What the kernel says of a page, and what it means (tried on 6.18):
//
//   WRITTEN PRESENT          written since it was protected, or never protected
//   WRITTEN SWAPPED          the same, swapped out
//   WRITTEN SWAPPED GUARD    a guard region
//   WRITTEN alone            nothing there and no mark: dropped, or never populated
//   PRESENT                  protected, unchanged
//   SWAPPED                  swapped out, unchanged; or nothing there but a mark
//
// Marks on pages that are not populated tell a drop once, but need page tables: a reservation of
// 100 GiB would cost 200 MiB of them. So only the 2 MiB blocks that have held a page (whose page
// tables exist) are marked: they are "armed".
//
// Huge pages of their own kind: huge_tracker.h. In private file mappings a dropped page keeps its
// mark (zap_install_uffd_wp_if_needed(), mm/memory.c) and so is not WRITTEN: there the pages
// carried so far are compared with what is there now.
#ifndef GODWIT_PAGES_UFFD_TRACKER_H_
#define GODWIT_PAGES_UFFD_TRACKER_H_

#include <memory>
#include <thread>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "base/unique_fd.h"
#include "pages/huge_tracker.h"
#include "pages/pagemap.h"
#include "pages/tracker.h"
#include "pages/work_pool.h"

namespace godwit::pages {

struct UffdTrackerOptions {
  size_t threads = 2;  // in a frozen scan
  // A frozen scan of no more than this is left to one thread. Waking another costs what 128 MiB
  // cost; and on two CPUs it would take the one on which the state is read meanwhile.
  uint64_t alone_bytes = uint64_t{std::thread::hardware_concurrency() > 2 ? 128U : 2048U} << 20;
  // Of the first protection, and of stop(): one step's pages, and the pause after it.
  uint64_t step_bytes = uint64_t{4} << 20;
  absl::Duration pause = absl::Microseconds(200);
};

class UffdTracker final : public DirtyTracker {
 public:
  // `uffd`: made inside the target (UFFDIO_API not yet called), taken out with pidfd_getfd. The
  // tracker holds it open until it is destroyed: call stop() first if the target runs on, since
  // close(2) of a registered userfaultfd stalls it (30-66 ms per GiB).
  // kUnimplemented: the kernel lacks a feature.
  static absl::StatusOr<std::unique_ptr<UffdTracker>> make(UniqueFd uffd, HostPid pid,
                                                           UffdTrackerOptions options = {});

  absl::Status start(std::span<const TrackedMapping> mappings) override;
  absl::Status scan(std::span<const TrackedMapping> mappings, ScanMode mode,
                    ScanResult& result) override;
  void forget(const PageSet& pages) override {
    seen_.subtract(pages);
    huge_.forget(pages);
  }
  absl::Status stop(ScanMode mode) override;

 private:
  // A part of a mapping that is scanned in one way.
  struct Item {
    size_t mapping;
    PageRange range;
    bool armed;
  };
  struct Outcome {
    ScanResult pages;
    int error = 0;  // -errno
  };
  UffdTracker(UniqueFd uffd, HostPid pid, Pagemap pagemap, UffdTrackerOptions options);

  // 0 or -errno.
  int register_range(PageRange range);
  std::vector<Item> items_of(std::span<const TrackedMapping> mappings, ScanMode mode) const;
  void scan_item(const Item& item, const TrackedMapping& of, ScanMode mode,
                 std::vector<Region>& regions, Outcome& outcome) const;
  int scan_armed(PageRange range, ScanMode mode, std::vector<Region>& regions,
                 ScanResult& pages) const;
  int scan_populated(PageRange range, bool only_written, ScanMode mode,
                     std::vector<Region>& regions, PageSet& populated, PageSet& guards) const;
  int keep_copied(PageSet& pages, std::vector<Region>& regions) const;
  int find_dropped_copies(PageRange range, std::vector<Region>& regions, ScanResult& pages) const;
  // A range that is not (or no longer) registered: registers it; all that it holds is dirty.
  absl::Status take_in(MappingKind kind, PageRange range, ScanMode mode, ScanResult& result);
  absl::Status scan_huge(const TrackedMapping& tracked, ScanMode mode, ScanResult& result);
  void settle(MappingKind kind, PageRange range, const ScanResult& pages);
  void pause(ScanMode mode) const;

  UniqueFd uffd_;
  Pagemap pagemap_;
  UffdTrackerOptions options_;
  WorkPool pool_;
  std::vector<std::vector<Region>> regions_;  // one a thread
  PageSet registered_;
  PageSet seen_;  // registered, and all that was there has been reported once
  PageSet armed_;
  HugeTracker huge_;
  PageSet copied_;  // pages of private file mappings that were reported as dirty
  bool first_ = true;
};

}  // namespace godwit::pages

#endif  // GODWIT_PAGES_UFFD_TRACKER_H_
