// PAGEMAP_SCAN of /proc/PID/pagemap: <linux/fs.h> of Linux 6.7, PAGE_IS_GUARD of 6.15. Finds pages
// by category and write-protects them in the same step. Returns the number of page_regions filled.
#ifndef GODWIT_KERNEL_ABI_PAGEMAP_SCAN_H_
#define GODWIT_KERNEL_ABI_PAGEMAP_SCAN_H_

#include <linux/fs.h>
#include <sys/ioctl.h>

#include <cstddef>
#include <cstdint>

namespace godwit::kernel::abi {

// struct page_region
struct PageRegion {
  uint64_t start;
  uint64_t end;  // exclusive
  uint64_t categories;
};
static_assert(sizeof(PageRegion) == 24);

// struct pm_scan_arg
struct PmScanArg {
  uint64_t size;  // sizeof(PmScanArg)
  uint64_t flags;
  uint64_t start;
  uint64_t end;
  uint64_t walk_end;  // out: where the walk ended, because vec or max_pages was full
  uint64_t vec;       // PageRegion*
  uint64_t vec_len;
  uint64_t max_pages;  // 0: no limit
  // A page matches if ((categories ^ inverted) & mask) == mask, and has one of anyof_mask if that
  // is not 0.
  uint64_t category_inverted;
  uint64_t category_mask;
  uint64_t category_anyof_mask;
  uint64_t return_mask;  // categories to report; regions that differ in others merge
};
static_assert(sizeof(PmScanArg) == 96);
static_assert(offsetof(PmScanArg, walk_end) == 32 && offsetof(PmScanArg, return_mask) == 88);

inline constexpr unsigned long kPagemapScan = _IOWR('f', 16, PmScanArg);
static_assert(kPagemapScan == 0xc0606610);

inline constexpr uint64_t kPageIsWpAllowed = 1 << 0;  // registered for asynchronous write-protect
inline constexpr uint64_t kPageIsWritten = 1 << 1;    // since it was last write-protected
inline constexpr uint64_t kPageIsFile = 1 << 2;
inline constexpr uint64_t kPageIsPresent = 1 << 3;
inline constexpr uint64_t kPageIsSwapped = 1 << 4;
inline constexpr uint64_t kPageIsPfnZero = 1 << 5;
inline constexpr uint64_t kPageIsHuge = 1 << 6;
inline constexpr uint64_t kPageIsSoftDirty = 1 << 7;
inline constexpr uint64_t kPageIsGuard = 1 << 8;  // 6.15

inline constexpr uint64_t kPmScanWpMatching = 1 << 0;
inline constexpr uint64_t kPmScanCheckWpAsync = 1 << 1;  // EPERM where not registered

#ifdef PAGEMAP_SCAN
static_assert(kPagemapScan == PAGEMAP_SCAN && sizeof(PmScanArg) == sizeof(pm_scan_arg) &&
              kPageIsSoftDirty == PAGE_IS_SOFT_DIRTY && kPageIsWritten == PAGE_IS_WRITTEN);
#endif

}  // namespace godwit::kernel::abi

#endif  // GODWIT_KERNEL_ABI_PAGEMAP_SCAN_H_
