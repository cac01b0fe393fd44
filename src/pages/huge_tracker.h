// Which pages of MAP_HUGETLB memory a program has changed: for UffdTracker, whose ways fail there.
//
// What differs from ordinary private memory (fs/proc/task_mmu.c, mm/hugetlb.c; tried on 6.18):
//
//   - PAGEMAP_SCAN protects pages of 2 MiB only, and only where its limits do not cut one; asked to
//     protect one of 1 GiB it stays where it is. So pages are protected by UFFDIO_WRITEPROTECT
//     after the scan: one that is written between the two counts as written.
//   - What is dropped (MADV_DONTNEED) keeps the mark, and so does the page of zeros that a read
//     puts there: PRESENT and not WRITTEN, with other contents. So of each page that was carried
//     the place of a word is kept that was not zero; where it is zero now the page is dirty.
//   - A page that the kernel is moving elsewhere looks like a dropped one.
#ifndef GODWIT_PAGES_HUGE_TRACKER_H_
#define GODWIT_PAGES_HUGE_TRACKER_H_

#include <cstdint>
#include <map>
#include <vector>

#include "absl/status/status.h"
#include "base/ids.h"
#include "base/unique_fd.h"
#include "pages/pagemap.h"
#include "pages/tracker.h"

namespace godwit::pages {

// One address space. Not thread-safe.
class HugeTracker {
 public:
  explicit HugeTracker(HostPid pid) : pid_(pid) {}

  // Of a mapping that is registered for asynchronous write-protect with `uffd`. Dirty pages go into
  // result.dirty_file: a page of zeros is carried as such. 0 or -errno; EPERM: it is not
  // registered.
  int scan(const TrackedMapping& mapping, ScanMode mode, const Pagemap& pagemap, int uffd,
           ScanResult& result);
  // What lies outside of these ranges is not known any more.
  void keep(const PageSet& mapped);
  void forget(const PageSet& pages);
  void clear() { known_.clear(); }

 private:
  struct Page {
    uint64_t word = 0;  // address of one that was not zero; 0: all of the page was
    bool unclear = false;
  };
  int protect(int uffd, PageRange range) const;
  // -errno if it cannot be read.
  int read(uint64_t address, void* to, size_t bytes);
  int find_word(PageRange page, uint64_t& word);
  int word_is_zero(uint64_t word, bool& zero);
  int look_at_unclear(PageRange page, Page& known, ScanMode mode, ScanResult& result, bool& gone);

  HostPid pid_;
  UniqueFd mem_;
  std::map<uint64_t, Page> known_;  // by address: carried, and protected since
};

}  // namespace godwit::pages

#endif  // GODWIT_PAGES_HUGE_TRACKER_H_
