#include "pages/pagemap.h"

#include <fmt/core.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>

#include "kernel/syscalls.h"

namespace godwit::pages {
namespace {

constexpr uint64_t kEntrySwapped = uint64_t{1} << 62;
constexpr uint64_t kEntrySwapType = 0x1f;
// swapon(2): at most 32 minus a handful of areas; nobody has sixteen, and markers lie above.
constexpr uint64_t kMaxSwapType = 16;

}  // namespace

absl::StatusOr<Pagemap> Pagemap::open(HostPid pid) {
  auto fd = kernel::open(fmt::format("/proc/{}/pagemap", pid.value), O_RDONLY | O_CLOEXEC);
  if (!fd.ok()) return fd.status();
  return Pagemap(*std::move(fd));
}

int Pagemap::scan_step(const PageQuery& query, uint64_t& at, uint64_t end,
                       std::vector<Region>& regions) const {
  namespace abi = kernel::abi;
  abi::PmScanArg arg{};
  arg.size = sizeof arg;
  arg.flags = (query.protect ? abi::kPmScanWpMatching : 0) |
              (query.registered ? abi::kPmScanCheckWpAsync : 0);
  arg.start = at;
  arg.end = end;
  arg.vec = reinterpret_cast<uint64_t>(regions.data());
  arg.vec_len = regions.size();
  arg.max_pages = query.max_pages;
  arg.category_mask = query.all_of;
  arg.category_anyof_mask = query.any_of;
  arg.return_mask = query.report;
  while (true) {
    const int n = ::ioctl(fd_.get(), abi::kPagemapScan, &arg);
    // Interrupted before anything was done; EINTR after a part is a success with less.
    if (n < 0 && (errno == EINTR || errno == EAGAIN)) continue;
    if (n < 0) return -errno;
    at = arg.walk_end;
    return n;
  }
}

int Pagemap::scan(const PageQuery& query, PageRange range, std::vector<Region>& regions,
                  absl::FunctionRef<void(const Region&)> each,
                  absl::FunctionRef<void()> between) const {
  for (uint64_t at = range.start; at < range.end;) {
    const int n = scan_step(query, at, range.end, regions);
    if (n < 0) return n;
    for (int i = 0; i < n; ++i) each(regions[static_cast<size_t>(i)]);
    if (at < range.end) between();
  }
  return 0;
}

void Pagemap::add_swapped(PageRange range, PageSet& swapped) const {
  std::array<uint64_t, 512> entries;
  while (range.start < range.end) {
    const uint64_t some = std::min<uint64_t>(entries.size(), range.pages());
    const ssize_t n = ::pread(fd_.get(), entries.data(), some * sizeof entries[0],
                              static_cast<off_t>(range.start / kPageSize * sizeof entries[0]));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return;
    for (size_t i = 0; i < static_cast<size_t>(n) / sizeof entries[0]; ++i) {
      if ((entries[i] & kEntrySwapped) != 0 && (entries[i] & kEntrySwapType) < kMaxSwapType)
        swapped.add({range.start, range.start + kPageSize});
      range.start += kPageSize;
    }
  }
}

bool Pagemap::alive() const {
  uint64_t entry = 0;
  return ::pread(fd_.get(), &entry, sizeof entry, 0) == sizeof entry;
}

}  // namespace godwit::pages
