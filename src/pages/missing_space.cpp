#include "pages/missing_space.h"

#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>

#include "base/status.h"

namespace godwit::pages {
namespace {

void append(std::string& to, const void* bytes, size_t size) {
  to.append(static_cast<const char*>(bytes), size);
}

}  // namespace

std::string encode_missing(std::span<const MissingSpace> spaces) {
  std::string bytes;
  for (const MissingSpace& space : spaces) {
    const std::array<uint64_t, 3> head = {space.id, static_cast<uint64_t>(space.pid.value),
                                          space.missing.ranges().size()};
    append(bytes, head.data(), sizeof head);
    append(bytes, space.missing.ranges().data(), space.missing.ranges().size_bytes());
  }
  return bytes;
}

absl::StatusOr<std::vector<MissingSpace>> decode_missing(std::string_view bytes) {
  const auto damaged = [] { return absl::DataLossError("what is missing: not valid"); };
  std::vector<MissingSpace> spaces;
  while (!bytes.empty()) {
    std::array<uint64_t, 3> head{};
    if (bytes.size() < sizeof head) return damaged();
    std::memcpy(head.data(), bytes.data(), sizeof head);
    bytes.remove_prefix(sizeof head);
    if (head[1] > INT32_MAX || head[2] > bytes.size() / sizeof(PageRange)) return damaged();
    MissingSpace& space = spaces.emplace_back();
    space.id = head[0];
    space.pid = HostPid{static_cast<pid_t>(head[1])};
    for (uint64_t i = 0; i < head[2]; ++i) {
      PageRange range;
      std::memcpy(&range, bytes.data() + i * sizeof range, sizeof range);
      if (range.start >= range.end || (range.start | range.end) % kPageSize != 0) return damaged();
      space.missing.add(range);
    }
    bytes.remove_prefix(head[2] * sizeof(PageRange));
  }
  return spaces;
}

absl::StatusOr<UniqueFd> write_missing(std::span<const MissingSpace> spaces) {
  UniqueFd file(::memfd_create("missing", MFD_CLOEXEC));
  if (!file) return errno_status(errno, "memfd_create(missing)");
  const std::string bytes = encode_missing(spaces);
  for (size_t at = 0; at < bytes.size();) {
    const ssize_t n =
        ::pwrite(file.get(), bytes.data() + at, bytes.size() - at, static_cast<off_t>(at));
    if (n <= 0) return errno_status(errno, "pwrite(missing)");
    at += static_cast<size_t>(n);
  }
  return file;
}

absl::StatusOr<std::vector<MissingSpace>> read_missing(int fd) {
  struct stat found {};
  if (::fstat(fd, &found) != 0) return errno_status(errno, "fstat(missing)");
  std::string bytes(static_cast<size_t>(found.st_size), '\0');
  for (size_t at = 0; at < bytes.size();) {
    const ssize_t n = ::pread(fd, bytes.data() + at, bytes.size() - at, static_cast<off_t>(at));
    if (n <= 0) return errno_status(n < 0 ? errno : EIO, "pread(missing)");
    at += static_cast<size_t>(n);
  }
  return decode_missing(bytes);
}

}  // namespace godwit::pages
