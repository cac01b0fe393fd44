#include "pages/huge_tracker.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <utility>

#include "kernel/syscalls.h"

namespace godwit::pages {
namespace {

using kernel::abi::kPageIsPresent;
using kernel::abi::kPageIsSwapped;
using kernel::abi::kPageIsWritten;

constexpr size_t kRegions = 512;
constexpr size_t kPieceWords = 8192;  // of a page, read at a time

}  // namespace

int HugeTracker::protect(int uffd, PageRange range) const {
  uffdio_writeprotect request{};
  request.range = {range.start, range.end - range.start};
  request.mode = UFFDIO_WRITEPROTECT_MODE_WP;
  while (::ioctl(uffd, UFFDIO_WRITEPROTECT, &request) != 0)
    if (errno != EINTR && errno != EAGAIN) return -errno;
  return 0;
}

int HugeTracker::read(uint64_t address, void* to, size_t bytes) {
  if (!mem_) {
    auto mem = kernel::open(fmt::format("/proc/{}/mem", pid_.value), O_RDONLY | O_CLOEXEC);
    if (!mem.ok()) return -ESRCH;
    mem_ = *std::move(mem);
  }
  while (true) {
    const ssize_t n = ::pread(mem_.get(), to, bytes, static_cast<off_t>(address));
    if (n == static_cast<ssize_t>(bytes)) return 0;
    if (n < 0 && errno == EINTR) continue;
    return n < 0 ? -errno : n == 0 ? -ESRCH : -EIO;
  }
}

int HugeTracker::find_word(PageRange page, uint64_t& word) {
  word = 0;
  std::array<uint64_t, kPieceWords> words;
  for (uint64_t at = page.start; at < page.end; at += sizeof words) {
    if (const int error = read(at, words.data(), sizeof words); error != 0) return error;
    const auto* found = std::find_if(words.begin(), words.end(), [](uint64_t w) { return w != 0; });
    if (found == words.end()) continue;
    word = at + static_cast<uint64_t>(found - words.begin()) * sizeof(uint64_t);
    return 0;
  }
  return 0;
}

int HugeTracker::word_is_zero(uint64_t word, bool& zero) {
  zero = false;
  if (word == 0) return 0;  // all of it was zero when it was carried
  uint64_t value = 0;
  const int error = read(word, &value, sizeof value);
  zero = value == 0;
  return error;
}

// Nothing is there but a mark, or the page is on its way. While the program runs the next scan
// tells; a page that is still so by then has been dropped (if not, it is unknown when it arrives,
// and so dirty). In the freeze it is read, which waits for one that arrives and puts zeros where
// none is.
int HugeTracker::look_at_unclear(PageRange page, Page& known, ScanMode mode, ScanResult& result,
                                 bool& gone) {
  gone = false;
  if (mode == ScanMode::kRunning) {
    gone = std::exchange(known.unclear, true);
    if (gone) result.dropped.add(page);
    return 0;
  }
  uint64_t value = 0;
  const int error = read(known.word != 0 ? known.word : page.start, &value, sizeof value);
  if (error == -EIO || error == -EFAULT) {  // dropped, and the pool is empty
    gone = true;
    result.dropped.add(page);
    return 0;
  }
  if (error == 0 && value == 0 && known.word != 0) {
    gone = true;
    result.dirty_file.add(page);
  }
  return error;
}

int HugeTracker::scan(const TrackedMapping& mapping, ScanMode mode, const Pagemap& pagemap,
                      int uffd, ScanResult& result) {
  const PageRange all{mapping.mapping.start, mapping.mapping.end};
  const uint64_t bytes = mapping.huge_page_bytes;
  const PageQuery query{.any_of = kPageIsPresent | kPageIsSwapped,
                        .report = kPageIsPresent | kPageIsSwapped | kPageIsWritten};
  PageSet written;
  PageSet marked;
  PageSet there;
  std::vector<Region> regions(kRegions);
  int error = pagemap.scan(query, all, regions, [&](const Region& region) {
    const PageRange found{region.start, region.end};
    if ((region.categories & kPageIsWritten) != 0)
      written.add(found);
    else if ((region.categories & kPageIsSwapped) != 0)
      marked.add(found);
    else
      there.add(found);
  });
  if (error != 0) return error;
  // Before anything of it is read.
  for (const PageRange& range : written)
    if (error = protect(uffd, range); error != 0) return error;

  PageSet dirty = written;
  for (auto at = known_.lower_bound(all.start); at != known_.end() && at->first < all.end;) {
    const PageRange page{at->first, at->first + bytes};
    bool gone = false;
    if (written.contains(page.start)) {
      gone = true;
    } else if (there.contains(page.start)) {
      at->second.unclear = false;
      bool zero = false;
      if (error = word_is_zero(at->second.word, zero); error != 0) return error;
      if (zero) dirty.add(page);
      gone = zero;
    } else if (marked.contains(page.start)) {
      if (error = look_at_unclear(page, at->second, mode, result, gone); error != 0) return error;
    } else {
      result.dropped.add(page);
      gone = true;
    }
    at = gone ? known_.erase(at) : std::next(at);
  }
  for (const PageRange& range : there)
    for (uint64_t at = range.start; at < range.end; at += bytes)
      if (!known_.contains(at)) dirty.add({at, at + bytes});
  result.dirty_file.add(dirty);
  // A scan that follows a freeze takes them for new.
  if (mode == ScanMode::kFrozen) return 0;
  for (const PageRange& range : dirty)
    for (uint64_t at = range.start; at < range.end; at += bytes) {
      Page page;
      if (error = find_word({at, at + bytes}, page.word); error != 0) return error;
      known_[at] = page;
    }
  return 0;
}

void HugeTracker::keep(const PageSet& mapped) {
  std::erase_if(known_, [&](const auto& one) { return !mapped.contains(one.first); });
}

void HugeTracker::forget(const PageSet& pages) {
  for (const PageRange& range : pages) {
    // Also one of which only a part is named.
    auto at = known_.upper_bound(range.start);
    if (at != known_.begin()) --at;
    while (at != known_.end() && at->first < range.end) at = known_.erase(at);
  }
}

}  // namespace godwit::pages
