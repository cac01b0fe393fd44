// Scheduling policies and I/O priorities of tasks.
#ifndef GODWIT_RESOURCE_SCHEDULING_SCHED_ATTR_H_
#define GODWIT_RESOURCE_SCHEDULING_SCHED_ATTR_H_

#include <cstdint>

#include "absl/status/statusor.h"
#include "base/ids.h"
#include "kernel/abi/sched_attr.h"

namespace godwit::resource {

using kernel::abi::SchedAttr;

constexpr uint32_t kSchedNormal = 0;
constexpr uint32_t kSchedFifo = 1;
constexpr uint32_t kSchedRr = 2;
constexpr uint32_t kSchedDeadline = 6;
constexpr uint64_t kSchedFlagUtilClamp = 0x20 | 0x40;  // SCHED_FLAG_UTIL_CLAMP_MIN, _MAX

// ioprio_get(2), ioprio_set(2): the id is a tid.
constexpr int kIoprioWhoProcess = 1;

absl::StatusOr<SchedAttr> sched_getattr(HostPid task);

}  // namespace godwit::resource

#endif  // GODWIT_RESOURCE_SCHEDULING_SCHED_ATTR_H_
