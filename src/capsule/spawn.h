// How pid 1 of a capsule makes processes: clone3(2) with CLONE_INTO_CGROUP (Linux 5.7), so that a
// child is never outside the cgroup `work`, and CLONE_PIDFD (5.2).
#ifndef GODWIT_CAPSULE_SPAWN_H_
#define GODWIT_CAPSULE_SPAWN_H_

#include <sys/types.h>

#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/ids.h"
#include "base/unique_fd.h"
#include "capsule/shim.pb.h"

namespace godwit::capsule {

struct Spawned {
  ImagePid pid;
  UniqueFd pidfd;
  UniqueFd tty_master;  // with tty
};

struct Stdio {
  int fd[3] = {-1, -1, -1};  // -1: the capsule's /dev/null
};

// Starts a program as its own session. Without PATH or HOME in `env` Debian's path and the user's
// home are added. When it cannot be started, the status says at which step and why, and
// `exit_code` is what a shell would give: 127 not found, 126 otherwise. Returns after exec.
absl::StatusOr<Spawned> spawn_program(const ExecSpec& program, const Stdio& stdio, int work_cgroup,
                                      int& exit_code);

// A process with pid `pid` that has nothing but `comm`, at number `comm_fd`: default signal
// handling, empty signal mask, every other descriptor closed. It waits in pause(2) for ever.
absl::StatusOr<Spawned> spawn_husk(ImagePid pid, const UniqueFd& comm, int comm_fd,
                                   int work_cgroup);

}  // namespace godwit::capsule

#endif  // GODWIT_CAPSULE_SPAWN_H_
