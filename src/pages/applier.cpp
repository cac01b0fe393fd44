#include "pages/applier.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <climits>

#include "base/fault_point.h"
#include "base/status.h"
#include "kernel/syscalls.h"

namespace godwit::pages {

absl::Status PageApplier::write_forced(PageRange range, const std::byte* from) {
  if (!mem_) {
    GW_ASSIGN_OR_RETURN(mem_,
                        kernel::open(fmt::format("/proc/{}/mem", husk_.value), O_RDWR | O_CLOEXEC));
  }
  for (uint64_t at = range.start; at < range.end;) {
    const ssize_t n =
        ::pwrite(mem_.get(), from + (at - range.start), range.end - at, static_cast<off_t>(at));
    if (n > 0) {
      at += static_cast<uint64_t>(n);
      continue;
    }
    if (n < 0 && errno == EINTR) continue;
    if (n == 0) return errno_status(ESRCH, fmt::format("pwrite(/proc/{}/mem)", husk_.value));
    return errno_status(errno, fmt::format("pwrite(/proc/{}/mem, {:#x})", husk_.value, at));
  }
  return absl::OkStatus();
}

absl::Status PageApplier::apply(const stream::Pages& frame) {
  return apply(frame.runs, frame.data);
}

absl::Status PageApplier::apply(std::span<const stream::PageRun> runs,
                                std::span<const std::byte> data) {
  FAULT_POINT("pages.apply");
  const PageSet pages = page_set_of(runs);
  while (!runs.empty()) {
    const auto some = runs.first(std::min<size_t>(runs.size(), IOV_MAX));
    remote_.clear();
    size_t wanted = 0;
    for (const stream::PageRun& run : some) {
      remote_.push_back({reinterpret_cast<void*>(run.address), run.count * kPageSize});
      wanted += run.count * kPageSize;
    }
    if (wanted > data.size())
      return make_error(absl::StatusCode::kInvalidArgument, "page applier: less data than pages");
    const iovec local = {const_cast<std::byte*>(data.data()), wanted};
    const ssize_t n =
        ::process_vm_writev(husk_.value, &local, 1, remote_.data(), remote_.size(), 0);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && errno != EFAULT)
      return errno_status(errno, fmt::format("process_vm_writev({})", husk_.value));
    size_t done = n < 0 ? 0 : static_cast<size_t>(n);
    // Whole runs are done; the one that it stopped in goes the other way.
    size_t index = 0;
    for (; index < some.size() && done >= some[index].count * kPageSize; ++index) {
      done -= some[index].count * kPageSize;
      data = data.subspan(some[index].count * kPageSize);
    }
    if (index < some.size()) {
      const stream::PageRun& run = some[index];
      const size_t bytes = run.count * kPageSize;
      GW_RETURN_IF_ERROR(
          write_forced({run.address + done, run.address + bytes}, data.data() + done));
      data = data.subspan(bytes);
      ++index;
    }
    runs = runs.subspan(index);
  }
  filled_.add(pages);
  to_drop_.subtract(pages);
  return absl::OkStatus();
}

void PageApplier::drop(const stream::PagesDropped& frame) {
  to_drop_.add(page_set_of(frame.runs).intersect(filled_));
}

void PageApplier::dropped() {
  filled_.subtract(to_drop_);
  to_drop_.clear();
}

absl::Status PageApplier::write_zeros() {
  static constexpr std::array<std::byte, 16 * kPageSize> kZeros{};
  for (PageRange range : to_drop_) {
    for (; range.start < range.end; range.start += kZeros.size()) {
      const uint64_t bytes = std::min<uint64_t>(kZeros.size(), range.end - range.start);
      GW_RETURN_IF_ERROR(write_forced({range.start, range.start + bytes}, kZeros.data()));
    }
  }
  to_drop_.clear();
  return absl::OkStatus();
}

void PageApplier::forget(PageRange range) {
  filled_.subtract(range);
  to_drop_.subtract(range);
}

}  // namespace godwit::pages
