// struct sched_attr (include/uapi/linux/sched/types.h, Linux 5.3), which the C library does not
// have.
#ifndef GODWIT_RESOURCE_SCHEDULING_SCHED_ATTR_H_
#define GODWIT_RESOURCE_SCHEDULING_SCHED_ATTR_H_

#include <cstdint>

#include "absl/status/statusor.h"
#include "base/ids.h"

namespace godwit::resource {

struct SchedAttr {
  uint32_t size;
  uint32_t policy;
  uint64_t flags;
  int32_t nice;
  uint32_t priority;
  uint64_t runtime;
  uint64_t deadline;
  uint64_t period;
  uint32_t util_min;
  uint32_t util_max;
};
static_assert(sizeof(SchedAttr) == 56);

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
