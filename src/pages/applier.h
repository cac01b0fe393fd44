// From the stream into a husk's memory, from outside: process_vm_writev(2); /proc/PID/mem for what
// that refuses (read-only and PROT_NONE mappings; proc(5)). The husk's mappings are there already,
// with their final protections. It may be stopped or frozen; no code runs in it.
#ifndef GODWIT_PAGES_APPLIER_H_
#define GODWIT_PAGES_APPLIER_H_

#include <sys/uio.h>

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "base/ids.h"
#include "base/unique_fd.h"
#include "pages/page_set.h"
#include "stream/stream.h"

namespace godwit::pages {

// One address space. Not thread-safe.
class PageApplier {
 public:
  explicit PageApplier(HostPid husk) : husk_(husk) {}

  // Puts the frame's pages in their places. An address without a mapping is an error that names
  // it: the husk's mappings do not fit the source's. kNotFound (ESRCH): the husk is gone.
  absl::Status apply(const stream::Pages& frame);
  absl::Status apply(std::span<const stream::PageRun> runs, std::span<const std::byte> data);

  // Notes that these are unpopulated at the source. Pages that this applier never filled need
  // nothing; the others wait in to_drop().
  void drop(const stream::PagesDropped& frame);

  // Pages that hold something here, but must be dropped (madvise(MADV_DONTNEED): the kernel takes
  // that from nobody but the process itself, so it goes into a batch of the husk's; read-only and
  // PROT_NONE mappings included). Run it before the husk is activated, then call dropped(). A page
  // that comes again is not in here any more.
  const PageSet& to_drop() const { return to_drop_; }
  void dropped();
  // Where a batch cannot be run: overwrites them with zeros (right for anonymous memory only).
  absl::Status write_zeros();

  // A mapping of the husk was removed or made anew: nothing of ours is in there now.
  void forget(PageRange range);

  // Pages filled by this applier and not dropped since.
  const PageSet& filled() const { return filled_; }

 private:
  absl::Status write_forced(PageRange range, const std::byte* from);

  HostPid husk_;
  UniqueFd mem_;
  PageSet filled_;
  PageSet to_drop_;
  std::vector<iovec> remote_;
};

}  // namespace godwit::pages

#endif  // GODWIT_PAGES_APPLIER_H_
