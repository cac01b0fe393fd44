#include "migration/image_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>
#include <filesystem>

#include "base/status.h"

namespace godwit::migration {

std::string partial_image(const std::string& path) { return path + ".partial"; }

absl::StatusOr<UniqueFd> create_image(const std::string& partial) {
  UniqueFd fd(::open(partial.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
  if (!fd) return errno_status(errno, fmt::format("open({}, O_CREAT)", partial));
  return fd;
}

absl::Status sync_image(int fd, const std::string& partial) {
  return ::fsync(fd) != 0 ? errno_status(errno, fmt::format("fsync({})", partial))
                          : absl::OkStatus();
}

absl::Status publish_image(const std::string& partial, const std::string& path) {
  if (::rename(partial.c_str(), path.c_str()) != 0)
    return errno_status(errno, fmt::format("rename({}, {})", partial, path));
  const std::string dir = std::filesystem::path(path).parent_path().string();
  UniqueFd parent(::open(dir.empty() ? "." : dir.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!parent || ::fsync(parent.get()) != 0)
    return errno_status(errno, fmt::format("fsync({})", dir));
  return absl::OkStatus();
}

}  // namespace godwit::migration
