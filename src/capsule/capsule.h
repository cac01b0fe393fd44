// A service's capsule as the rest of Godwit sees it: its own pid, mount, network, ipc, uts, time
// and cgroup namespaces with a shim that keeps them (shim.h) and an init inside (init.h).
//
//   create() -> CREATED --start()--> RUNNING --last process ends--> EXITED --destroy()--> nothing
//            -> REPLICA --adopt()--^
//
// A replica dies with the Capsule object (and process) that created it until keep() or adopt().
#ifndef GODWIT_CAPSULE_CAPSULE_H_
#define GODWIT_CAPSULE_CAPSULE_H_

#include <array>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/clock.h"
#include "base/ids.h"
#include "base/unique_fd.h"
#include "capsule/capsule.pb.h"
#include "capsule/cgroup.h"
#include "capsule/paths.h"
#include "capsule/shim.pb.h"
#include "pages/fault_service.h"

namespace godwit::capsule {

struct CreateOptions {
  bool replica = false;
  // Takes the place of an exited capsule of that name and keeps its layer and log.
  bool replace_exited = false;
  // Folders of the host to cover besides the node's state folder, when they can be seen.
  std::vector<std::string> masked;
  // The program that runs shim_main() with the arguments that are appended.
  std::vector<std::string> shim_command = {"/proc/self/exe", "shim"};
};

struct ExitStatus {
  int code = 0;  // 128 + signal if it was killed
  int signal = 0;
};

// A program that was started inside by exec(). Closing it does not end the program.
class Exec {
 public:
  ImagePid image_pid() const { return image_pid_; }
  HostPid host_pid() const { return host_pid_; }
  const UniqueFd& terminal() const { return terminal_; }  // master, with tty
  // Readable when the program has ended: for a caller's own poll.
  int event_fd() const { return socket_.get(); }
  absl::StatusOr<ExitStatus> wait(Deadline deadline);

 private:
  friend class Capsule;
  UniqueFd socket_;
  UniqueFd terminal_;
  ImagePid image_pid_;
  HostPid host_pid_;
};

// Ends of the main process's streams that belong into the capsule, for a restored process.
struct StdioEnds {
  std::array<UniqueFd, 3> pipe;  // empty where the service has none
  UniqueFd terminal;             // the master
};

struct Attached {
  UniqueFd io;        // stream socket: input in (shutdown: end of file), stdout or terminal out
  UniqueFd err;       // stderr; none with a terminal
  UniqueFd returned;  // input that was held when the capsule ended (hold_input()), and then the end
};

// One thread at a time; other threads open() their own.
class Capsule {
 public:
  // Folders, cgroups, shim, init, root. On error nothing is left behind (a layer that a mover put
  // there included). kAlreadyExists if there is one of that name.
  static absl::StatusOr<Capsule> create(const NodePaths& node, const CapsuleSpec& spec,
                                        const CreateOptions& options);
  // kNotFound if there is none. One whose shim died can be opened and destroyed.
  static absl::StatusOr<Capsule> open(const NodePaths& node, std::string_view name);
  // Kills what lives and removes cgroups and folders, with or without a shim; fine if there is
  // nothing (left).
  static absl::Status destroy(const NodePaths& node, std::string_view name, Deadline deadline);

  const CapsuleSpec& spec() const { return spec_; }
  const ServicePaths& paths() const { return paths_; }
  const Cgroup& cgroup() const { return cgroup_; }
  Cgroup work() const { return cgroup_.child("work"); }

  // From the shim; if it has died (and so everything inside), as it last wrote it, EXITED.
  absl::StatusOr<CapsuleInfo> info();

  // Runs spec.argv. A program that cannot be started: the reason; exit code 126 or 127 in info().
  absl::StatusOr<CapsuleInfo> start();
  // Without tty `stdio` are three descriptors, which stay the caller's.
  absl::StatusOr<Exec> exec(const ExecSpec& program, const std::vector<int>& stdio);
  // To the main process (pid 0; when it has ended, to all that live) or to one of the capsule.
  absl::Status signal(int number, ImagePid pid = {0});
  absl::StatusOr<Attached> attach();
  absl::Status close_stdin();
  // Before a freeze (true), and when the service runs on here after all. What was held at the
  // capsule's end comes back to those who sent it: Attached::returned.
  absl::Status hold_input(bool hold);
  absl::Status resize(unsigned rows, unsigned columns);
  // Blocks, on a connection of its own, until the last process has gone. A shim that dies
  // meanwhile counts as the end.
  absl::StatusOr<CapsuleInfo> wait_exit(Deadline deadline);

  // For the mover. A husk's parent is init; it keeps `comm` as descriptor `comm_fd`.
  absl::StatusOr<HostPid> spawn_husk(ImagePid pid, int comm, int comm_fd);
  absl::StatusOr<StdioEnds> stdio();
  absl::Status set_terminal(int master);
  absl::Status set_main_pid(ImagePid pid);  // 0: it ended before the move
  // What it lacks when it begins to run: from here on the shim serves touches of that. Descriptors
  // go with it.
  absl::Status post_copy(std::vector<pages::FaultService::Space> spaces);
  // Its (next) connections to the source: for faults, and for what is pushed.
  absl::Status connect_pages(std::unique_ptr<tls::Channel> faults,
                             std::unique_ptr<tls::Channel> push, absl::Duration patience);
  // Of a replica, early: that post_copy() may follow.
  absl::Status expect_pages();
  absl::Status lose_source();
  // A replica is on its own: it ends by kill() and removal alone. Idempotent.
  absl::Status keep();
  absl::Status adopt();  // idempotent; init reaps, and the service ends with its last process

  absl::Status freeze(Deadline deadline) { return work().freeze(deadline); }
  absl::Status request_freeze();
  absl::Status wait_frozen(Deadline deadline) { return work().wait_frozen(true, deadline); }
  absl::Status thaw();
  // SIGKILL to all; the shim stays with the exit status.
  absl::Status kill();
  absl::StatusOr<std::vector<HostPid>> work_pids();

 private:
  Capsule(const NodePaths& node, std::string_view name, Cgroup cgroup)
      : paths_(node.service(name)), cgroup_(std::move(cgroup)) {}
  struct Answer {
    ShimReply reply;
    std::vector<UniqueFd> fds;
  };
  absl::StatusOr<Answer> call(const ShimRequest& request, const std::vector<int>& fds = {});
  static absl::StatusOr<Answer> call_on(int socket, const ShimRequest& request,
                                        const std::vector<int>& fds);
  absl::Status launch(const NodePaths& node, const CreateOptions& options);
  absl::StatusOr<CapsuleInfo> last_info() const;
  absl::StatusOr<const FreezeFiles*> freeze_files();

  CapsuleSpec spec_;
  ServicePaths paths_;
  Cgroup cgroup_;
  std::optional<FreezeFiles> freeze_files_;  // since they were first needed
  UniqueFd socket_;
};

// Names of the services that have a folder here.
absl::StatusOr<std::vector<std::string>> list_services(const NodePaths& node);

}  // namespace godwit::capsule

#endif  // GODWIT_CAPSULE_CAPSULE_H_
