// /proc/PID/mountinfo (proc_pid_mountinfo(5), Linux 2.6.26): the mounts that a process sees below
// its root.
#ifndef GODWIT_KERNEL_PROC_MOUNTINFO_H_
#define GODWIT_KERNEL_PROC_MOUNTINFO_H_

#include <sys/types.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "base/ids.h"

namespace godwit::kernel {

struct Mount {
  int32_t id = 0;
  int32_t parent = 0;
  dev_t dev = 0;
  std::string root;      // the part of the file system that is mounted
  std::string point;     // relative to that process's root
  std::string options;   // of the mount: "rw,relatime"
  std::string optional;  // "shared:1 master:2", may be empty
  std::string type;
  std::string source;
  std::string super_options;  // of the file system: "rw,lowerdir=..."

  bool has_super_option(std::string_view name) const;
};

absl::StatusOr<std::vector<Mount>> parse_mountinfo(std::string_view text);
absl::StatusOr<std::vector<Mount>> read_mountinfo(HostPid pid);

// Where the cgroup v2 hierarchy is mounted: /sys/fs/cgroup, or /sys/fs/cgroup/unified beside v1.
// Of several the one that shows the hierarchy's root, the shortest path first. kNotFound if none.
absl::StatusOr<std::string> find_cgroup2_mount(const std::vector<Mount>& mounts);

// The v2 path of a process from /proc/PID/cgroup ("0::/a/b"), relative to the reader's cgroup
// namespace.
absl::StatusOr<std::string> parse_cgroup2_path(std::string_view text);
absl::StatusOr<std::string> read_cgroup2_path(HostPid pid);

}  // namespace godwit::kernel

#endif  // GODWIT_KERNEL_PROC_MOUNTINFO_H_
