// /proc/PID/limits (proc(5), Linux 6.18). prlimit(2) on a task of another uid needs
// CAP_SYS_RESOURCE; reading this file does not.
#ifndef GODWIT_KERNEL_PROC_LIMITS_H_
#define GODWIT_KERNEL_PROC_LIMITS_H_

#include <sys/resource.h>

#include <array>
#include <string_view>

#include "absl/status/statusor.h"
#include "base/ids.h"

namespace godwit::kernel {

// Indexed by RLIMIT_x; "unlimited" is RLIM_INFINITY.
using Limits = std::array<rlimit, RLIM_NLIMITS>;

absl::StatusOr<Limits> parse_limits(std::string_view text);
absl::StatusOr<Limits> read_limits(HostPid pid);

}  // namespace godwit::kernel

#endif  // GODWIT_KERNEL_PROC_LIMITS_H_
