#include "cli/lab_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>

#include "base/status.h"
#include "kernel/syscalls.h"

namespace godwit::cli {

absl::Status write_lab_file(const std::string& path, const std::string& text) {
  GW_ASSIGN_OR_RETURN(const UniqueFd fd,
                      kernel::open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
  if (::write(fd.get(), text.data(), text.size()) != static_cast<ssize_t>(text.size()))
    return errno_status(errno, fmt::format("write({})", path));
  return absl::OkStatus();
}

}  // namespace godwit::cli
