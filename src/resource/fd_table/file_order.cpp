#include "resource/fd_table/file_order.h"

#include <linux/kcmp.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>

#include "base/status.h"

namespace godwit::resource {
namespace {

// <0, 0, >0.
absl::StatusOr<int> compare(int a, int b) {
  const pid_t self = ::getpid();
  const long order = ::syscall(SYS_kcmp, self, self, KCMP_FILE, a, b);
  if (order == 0) return 0;
  if (order == 1) return -1;
  if (order == 2) return 1;
  return errno_status(order < 0 ? errno : EINVAL,
                      fmt::format("kcmp({}, {}, KCMP_FILE, {}, {})", self, self, a, b));
}

}  // namespace

absl::StatusOr<std::optional<size_t>> FileOrder::find_or_add(int fd, size_t index,
                                                             std::optional<uint32_t> rank) {
  size_t low = 0;
  size_t high = files_.size();
  // First where it was, then just below: with a right hint these two settle it.
  size_t probe = high / 2;
  if (rank)
    probe =
        static_cast<size_t>(std::lower_bound(ranks_.begin(), ranks_.end(), *rank) - ranks_.begin());
  bool below = rank.has_value();
  while (low < high) {
    const size_t middle = std::min(probe, high - 1);
    GW_ASSIGN_OR_RETURN(const int order, compare(fd, files_[middle].fd));
    if (order == 0) return files_[middle].index;
    if (order < 0)
      high = middle;
    else
      low = middle + 1;
    probe = below && high > low ? high - 1 : low + (high - low) / 2;
    below = false;
  }
  const auto at = static_cast<std::ptrdiff_t>(low);
  const uint32_t at_least = low == 0 ? 0 : ranks_[low - 1];
  const uint32_t at_most = low == ranks_.size() ? UINT32_MAX : ranks_[low];
  files_.insert(files_.begin() + at, {fd, index});
  ranks_.insert(ranks_.begin() + at, std::clamp(rank.value_or(at_least), at_least, at_most));
  return std::optional<size_t>();
}

}  // namespace godwit::resource
