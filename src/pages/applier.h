// From the stream into a husk's memory, from outside. The husk's mappings are there already, with
// their final protections; it may be stopped or frozen, no code runs in it. Three ways:
//
//   UFFDIO_COPY         pages of anonymous mappings that are not there yet, if a userfaultfd of the
//                       husk was given: the new page is not zeroed first. 0.24 s of CPU a GiB
//   process_vm_writev   0.12 s a GiB where pages are there, 0.44 where they are not
//   /proc/PID/mem       what process_vm_writev refuses: read-only and PROT_NONE (proc(5))
//
// And one way to make the pages: MADV_COLLAPSE (Linux 6.1) makes a huge page of an aligned block of
// 2 MiB that holds one page, without a fault for each of the others: 0.07-0.12 s a GiB, against
// 0.3-0.4 s for the faults. It also makes the next move's reading three times cheaper.
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

  // `uffd`: made inside the husk (UFFDIO_API not yet called), taken out with pidfd_getfd.
  absl::Status use_uffd(UniqueFd uffd);
  // Fills the holes of this anonymous private mapping by UFFDIO_COPY from now on. Until finish() a
  // touch of a page in it that is not there is a SIGBUS in the husk (EFAULT in a system call): not
  // for the stack or the stub that run in between. Not for mappings that want huge pages either:
  // the copies are small.
  absl::Status fill_by_uffd(PageRange mapping);
  // Before the husk is activated: lets go of the userfaultfd. Quick at any size.
  void finish();

  // In these mappings (anonymous and private, not MADV_NOHUGEPAGE) a block that arrives whole, and
  // of which nothing is there, becomes a huge page first. Only such: one with gaps would take more
  // memory than the source's. An advice: where the kernel has no huge page to give, pages come one
  // by one.
  void allow_huge(PageSet mappings);

  // Puts the frame's pages in their places. An address without a mapping is an error that names
  // it: the husk's mappings do not fit the source's. kNotFound (ESRCH): the husk is gone.
  absl::Status apply(const stream::Pages& frame) { return apply(frame.runs, frame.data); }
  absl::Status apply(std::span<const stream::PageRun> runs, std::span<const std::byte> data);

  // From here on a page that nothing mapped there can take is no error but unplaced(), until it
  // comes again, is dropped or forgotten.
  void pass_over_what_has_no_place(bool pass_over) { pass_over_ = pass_over; }
  const PageSet& unplaced() const { return unplaced_; }

  // Notes that these are unpopulated at the source. Pages that this applier never filled need
  // nothing; the others wait in to_drop().
  void drop(std::span<const stream::PageRun> pages);

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
  struct Piece {
    PageRange to;
    const std::byte* from;
  };
  absl::Status write(std::span<const Piece> pieces);
  absl::Status write_forced(PageRange range, const std::byte* from);
  absl::Status copy_into_hole(Piece piece);
  absl::Status make_huge(std::span<const stream::PageRun> runs, std::span<const std::byte> data);

  HostPid husk_;
  UniqueFd mem_;
  UniqueFd uffd_;
  UniqueFd pidfd_;
  PageSet uffd_ranges_;
  PageSet huge_;
  int huge_failures_ = 0;
  PageSet filled_;
  PageSet to_drop_;
  PageSet unplaced_;
  bool pass_over_ = false;
  std::vector<Piece> pieces_;
  std::vector<iovec> local_;
  std::vector<iovec> remote_;
};

}  // namespace godwit::pages

#endif  // GODWIT_PAGES_APPLIER_H_
