#include "kernel/slice.h"

#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>

#include "kernel/abi/sched_attr.h"

namespace godwit::kernel {
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
  abi::SchedAttr attributes{};
  if (::syscall(SYS_sched_getattr, tid, &attributes, sizeof attributes, 0) != 0) return {};
  if (attributes.policy != SCHED_OTHER && attributes.policy != SCHED_BATCH) return {};
  const absl::Duration before = absl::Nanoseconds(attributes.runtime);
  attributes.runtime = static_cast<uint64_t>(absl::ToInt64Nanoseconds(slice));
  attributes.flags = 0;
  (void)::syscall(SYS_sched_setattr, tid, &attributes, 0);
  return before;
}

}  // namespace godwit::kernel
