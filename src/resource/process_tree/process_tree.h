// Who is whose child, in which session and process group, with which threads.
//
// Facts: /proc/PID/status gives NSpid, NSpgid and NSsid (proc_pid_status(5)); a zombie keeps its
// numbers until it is reaped; cgroup.procs does not list zombies (cgroups(7)), so they are found in
// the capsule's own /proc. Sessions and groups outlive their leaders (setsid(2), setpgid(2)):
// to be born into one, a process must be forked by a member. So it is with a session's controlling
// terminal: its leader takes it, others are born with it.
#ifndef GODWIT_RESOURCE_PROCESS_TREE_PROCESS_TREE_H_
#define GODWIT_RESOURCE_PROCESS_TREE_PROCESS_TREE_H_

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/ids.h"
#include "base/unique_fd.h"
#include "resource/process_tree/process_tree.pb.h"

namespace godwit::resource {

// A task of the tree with both its numbers.
struct TreeTask {
  ImagePid tid;
  HostPid host_tid;
};
struct TreeProcess {
  ImagePid pid;
  HostPid host_pid;
  bool zombie = false;
  std::string comm;
  std::vector<TreeTask> tasks;  // leader first; empty for a zombie
};
struct ProcessTree {
  ProcessTreeState state;
  std::vector<TreeProcess> processes;  // in the order of state.processes
};

// Translates pids of this machine into the capsule's: ioctl NS_GET_PID_IN_PIDNS (Linux 6.11) on
// the capsule's pid namespace, else NSpid of /proc/PID/status.
class PidTranslator {
 public:
  static absl::StatusOr<PidTranslator> of(HostPid init);
  absl::StatusOr<ImagePid> operator()(HostPid tid) const;
  // The number here of the capsule's `pid`; 0 if there is none (or before Linux 6.11).
  HostPid back(ImagePid pid) const;

 private:
  explicit PidTranslator(int fd) : namespace_(fd) {}
  UniqueFd namespace_;
};

// `members`: thread group leaders of the service (of its cgroup), in any order; `init`: pid 1 of
// the capsule, not part of the tree. While the program runs the result is a snapshot that may be
// torn: a process that ends meanwhile is left out.
absl::StatusOr<ProcessTree> capture_process_tree(std::span<const HostPid> members, HostPid init,
                                                 const PidTranslator& translate);

// How to build a tree, as steps for the replica. Pids of ghosts (helpers that exist only while
// the tree is built, as leaders of sessions and groups that have lost theirs) are marked.
struct TreeStep {
  enum class Kind {
    kInvalid,
    kFork,      // `pid` is forked by `by` (1: init) with `exit_signal`
    kSetsid,    // by `pid`
    kTerminal,  // `pid`, a session's leader, takes `terminal`
    kSetpgid,   // `pid` joins `group`
    kExit,      // `pid` exits (ghosts: status 0; zombies: their wait status), stays a zombie
    kReap,      // `by` waits for `pid`, a ghost
  };
  Kind kind = Kind::kInvalid;
  int32_t pid = 0;
  int32_t by = 0;
  int32_t group = 0;
  int32_t exit_signal = 0;
  int32_t wait_status = 0;
  bool ghost = false;
  // kExit, of a zombie: its comm.
  std::string name = {};
  // kFork: by a helper that `by` forks and that ends at once, so that init inherits `pid`.
  bool through_helper = false;
  uint32_t terminal = 0;  // kTerminal: its index, and 1
};

// Steps for those of `wanted` that are not there yet: `existing` are pids that live, with their
// final session and group, `ended` zombies. One that lives and is a zombie in `wanted` ends.
// kInvalidArgument for a tree that no sequence of forks can make, with why.
absl::StatusOr<std::vector<TreeStep>> plan_process_tree(const ProcessTreeState& wanted,
                                                        std::span<const int32_t> existing,
                                                        std::span<const int32_t> ended = {});

}  // namespace godwit::resource

#endif  // GODWIT_RESOURCE_PROCESS_TREE_PROCESS_TREE_H_
