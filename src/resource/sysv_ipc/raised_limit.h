// A limit of the caller's ipc namespace (proc_sys_kernel(5), mq_overview(7)), raised for as long as
// it lives: what a queue held when the limit was higher it cannot be given without
// CAP_SYS_RESOURCE.
#ifndef GODWIT_RESOURCE_SYSV_IPC_RAISED_LIMIT_H_
#define GODWIT_RESOURCE_SYSV_IPC_RAISED_LIMIT_H_

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cstdlib>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "base/status.h"
#include "kernel/syscalls.h"

namespace godwit::resource {

class RaisedLimit {
 public:
  static absl::StatusOr<RaisedLimit> at_least(std::string path, uint64_t value) {
    RaisedLimit limit;
    limit.path_ = std::move(path);
    GW_ASSIGN_OR_RETURN(const std::string before, kernel::read_file(limit.path_));
    if (std::strtoull(before.c_str(), nullptr, 10) >= value) return limit;
    GW_RETURN_IF_ERROR(limit.write(std::to_string(value)));
    limit.before_ = before;
    return limit;
  }
  RaisedLimit(RaisedLimit&& other) noexcept
      : path_(std::move(other.path_)), before_(std::exchange(other.before_, {})) {}
  RaisedLimit& operator=(RaisedLimit&&) = delete;
  ~RaisedLimit() {
    if (!before_.empty()) write(before_).IgnoreError();
  }

 private:
  RaisedLimit() = default;
  absl::Status write(const std::string& text) const {
    GW_ASSIGN_OR_RETURN(const UniqueFd fd, kernel::open(path_, O_WRONLY | O_CLOEXEC));
    if (::write(fd.get(), text.data(), text.size()) != static_cast<ssize_t>(text.size()))
      return errno_status(errno, fmt::format("write({}) to {}", text, path_));
    return absl::OkStatus();
  }
  std::string path_;
  std::string before_;  // empty: as it was
};

}  // namespace godwit::resource

#endif  // GODWIT_RESOURCE_SYSV_IPC_RAISED_LIMIT_H_
