// TCX: BPF programs on a network device's ingress and egress as links (<linux/bpf.h> of Linux 6.6).
#ifndef GODWIT_KERNEL_ABI_TCX_H_
#define GODWIT_KERNEL_ABI_TCX_H_

#include <linux/bpf.h>

#include <cstddef>
#include <cstdint>

namespace godwit::kernel::abi {

// enum bpf_attach_type
inline constexpr uint32_t kBpfTcxIngress = 46;
inline constexpr uint32_t kBpfTcxEgress = 47;

// Verdicts (enum tcx_action_base).
inline constexpr int kTcxNext = -1;  // go on with the next program
inline constexpr int kTcxPass = 0;
inline constexpr int kTcxDrop = 2;
inline constexpr int kTcxRedirect = 7;

// union bpf_attr, member link_create with its tcx part, for bpf(BPF_LINK_CREATE).
struct BpfTcxLinkCreate {
  uint32_t prog_fd;
  uint32_t target_ifindex;
  uint32_t attach_type;
  uint32_t flags;
  uint32_t relative_fd;  // with BPF_F_BEFORE and BPF_F_AFTER
  uint32_t padding;
  uint64_t expected_revision;  // 0: any
};
static_assert(sizeof(BpfTcxLinkCreate) == 32 &&
              offsetof(BpfTcxLinkCreate, expected_revision) == 24);
static_assert(offsetof(bpf_attr, link_create.flags) == offsetof(BpfTcxLinkCreate, flags));
static_assert(BPF_LINK_CREATE == 28);

}  // namespace godwit::kernel::abi

#endif  // GODWIT_KERNEL_ABI_TCX_H_
