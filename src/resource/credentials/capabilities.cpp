#include "resource/credentials/capabilities.h"

#include <sys/syscall.h>
#include <unistd.h>

#include "base/status.h"

namespace godwit::resource {

absl::StatusOr<CapabilitySets> capabilities_of(HostPid task) {
  KernelCapabilities kernel;
  kernel.header.pid = task.value;
  if (::syscall(SYS_capget, &kernel.header, kernel.data) != 0)
    return errno_status(errno, fmt::format("capget({})", task.value));
  const auto both = [&](uint32_t __user_cap_data_struct::*field) {
    return uint64_t{kernel.data[1].*field} << 32 | kernel.data[0].*field;
  };
  return CapabilitySets{.effective = both(&__user_cap_data_struct::effective),
                        .permitted = both(&__user_cap_data_struct::permitted),
                        .inheritable = both(&__user_cap_data_struct::inheritable)};
}

void set_capabilities(KernelCapabilities& kernel, const CapabilitySets& sets) {
  const auto both = [&](uint32_t __user_cap_data_struct::*field, uint64_t set) {
    kernel.data[0].*field = static_cast<uint32_t>(set);
    kernel.data[1].*field = static_cast<uint32_t>(set >> 32);
  };
  both(&__user_cap_data_struct::effective, sets.effective);
  both(&__user_cap_data_struct::permitted, sets.permitted);
  both(&__user_cap_data_struct::inheritable, sets.inheritable);
}

}  // namespace godwit::resource
