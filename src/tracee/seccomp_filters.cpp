#include "tracee/seccomp_filters.h"

#include <sys/ptrace.h>

#include <cerrno>

#include "base/status.h"
#include "tracee/task.h"

namespace godwit::tracee {
namespace {

// SECCOMP_FILTER_FLAG_LOG is all that the kernel tells (seccomp_get_metadata(), kernel/seccomp.c).
absl::StatusOr<bool> logs(HostPid tid, uint64_t index) {
  __ptrace_seccomp_metadata data{.filter_off = index, .flags = 0};
  if (::ptrace(static_cast<__ptrace_request>(PTRACE_SECCOMP_GET_METADATA), tid.value, sizeof data,
               &data) < 0)
    return errno_status(errno, fmt::format("ptrace(PTRACE_SECCOMP_GET_METADATA, {})", tid.value));
  constexpr uint64_t kLog = 2;
  return (data.flags & kLog) != 0;
}

}  // namespace

absl::StatusOr<std::vector<SeccompFilter>> seccomp_filters(HostPid tid) {
  const auto get = [tid](uint64_t index, sock_filter* code) {
    return ::ptrace(static_cast<__ptrace_request>(PTRACE_SECCOMP_GET_FILTER), tid.value, index,
                    code);
  };
  std::vector<SeccompFilter> filters;
  for (uint64_t index = 0;; ++index) {
    // Without a buffer it gives the number of instructions.
    const long length = get(index, nullptr);
    if (length < 0) {
      // ENOENT: there are no more; EINVAL: it is not in filter mode (get_nth_filter()).
      if (errno == ENOENT || (errno == EINVAL && index == 0)) return filters;
      return errno_status(
          errno, fmt::format("ptrace(PTRACE_SECCOMP_GET_FILTER, {}, {})", tid.value, index));
    }
    SeccompFilter& filter = filters.emplace_back();
    filter.code.resize(static_cast<size_t>(length));
    if (get(index, filter.code.data()) != length)
      return errno_status(
          errno, fmt::format("ptrace(PTRACE_SECCOMP_GET_FILTER, {}, {})", tid.value, index));
    GW_ASSIGN_OR_RETURN(filter.log, logs(tid, index));
  }
}

}  // namespace godwit::tracee
