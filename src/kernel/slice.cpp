#include "kernel/slice.h"

#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>

namespace godwit::kernel {
namespace {

// include/uapi/linux/sched/types.h, SCHED_ATTR_SIZE_VER0: glibc 2.36 has none.
struct Attributes {
  uint32_t size;
  uint32_t policy;
  uint64_t flags;
  int32_t nice;
  uint32_t priority;
  uint64_t runtime;
  uint64_t deadline;
  uint64_t period;
};
static_assert(sizeof(Attributes) == 48);

}  // namespace

absl::Duration default_slice() {
  // A slice of 0 asks for the default one, and shows as that.
  static const absl::Duration slice = [] {
    const absl::Duration before = set_slice(0, absl::ZeroDuration());
    if (before == absl::ZeroDuration()) return before;
    return set_slice(0, before);
  }();
  return slice;
}

absl::Duration set_slice(pid_t tid, absl::Duration slice) {
  Attributes attributes{};
  if (::syscall(SYS_sched_getattr, tid, &attributes, sizeof attributes, 0) != 0) return {};
  if (attributes.policy != SCHED_OTHER && attributes.policy != SCHED_BATCH) return {};
  const absl::Duration before = absl::Nanoseconds(attributes.runtime);
  attributes.runtime = static_cast<uint64_t>(absl::ToInt64Nanoseconds(slice));
  attributes.flags = 0;
  (void)::syscall(SYS_sched_setattr, tid, &attributes, 0);
  return before;
}

}  // namespace godwit::kernel
