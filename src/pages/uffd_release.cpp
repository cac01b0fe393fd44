#include "pages/uffd_release.h"

#include <linux/userfaultfd.h>
#include <sys/ioctl.h>

#include <algorithm>
#include <cerrno>
#include <ctime>

#include "base/clock.h"
#include "base/status.h"
#include "kernel/huge_pages.h"
#include "kernel/proc/maps.h"

namespace godwit::pages {
namespace {

constexpr uint64_t kStepBytes = uint64_t{4} << 20;
constexpr uint64_t kLongestStepBytes = uint64_t{64} << 20;
// A step that took this long had page tables to walk; a reservation has none.
constexpr int64_t kLongStepNs = 50'000;

void unregister(int uffd, uint64_t start, uint64_t end) {
  uffdio_range range = {start, end - start};
  // EINVAL: not registered, or gone since the maps were read.
  while (::ioctl(uffd, UFFDIO_UNREGISTER, &range) != 0 && (errno == EINTR || errno == EAGAIN)) {
  }
}

}  // namespace

absl::Status release_uffd(UniqueFd uffd, HostPid pid) {
  const auto maps = kernel::read_maps(pid);
  if (errno_of(maps.status()) == ENOENT || errno_of(maps.status()) == ESRCH)
    return absl::OkStatus();
  GW_RETURN_IF_ERROR(maps.status());
  for (const kernel::Mapping& mapping : *maps) {
    if (mapping.of_kernel() || mapping.shared) continue;
    // A part of a huge page cannot be let go; of whole ones there are few to walk.
    if (kernel::huge_page_bytes(mapping) != 0) {
      unregister(uffd.get(), mapping.start, mapping.end);
      continue;
    }
    uint64_t step = kStepBytes;
    for (uint64_t at = mapping.start; at < mapping.end;) {
      const uint64_t end = mapping.end - at < step ? mapping.end : at + step;
      const int64_t begin = monotonic_ns();
      unregister(uffd.get(), at, end);
      at = end;
      if (monotonic_ns() - begin < kLongStepNs) {
        step = std::min(2 * step, kLongestStepBytes);
        continue;
      }
      step = kStepBytes;
      const timespec pause{0, 200'000};
      ::nanosleep(&pause, nullptr);
    }
  }
  return absl::OkStatus();
}

}  // namespace godwit::pages
