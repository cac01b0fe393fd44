// /proc/PID/pagemap: what state pages are in (PAGEMAP_SCAN, Linux 6.7; entries of 8 bytes,
// proc(5)).
#ifndef GODWIT_PAGES_PAGEMAP_H_
#define GODWIT_PAGES_PAGEMAP_H_

#include <cstdint>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/ids.h"
#include "base/unique_fd.h"
#include "kernel/abi/pagemap_scan.h"
#include "pages/page_set.h"

namespace godwit::pages {

// What to look for in one PAGEMAP_SCAN; bits are kernel::abi::kPageIs*.
struct PageQuery {
  uint64_t all_of = 0;
  uint64_t any_of = 0;
  uint64_t report = 0;
  bool protect = false;    // write-protect what matches, atomically; both of these give EPERM
  bool registered = true;  // where the range is not registered for asynchronous write-protect
  uint64_t max_pages = 0;  // of one step; 0: no limit
};

using Region = kernel::abi::PageRegion;

class Pagemap {
 public:
  static absl::StatusOr<Pagemap> open(HostPid pid);

  // One system call: fills `regions` (at most its size), gives how many; `at` moves to where the
  // walk ended (`end` if all was seen). Returns -errno on failure.
  int scan_step(const PageQuery& query, uint64_t& at, uint64_t end,
                std::vector<Region>& regions) const;

  // All of `range`. 0 or -errno. `between` runs after each step that filled up.
  int scan(
      const PageQuery& query, PageRange range, std::vector<Region>& regions,
      absl::FunctionRef<void(const Region&)> each, absl::FunctionRef<void()> between = [] {}) const;

  // Of pages that PAGEMAP_SCAN calls SWAPPED: adds to `swapped` those that really are. A mark that
  // userfaultfd left where nothing is (any more) is reported alike, but no swap area has its type
  // (include/linux/swapops.h: markers come behind MAX_SWAPFILES).
  void add_swapped(PageRange range, PageSet& swapped) const;

  // False once the address space is gone: scans of it find nothing and say no error.
  bool alive() const;

 private:
  explicit Pagemap(UniqueFd fd) : fd_(std::move(fd)) {}
  UniqueFd fd_;
};

}  // namespace godwit::pages

#endif  // GODWIT_PAGES_PAGEMAP_H_
