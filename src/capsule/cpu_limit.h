// A limit of the CPU time of a service's processes, for the time of a move's rounds.
//
//   cgroup v2   cpu.max of the service's own `work` group, where the controller is there
//               (Documentation/admin-guide/cgroup-v2.rst)
//   cgroup v1   cpu.cfs_quota_us of a group below the one that the processes are in, made for it;
//               they go back when the limit is lifted (Documentation/scheduler/sched-bwc.rst)
//
// No state of its own: whoever finds a service limited can lift it.
#ifndef GODWIT_CAPSULE_CPU_LIMIT_H_
#define GODWIT_CAPSULE_CPU_LIMIT_H_

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "capsule/cgroup.h"

namespace godwit::capsule {

class CpuLimit {
 public:
  // `work`: the group of the service's processes; `name`: unique on this machine.
  // kFailedPrecondition says what is missing.
  static absl::StatusOr<CpuLimit> find(const Cgroup& work, std::string_view name);

  // Of all its processes together: `cpus` may be a fraction.
  absl::Status set(double cpus) const;
  // They run as fast as ever, at once. What set() has made stays for lift().
  absl::Status release() const;
  // They are where they were before. Idempotent, also after a set() that failed half-way.
  absl::Status lift() const;
  // CPU time of the processes that live, in nanoseconds.
  absl::StatusOr<int64_t> used_ns() const;

 private:
  CpuLimit(Cgroup work, std::string max, std::string group)
      : work_(std::move(work)), max_(std::move(max)), group_(std::move(group)) {}
  absl::Status gather(const std::string& from, const std::string& to) const;

  Cgroup work_;
  std::string max_;    // v2: cpu.max
  std::string group_;  // v1: the folder of the group that is made
};

}  // namespace godwit::capsule

#endif  // GODWIT_CAPSULE_CPU_LIMIT_H_
