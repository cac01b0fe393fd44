#include "pages/applier.h"

#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <climits>

#include "base/clock.h"
#include "base/fault_point.h"
#include "base/status.h"
#include "kernel/slice.h"
#include "kernel/syscalls.h"

namespace godwit::pages {
namespace {

constexpr uint64_t kHugeBytes = uint64_t{2} << 20;
// So many times the kernel may say that it has none before it is asked no more.
constexpr int kMaxHugeFailures = 4;
// Longer for a block than its pages would take one by one: the kernel is compacting memory.
constexpr int64_t kLongForABlock_ns = 10'000'000;
constexpr int kMadvCollapse = 25;  // <linux/mman.h>: MADV_COLLAPSE

}  // namespace

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
    // Not mapped, or behind the end of its file.
    if (n < 0 && errno == EIO && pass_over_) {
      const uint64_t page = at / kPageSize * kPageSize;
      unplaced_.add({page, page + kPageSize});
      at = page + kPageSize;
      continue;
    }
    if (n == 0) return errno_status(ESRCH, fmt::format("pwrite(/proc/{}/mem)", husk_.value));
    return errno_status(errno, fmt::format("pwrite(/proc/{}/mem, {:#x})", husk_.value, at));
  }
  return absl::OkStatus();
}

absl::Status PageApplier::use_uffd(UniqueFd uffd) {
  uffdio_api api{};
  api.api = UFFD_API;
  // Without SIGBUS a process_vm_writev to a hole would wait for an answer that nobody gives.
  api.features = UFFD_FEATURE_SIGBUS;
  if (::ioctl(uffd.get(), UFFDIO_API, &api) != 0)
    return errno_status(errno, fmt::format("ioctl({}, UFFDIO_API, SIGBUS)", uffd.get()));
  uffd_ = std::move(uffd);
  return absl::OkStatus();
}

absl::Status PageApplier::fill_by_uffd(PageRange mapping) {
  uffdio_register request{};
  request.range = {mapping.start, mapping.end - mapping.start};
  request.mode = UFFDIO_REGISTER_MODE_MISSING;
  if (::ioctl(uffd_.get(), UFFDIO_REGISTER, &request) != 0) {
    return errno_status(
        errno, fmt::format("ioctl(UFFDIO_REGISTER, {:x}-{:x})", mapping.start, mapping.end));
  }
  uffd_ranges_.add(mapping);
  return absl::OkStatus();
}

void PageApplier::finish() {
  for (const PageRange& range : uffd_ranges_) {
    uffdio_range request = {range.start, range.end - range.start};
    // Fails only for what is unmapped by now.
    ::ioctl(uffd_.get(), UFFDIO_UNREGISTER, &request);
  }
  uffd_ranges_.clear();
  uffd_.reset();
}

absl::Status PageApplier::copy_into_hole(Piece piece) {
  uint64_t most = piece.to.end - piece.to.start;
  while (piece.to.start < piece.to.end) {
    uffdio_copy copy{};
    copy.dst = piece.to.start;
    copy.src = reinterpret_cast<uint64_t>(piece.from);
    copy.len = std::min(most, piece.to.end - piece.to.start);
    const bool failed = ::ioctl(uffd_.get(), UFFDIO_COPY, &copy) != 0;
    uint64_t done = copy.copy > 0 ? static_cast<uint64_t>(copy.copy) : 0;
    if (failed && done == 0 && errno != EAGAIN && errno != EINTR) {
      // EEXIST: something is there that we did not put there. ENOENT: the range goes over the
      // border of two mappings. Page by page; and a page that cannot be copied is written.
      if (copy.len > kPageSize) {
        most = kPageSize;
        continue;
      }
      const Piece page{{piece.to.start, piece.to.start + kPageSize}, piece.from};
      GW_RETURN_IF_ERROR(write({&page, 1}));
      done = kPageSize;
    }
    piece.to.start += done;
    piece.from += done;
  }
  return absl::OkStatus();
}

absl::Status PageApplier::write(std::span<const Piece> pieces) {
  while (!pieces.empty()) {
    const auto some = pieces.first(std::min<size_t>(pieces.size(), IOV_MAX));
    local_.clear();
    remote_.clear();
    for (const Piece& piece : some) {
      const size_t bytes = piece.to.end - piece.to.start;
      remote_.push_back({reinterpret_cast<void*>(piece.to.start), bytes});
      if (!local_.empty() &&
          static_cast<std::byte*>(local_.back().iov_base) + local_.back().iov_len == piece.from)
        local_.back().iov_len += bytes;
      else
        local_.push_back({const_cast<std::byte*>(piece.from), bytes});
    }
    const ssize_t n = ::process_vm_writev(husk_.value, local_.data(), local_.size(), remote_.data(),
                                          remote_.size(), 0);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && errno != EFAULT)
      return errno_status(errno, fmt::format("process_vm_writev({})", husk_.value));
    size_t done = n < 0 ? 0 : static_cast<size_t>(n);
    // Whole pieces are done; the rest of the one that it stopped in goes by /proc/PID/mem.
    size_t index = 0;
    for (; index < some.size(); ++index) {
      const size_t bytes = some[index].to.end - some[index].to.start;
      if (done < bytes) break;
      done -= bytes;
    }
    if (index < some.size()) {
      const Piece& piece = some[index];
      GW_RETURN_IF_ERROR(write_forced({piece.to.start + done, piece.to.end}, piece.from + done));
      ++index;
    }
    pieces = pieces.subspan(index);
  }
  return absl::OkStatus();
}

void PageApplier::allow_huge(PageSet mappings) {
  if (huge_failures_ < kMaxHugeFailures) huge_ = std::move(mappings);
}

absl::Status PageApplier::make_huge(std::span<const stream::PageRun> runs,
                                    std::span<const std::byte> data) {
  pieces_.clear();
  remote_.clear();
  size_t at = 0;
  for (const stream::PageRun& run : runs) {
    const uint64_t end = run.address + run.count * kPageSize;
    // What is mapped, so that no address of the frame's makes this long or wraps around.
    for (const PageRange& part : huge_.intersect(PageRange{run.address, end})) {
      for (uint64_t block = (part.start + kHugeBytes - 1) / kHugeBytes * kHugeBytes;
           block + kHugeBytes <= part.end; block += kHugeBytes) {
        if (!filled_.intersect(PageRange{block, block + kHugeBytes}).empty()) continue;
        pieces_.push_back({{block, block + kPageSize}, data.data() + at + (block - run.address)});
        remote_.push_back({reinterpret_cast<void*>(block), kHugeBytes});
      }
    }
    at += run.count * kPageSize;
  }
  if (pieces_.empty()) return absl::OkStatus();
  if (!pidfd_) {
    GW_ASSIGN_OR_RETURN(pidfd_, kernel::pidfd_open(husk_));
  }
  // A block without any page is passed over (mm/khugepaged.c: no page table, no collapse). write()
  // uses remote_ for itself.
  const std::vector<iovec> blocks = remote_;
  GW_RETURN_IF_ERROR(write(pieces_));
  kernel::let_others_run();
  const int64_t begin = monotonic_ns();
  const ssize_t n =
      ::syscall(SYS_process_madvise, pidfd_.get(), blocks.data(), blocks.size(), kMadvCollapse, 0);
  const auto count = static_cast<int64_t>(blocks.size());
  if (n != static_cast<ssize_t>(blocks.size() * kHugeBytes) ||
      monotonic_ns() - begin > kLongForABlock_ns * count) {
    if (++huge_failures_ >= kMaxHugeFailures) huge_.clear();
  }
  kernel::let_others_run();
  return absl::OkStatus();
}

absl::Status PageApplier::apply(std::span<const stream::PageRun> runs,
                                std::span<const std::byte> data) {
  FAULT_POINT("pages.apply");
  const PageSet pages = page_set_of(runs);
  uint64_t bytes = 0;
  for (const stream::PageRun& run : runs) bytes += run.count * kPageSize;
  if (bytes != data.size())
    return make_error(absl::StatusCode::kInvalidArgument, "page applier: {} bytes for {} of pages",
                      data.size(), bytes);
  if (!huge_.empty()) GW_RETURN_IF_ERROR(make_huge(runs, data));
  unplaced_.subtract(pages);
  PageSet holes = pages.intersect(uffd_ranges_);
  holes.subtract(filled_);

  pieces_.clear();
  const std::byte* from = data.data();
  for (const stream::PageRun& run : runs) {
    const PageRange all{run.address, run.address + run.count * kPageSize};
    uint64_t at = all.start;
    const auto piece = [&](uint64_t end) {
      const Piece next{{at, end}, from};
      from += end - at;
      at = end;
      return next;
    };
    for (const PageRange& hole : holes.intersect(all)) {
      if (at < hole.start) pieces_.push_back(piece(hole.start));
      GW_RETURN_IF_ERROR(copy_into_hole(piece(hole.end)));
    }
    if (at < all.end) pieces_.push_back(piece(all.end));
  }
  GW_RETURN_IF_ERROR(write(pieces_));
  filled_.add(pages);
  to_drop_.subtract(pages);
  return absl::OkStatus();
}

void PageApplier::drop(std::span<const stream::PageRun> pages) {
  const PageSet dropped = page_set_of(pages);
  to_drop_.add(dropped.intersect(filled_));
  unplaced_.subtract(dropped);
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
  unplaced_.subtract(range);
  uffd_ranges_.subtract(range);
  huge_.subtract(range);
}

}  // namespace godwit::pages
