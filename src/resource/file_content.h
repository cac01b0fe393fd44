// Content of a file that exists nowhere but in memory or without a name, as extents without its
// holes (lseek(2), SEEK_DATA).
#ifndef GODWIT_RESOURCE_FILE_CONTENT_H_
#define GODWIT_RESOURCE_FILE_CONTENT_H_

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <string>

#include "base/status.h"
#include "resource/file_description.h"

namespace godwit::resource {

// What a state may carry; all of it is in memory at once.
inline constexpr uint64_t kMaxContentBytes = uint64_t{64} << 20;

// Adds the extents of `fd`, a readable descriptor whose offset nobody else uses, to `message`.
template <typename Message>
absl::Status read_extents(int fd, uint64_t size, Message& message) {
  uint64_t total = 0;
  for (off_t at = 0;;) {
    at = ::lseek(fd, at, SEEK_DATA);
    if (at < 0 && errno == ENXIO) return absl::OkStatus();
    if (at < 0) return errno_status(errno, fmt::format("lseek({}, SEEK_DATA)", fd));
    const off_t end = ::lseek(fd, at, SEEK_HOLE);
    if (end < 0) return errno_status(errno, fmt::format("lseek({}, SEEK_HOLE)", fd));
    const uint64_t last = std::min(static_cast<uint64_t>(end), size);
    if (static_cast<uint64_t>(at) >= last) return absl::OkStatus();
    const uint64_t length = last - static_cast<uint64_t>(at);
    total += length;
    if (total > kMaxContentBytes) {
      return make_error(absl::StatusCode::kFailedPrecondition, "more than {} bytes of content",
                        kMaxContentBytes);
    }
    auto& extent = *message.add_extents();
    extent.set_offset(static_cast<uint64_t>(at));
    std::string& data = *extent.mutable_data();
    data.resize(length);
    size_t used = 0;
    while (used < length) {
      const ssize_t n =
          ::pread(fd, data.data() + used, length - used, at + static_cast<off_t>(used));
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) return errno_status(errno, fmt::format("pread({}, {} bytes)", fd, length));
      if (n == 0) break;  // cut short by a running program
      used += static_cast<size_t>(n);
    }
    data.resize(used);
    at = end;
  }
}

// Makes `fd`, a writable descriptor, have exactly the extents of `message` and `size`.
template <typename Message>
absl::Status write_extents(int fd, uint64_t size, const Message& message) {
  // Through 0: holes of before are holes again.
  if (::ftruncate(fd, 0) != 0 || ::ftruncate(fd, static_cast<off_t>(size)) != 0) {
    return errno_status(errno, fmt::format("ftruncate({}, {})", fd, size));
  }
  for (const auto& extent : message.extents()) {
    const std::string& data = extent.data();
    if (extent.offset() > size || data.size() > size - extent.offset()) {
      return make_error(absl::StatusCode::kDataLoss, "content of {} bytes at {} in a file of {}",
                        data.size(), extent.offset(), size);
    }
    for (size_t used = 0; used < data.size();) {
      const ssize_t n = ::pwrite(fd, data.data() + used, data.size() - used,
                                 static_cast<off_t>(extent.offset() + used));
      if (n < 0 && errno == EINTR) continue;
      if (n <= 0) return errno_status(n < 0 ? errno : EIO, fmt::format("pwrite({})", fd));
      used += static_cast<size_t>(n);
    }
  }
  return absl::OkStatus();
}

}  // namespace godwit::resource

#endif  // GODWIT_RESOURCE_FILE_CONTENT_H_
