// What this kernel can do, found out by doing it: a version number says little about a kernel that
// a distribution has patched or configured, and some switches lie (writing 4 to clear_refs succeeds
// where soft-dirty is not built in).
#ifndef GODWIT_KERNEL_FEATURES_H_
#define GODWIT_KERNEL_FEATURES_H_

#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace godwit::kernel {

struct Feature {
  bool present = false;
  // Why not, and from which kernel or with which setting it would be; empty if present.
  std::string missing;
  explicit operator bool() const { return present; }
};

// The result is passed down to those who need it; nobody keeps one for all.
struct Features {
  Feature pagemap_scan;    // 6.7
  Feature uffd_wp_async;   // 6.7: a page was protected, written and seen as written
  Feature uffd_move;       // 6.8
  Feature uffd_poison;     // 6.6
  Feature soft_dirty;      // a page was cleared, written and seen as dirty
  Feature clone3_set_tid;  // 5.5
  Feature pidfd_getfd;     // 5.6
  Feature kcmp;
  Feature time_namespaces;     // 5.6
  Feature cgroup_freeze;       // 5.2: v2's cgroup.freeze and cgroup.kill (5.14)
  Feature tcp_repair;          // 3.5
  Feature tcx;                 // 6.6
  Feature rseq_configuration;  // 5.13: PTRACE_GET_RSEQ_CONFIGURATION
  Feature anon_vma_name;       // 5.17
  Feature timerfd_set_ticks;   // 3.17 with CONFIG_CHECKPOINT_RESTORE
  Feature prctl_mm_map;        // 3.18 with CONFIG_CHECKPOINT_RESTORE

  std::string cgroup2_mount;  // "/sys/fs/cgroup/unified"; empty if there is none

  // Every feature with its name, in the order above.
  std::vector<std::pair<std::string_view, const Feature*>> all() const;
};

// Takes a few milliseconds (tcx loads a BPF program). Leaves nothing behind.
Features probe_features();

}  // namespace godwit::kernel

#endif  // GODWIT_KERNEL_FEATURES_H_
