// From pids of the capsule to pids of this machine.
#ifndef GODWIT_CAPSULE_PIDS_H_
#define GODWIT_CAPSULE_PIDS_H_

#include <vector>

#include "absl/status/statusor.h"
#include "base/ids.h"

namespace godwit::capsule {

// "Pid:" of the pidfd's fdinfo, which is the pid in the namespace of the /proc that is read.
absl::StatusOr<HostPid> pid_of_pidfd(int pidfd);

// The pid in the innermost namespace: the last of NSpid in /proc/PID/status (Linux 4.1).
absl::StatusOr<ImagePid> image_pid_of(HostPid pid);

// Which of `candidates` has pid `wanted` in its own namespace; kNotFound if none.
absl::StatusOr<HostPid> find_image_pid(const std::vector<HostPid>& candidates, ImagePid wanted);

}  // namespace godwit::capsule

#endif  // GODWIT_CAPSULE_PIDS_H_
