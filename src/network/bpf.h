// What a gate and an option watch need of bpf(2) besides kernel/bpf.h. TCX links are from Linux
// 6.6; the system's headers know neither them nor their numbers.
#ifndef GODWIT_NETWORK_BPF_H_
#define GODWIT_NETWORK_BPF_H_

#include <linux/bpf.h>

#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/unique_fd.h"
#include "kernel/bpf.h"
#include "kernel/bpf_instructions.h"

namespace godwit::network::bpf {
using namespace kernel::bpf;

// include/uapi/linux/bpf.h, enum bpf_attach_type (6.6).
inline constexpr uint32_t kTcxIngress = 46;
inline constexpr uint32_t kTcxEgress = 47;
// enum tcx_action_base: "next" leaves the verdict to whoever else is attached.
inline constexpr int32_t kTcxNext = -1;
inline constexpr int32_t kTcxDrop = 2;

// Loads a BPF_PROG_TYPE_SCHED_CLS program. On refusal the error has the verifier's words.
absl::StatusOr<UniqueFd> load_classifier(const char* name, std::span<const bpf_insn> program);

// Where a program counts what a cgroup's tasks or sockets do (include/uapi/linux/bpf.h).
struct CgroupHook {
  bpf_prog_type program;
  bpf_attach_type attach;
};
inline constexpr CgroupHook kSetsockopt{BPF_PROG_TYPE_CGROUP_SOCKOPT, BPF_CGROUP_SETSOCKOPT};
absl::StatusOr<UniqueFd> load(const CgroupHook& hook, const char* name,
                              std::span<const bpf_insn> program);
// By a link: it ends with its last descriptor.
absl::StatusOr<UniqueFd> attach_cgroup(int program, int cgroup, const CgroupHook& hook);

absl::StatusOr<UniqueFd> attach_tcx(int program, int ifindex, uint32_t where);
// ifindex of the device that a TCX link is attached to; 0 when that device is gone.
absl::StatusOr<int> tcx_link_ifindex(int link);
absl::Status pin(int object, const std::string& path);
absl::StatusOr<UniqueFd> open_pinned(const std::string& path);  // kNotFound when there is none

// Makes `folder` (one level) and mounts a bpffs on it unless it is one already.
absl::Status mount_bpffs(const std::string& folder);
// Takes away an empty bpffs and its folder. In use, or none there: left alone, OK.
absl::Status unmount_bpffs_if_empty(const std::string& folder);

}  // namespace godwit::network::bpf

#endif  // GODWIT_NETWORK_BPF_H_
