// capget(2) takes the id of any task and asks for no privilege.
#ifndef GODWIT_RESOURCE_CREDENTIALS_CAPABILITIES_H_
#define GODWIT_RESOURCE_CREDENTIALS_CAPABILITIES_H_

#include <linux/capability.h>

#include <cstdint>

#include "absl/status/statusor.h"
#include "base/ids.h"

namespace godwit::resource {

// Those this was built with (41 since Linux 5.9); the sets have room for 64.
constexpr int kCapabilities = CAP_LAST_CAP + 1;
constexpr uint64_t capability_bit(int capability) { return uint64_t{1} << capability; }

struct CapabilitySets {
  uint64_t effective = 0;
  uint64_t permitted = 0;
  uint64_t inheritable = 0;
};

absl::StatusOr<CapabilitySets> capabilities_of(HostPid task);

// As capset(2) takes them.
struct KernelCapabilities {
  __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};  // 0: the caller
  __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3]{};
};
void set_capabilities(KernelCapabilities& kernel, const CapabilitySets& sets);

}  // namespace godwit::resource

#endif  // GODWIT_RESOURCE_CREDENTIALS_CAPABILITIES_H_
