// /proc/PID/timens_offsets (time_namespaces(7), Linux 5.6): how far the clocks of the time
// namespace that a process gives to its children are from those of this machine.
#ifndef GODWIT_KERNEL_PROC_TIMENS_H_
#define GODWIT_KERNEL_PROC_TIMENS_H_

#include <cstdint>
#include <string_view>

#include "absl/status/statusor.h"
#include "base/ids.h"

namespace godwit::kernel {

// clock inside = clock here + offset.
struct TimeOffsets {
  int64_t monotonic_ns = 0;
  int64_t boottime_ns = 0;
};

absl::StatusOr<TimeOffsets> parse_time_offsets(std::string_view text);
absl::StatusOr<TimeOffsets> read_time_offsets(HostPid pid);

}  // namespace godwit::kernel

#endif  // GODWIT_KERNEL_PROC_TIMENS_H_
