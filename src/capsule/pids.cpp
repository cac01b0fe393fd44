#include "capsule/pids.h"

#include <charconv>
#include <string>
#include <string_view>

#include "base/status.h"
#include "kernel/syscalls.h"

namespace godwit::capsule {
namespace {

// The last number of the line that starts with `key`; -1 if there is none.
int last_number(std::string_view text, std::string_view key) {
  const size_t at = text.find(key);
  if (at == std::string_view::npos) return -1;
  std::string_view line = text.substr(at + key.size());
  line = line.substr(0, line.find('\n'));
  const size_t start = line.find_last_of(" \t:");
  if (start != std::string_view::npos) line.remove_prefix(start + 1);
  int value = -1;
  std::from_chars(line.data(), line.data() + line.size(), value);
  return value;
}

}  // namespace

absl::StatusOr<HostPid> pid_of_pidfd(int pidfd) {
  GW_ASSIGN_OR_RETURN(const std::string text,
                      kernel::read_file(fmt::format("/proc/self/fdinfo/{}", pidfd)));
  const int pid = last_number(text, "\nPid:");
  // -1: it has ended; 0: it is in no namespace that we see.
  if (pid > 0) return HostPid{pid};
  return errno_status(ESRCH, fmt::format("pidfd {}", pidfd));
}

absl::StatusOr<ImagePid> image_pid_of(HostPid pid) {
  GW_ASSIGN_OR_RETURN(const std::string text,
                      kernel::read_file(fmt::format("/proc/{}/status", pid.value)));
  const int image = last_number(text, "\nNSpid:");
  if (image > 0) return ImagePid{image};
  return errno_status(ESRCH, fmt::format("/proc/{}/status", pid.value));
}

absl::StatusOr<HostPid> find_image_pid(const std::vector<HostPid>& candidates, ImagePid wanted) {
  for (const HostPid pid : candidates) {
    const auto image = image_pid_of(pid);
    if (image.ok() && *image == wanted) return pid;
  }
  return make_error(absl::StatusCode::kNotFound, "no process {} in the capsule", wanted.value);
}

}  // namespace godwit::capsule
