// Contents of pages of another process: process_vm_readv(2), and /proc/PID/mem for what that
// refuses (PROT_NONE; proc(5)).
#ifndef GODWIT_PAGES_PAGE_READER_H_
#define GODWIT_PAGES_PAGE_READER_H_

#include <sys/uio.h>

#include <cstddef>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "base/ids.h"
#include "base/unique_fd.h"
#include "pages/page_set.h"

namespace godwit::pages {

class PageReader {
 public:
  explicit PageReader(HostPid pid) : pid_(pid) {}

  // Reads the pages of `ranges` one after the other into `to`. Pages that are not there (any more)
  // are left out of both: `got` says what was read, in order; the rest goes to `unreadable`.
  // kNotFound (ESRCH): the process is gone.
  absl::Status read(std::span<const PageRange> ranges, std::span<std::byte> to,
                    std::vector<PageRange>& got, PageSet& unreadable);

 private:
  // The rest of a range at whose first page process_vm_readv stopped. Bytes read from its start.
  absl::StatusOr<size_t> read_forced(PageRange range, std::byte* to);

  HostPid pid_;
  UniqueFd mem_;
  std::vector<iovec> remote_;
};

// True if the page of 4096 bytes at `page` is all zero.
bool is_zero_page(const std::byte* page);

}  // namespace godwit::pages

#endif  // GODWIT_PAGES_PAGE_READER_H_
