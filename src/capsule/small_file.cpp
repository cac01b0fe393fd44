#include "capsule/small_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>

#include "base/status.h"
#include "kernel/syscalls.h"

namespace godwit::capsule {

absl::Status write_small_file(const std::string& path, std::string_view bytes) {
  const std::string beside = fmt::format("{}.{}", path, ::getpid());
  {
    GW_ASSIGN_OR_RETURN(const UniqueFd fd,
                        kernel::open(beside, O_WRONLY | O_CREAT | O_TRUNC, 0600));
    const ssize_t n = ::write(fd.get(), bytes.data(), bytes.size());
    if (n != static_cast<ssize_t>(bytes.size())) {
      const int error = n < 0 ? errno : ENOSPC;
      ::unlink(beside.c_str());
      return errno_status(error, fmt::format("write(\"{}\")", beside));
    }
  }
  if (::rename(beside.c_str(), path.c_str()) != 0) {
    const int error = errno;
    ::unlink(beside.c_str());
    return errno_status(error, fmt::format("rename(\"{}\")", beside));
  }
  return absl::OkStatus();
}

}  // namespace godwit::capsule
