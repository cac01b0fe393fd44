// struct sched_attr (include/uapi/linux/sched/types.h, Linux 5.3), which the C library does not
// have.
#ifndef GODWIT_KERNEL_ABI_SCHED_ATTR_H_
#define GODWIT_KERNEL_ABI_SCHED_ATTR_H_

#include <cstdint>

namespace godwit::kernel::abi {

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

}  // namespace godwit::kernel::abi

#endif  // GODWIT_KERNEL_ABI_SCHED_ATTR_H_
