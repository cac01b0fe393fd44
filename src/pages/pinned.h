// Pages that somebody writes without a fault: pinned for a device or for a request of asynchronous
// I/O (pin_user_pages(), Documentation/core-api/pin_user_pages.rst). Trackers see a page written
// when it is pinned; what comes into it after it was protected again, they do not.
#ifndef GODWIT_PAGES_PINNED_H_
#define GODWIT_PAGES_PINNED_H_

#include <memory>

#include "absl/status/statusor.h"
#include "base/ids.h"
#include "kernel/kernel_memory.h"
#include "pages/page_set.h"

namespace godwit::pages {

// One thread.
class PinnedPages {
 public:
  // Finds out where the kernel's struct page of each frame is, by pages of our own. Needs
  // CAP_SYS_ADMIN (frame numbers in /proc/PID/pagemap). `memory` must outlive it.
  static absl::StatusOr<PinnedPages> open(const kernel::KernelMemory& memory);

  // Of `pages` those that are pinned now, and perhaps others (ones with a thousand references).
  // Some microseconds a page.
  absl::StatusOr<PageSet> among(HostPid pid, const PageSet& pages) const;

 private:
  explicit PinnedPages(const kernel::KernelMemory& memory) : memory_(&memory) {}
  absl::Status find_offsets();
  absl::Status look(uint64_t first_frame, uint64_t address, uint64_t count, PageSet& pinned) const;

  const kernel::KernelMemory* memory_;
  uint64_t first_ = 0;       // struct page of frame 0
  uint64_t page_bytes_ = 0;  // of a struct page
  uint32_t head_ = 0;        // offsets in it
  uint32_t count_ = 0;
};

}  // namespace godwit::pages

#endif  // GODWIT_PAGES_PINNED_H_
