// The capsule's place in the cgroup v2 hierarchy (Documentation/admin-guide/cgroup-v2.rst). Only
// the core files are used (cgroup.procs, .freeze since 5.2, .kill since 5.14), so a unified
// hierarchy without controllers beside v1 will do.
//
//   <mount>/godwit/<node>/<service>/  shim   the shim
//                                     init   pid 1
//                                     work   everything of the service: the only one frozen
#ifndef GODWIT_CAPSULE_CGROUP_H_
#define GODWIT_CAPSULE_CGROUP_H_

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/clock.h"
#include "base/ids.h"
#include "base/unique_fd.h"

namespace godwit::capsule {

// Mount point of the cgroup2 hierarchy, from /proc/self/mountinfo.
absl::StatusOr<std::string> cgroup2_mount();

// One cgroup of ours, by path. No state of its own; any process may hold one.
class Cgroup {
 public:
  explicit Cgroup(std::string path) : path_(std::move(path)) {}
  const std::string& path() const { return path_; }
  Cgroup child(std::string_view name) const { return Cgroup(path_ + "/" + std::string(name)); }

  absl::Status create() const;  // with parents; fine if it is there
  bool exists() const;
  absl::StatusOr<UniqueFd> open() const;  // O_DIRECTORY | O_CLOEXEC, for CLONE_INTO_CGROUP
  absl::Status add(HostPid pid) const;

  // Writes cgroup.freeze and returns: tasks that run stop within 0.1-4 ms, ptrace-stopped ones
  // count as frozen at once.
  absl::Status request_freeze() const;
  // request_freeze() and waits for "frozen 1" in cgroup.events. When the deadline passes the
  // freeze is taken back.
  absl::Status freeze(Deadline deadline) const;
  absl::Status wait_frozen(bool frozen, Deadline deadline) const;
  absl::StatusOr<bool> frozen() const;
  absl::Status thaw() const;  // does not wait; fine if it is not frozen

  // SIGKILL to every process in it and below, frozen or not, against forks too.
  absl::Status kill() const;
  absl::StatusOr<std::vector<HostPid>> processes() const;
  absl::StatusOr<std::vector<HostPid>> threads() const;
  // Waits for "populated 0": zombies that nobody has reaped do not count.
  absl::Status wait_empty(Deadline deadline) const;
  // rmdir, children first; waits until they are empty. Fine if it is not there.
  absl::Status remove(Deadline deadline) const;

 private:
  absl::Status wait_event(std::string_view line, Deadline deadline) const;
  absl::StatusOr<std::vector<HostPid>> read_pids(std::string_view file) const;
  std::string path_;
};

// The files that a freeze needs, kept open: to open one there takes 5-17 us.
class FreezeFiles {
 public:
  static absl::StatusOr<FreezeFiles> open(const Cgroup& cgroup);
  absl::Status request_freeze() const { return write("1"); }  // as Cgroup's
  absl::Status thaw() const { return write("0"); }
  absl::StatusOr<std::vector<HostPid>> processes() const;

 private:
  FreezeFiles(UniqueFd procs, UniqueFd freeze)
      : procs_(std::move(procs)), freeze_(std::move(freeze)) {}
  absl::Status write(std::string_view text) const;
  UniqueFd procs_;   // cgroup.procs
  UniqueFd freeze_;  // cgroup.freeze
};

absl::StatusOr<Cgroup> service_cgroup(std::string_view node, std::string_view service);

}  // namespace godwit::capsule

#endif  // GODWIT_CAPSULE_CGROUP_H_
