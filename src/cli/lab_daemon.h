// One daemon of a lab: started in its node's network namespace, found again by its pid file.
#ifndef GODWIT_CLI_LAB_DAEMON_H_
#define GODWIT_CLI_LAB_DAEMON_H_

#include <sys/types.h>

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "base/clock.h"
#include "base/unique_fd.h"

namespace godwit::cli {

// The process that a pid file ("PID START_TICKS") names, if it still is that one.
UniqueFd open_by_pid_file(const std::string& path);
// As open_by_pid_file() reads it.
absl::Status write_pid_file(const std::string& path, pid_t pid);
// Starts this program with `arguments` in the namespace `netns`, its output to `log`; writes the
// pid file; waits until it says that it is ready.
absl::Status start_daemon(const std::string& netns, const std::vector<std::string>& arguments,
                          const std::string& log, const std::string& pid_file, Deadline deadline);
// SIGTERM, then SIGKILL; waits for its end. Fine if there is none.
absl::Status stop_daemon(const std::string& pid_file, Deadline deadline);

}  // namespace godwit::cli

#endif  // GODWIT_CLI_LAB_DAEMON_H_
