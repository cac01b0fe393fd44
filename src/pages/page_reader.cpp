#include "pages/page_reader.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstdint>
#include <cstring>

#include "base/status.h"
#include "kernel/syscalls.h"

namespace godwit::pages {

bool is_zero_page(const std::byte* page) {
  const auto any_bit = [page](size_t from, size_t to) {
    uint64_t sum = 0;
    for (size_t at = from; at < to; at += sizeof sum) {
      uint64_t word;
      std::memcpy(&word, page + at, sizeof word);
      sum |= word;
    }
    return sum != 0;
  };
  // Most pages show in their first line that they are not.
  if (any_bit(0, 64)) return false;
  for (size_t at = 0; at < kPageSize; at += 512) {
    if (any_bit(at, at + 512)) return false;
  }
  return true;
}

absl::StatusOr<size_t> PageReader::read_forced(PageRange range, std::byte* to) {
  if (!mem_) {
    GW_ASSIGN_OR_RETURN(
        mem_, kernel::open(fmt::format("/proc/{}/mem", pid_.value), O_RDONLY | O_CLOEXEC));
  }
  size_t done = 0;
  while (range.start + done < range.end) {
    const ssize_t n = ::pread(mem_.get(), to + done, range.end - range.start - done,
                              static_cast<off_t>(range.start + done));
    if (n > 0) {
      done += static_cast<size_t>(n);
      continue;
    }
    if (n < 0 && errno == EINTR) continue;
    // 0: the address space is gone. EIO: nothing there, or a guard.
    if (n == 0) return errno_status(ESRCH, fmt::format("pread(/proc/{}/mem)", pid_.value));
    break;
  }
  return done / kPageSize * kPageSize;
}

absl::Status PageReader::read(std::span<const PageRange> ranges, std::span<std::byte> to,
                              std::vector<PageRange>& got, PageSet& unreadable) {
  size_t at = 0;  // into `to`
  const auto take = [&](PageRange range) {
    if (range.start >= range.end) return;
    if (!got.empty() && got.back().end == range.start)
      got.back().end = range.end;
    else
      got.push_back(range);
    at += range.end - range.start;
  };
  size_t index = 0;
  uint64_t skip = 0;  // of ranges[index]: already dealt with
  while (index < ranges.size()) {
    remote_.clear();
    size_t wanted = 0;
    for (size_t i = index; i < ranges.size() && remote_.size() < IOV_MAX; ++i) {
      const uint64_t start = ranges[i].start + (i == index ? skip : 0);
      remote_.push_back({reinterpret_cast<void*>(start), ranges[i].end - start});
      wanted += remote_.back().iov_len;
    }
    if (wanted > to.size() - at)
      return make_error(absl::StatusCode::kInvalidArgument, "page reader: buffer too small");
    const iovec local = {to.data() + at, wanted};
    const ssize_t n = ::process_vm_readv(pid_.value, &local, 1, remote_.data(), remote_.size(), 0);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && errno != EFAULT)
      return errno_status(errno, fmt::format("process_vm_readv({})", pid_.value));
    size_t done = n < 0 ? 0 : static_cast<size_t>(n) / kPageSize * kPageSize;
    while (index < ranges.size()) {
      const PageRange left{ranges[index].start + skip, ranges[index].end};
      const uint64_t step = std::min<uint64_t>(done, left.end - left.start);
      take({left.start, left.start + step});
      done -= step;
      skip += step;
      if (left.start + step < left.end) break;
      ++index;
      skip = 0;
      if (done == 0) break;
    }
    if (n == static_cast<ssize_t>(wanted)) continue;
    if (index == ranges.size()) break;
    // Stopped before this page.
    const PageRange left{ranges[index].start + skip, ranges[index].end};
    GW_ASSIGN_OR_RETURN(const size_t forced, read_forced(left, to.data() + at));
    take({left.start, left.start + forced});
    skip += forced;
    if (left.start + forced < left.end) {
      unreadable.add({left.start + forced, left.start + forced + kPageSize});
      skip += kPageSize;
    }
    if (ranges[index].start + skip >= ranges[index].end) {
      ++index;
      skip = 0;
    }
  }
  return absl::OkStatus();
}

}  // namespace godwit::pages
