// A mover as its daemon sees it: a child of the same program with a SOCK_SEQPACKET socket
// (unix(7)) as descriptor 3, one message of migration/mover.proto a packet. What a mover sent
// before it died can still be received; after that, receive() says kOutOfRange.
//
// Thread rule: one thread receives; send() and interrupt() may come from any.
#ifndef GODWIT_NODE_MOVER_PROCESS_H_
#define GODWIT_NODE_MOVER_PROCESS_H_

#include <sys/types.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/clock.h"
#include "base/ids.h"
#include "base/unique_fd.h"
#include "migration/mover.pb.h"

namespace godwit::node {

// What its daemon has of a mover that may die.
struct LeftByMover {
  struct Userfaultfd {
    HostPid pid;  // whose memory it is for
    UniqueFd fd;
  };
  UniqueFd hold;  // copy of the descriptor that has the held frames
  std::vector<Userfaultfd> userfaultfds;
};

class MoverProcess {
 public:
  // Starts "/proc/self/exe mover", which waits for begin(). Its stderr is ours.
  static absl::StatusOr<std::unique_ptr<MoverProcess>> start();
  // Kills and reaps it if it still lives.
  ~MoverProcess();
  MoverProcess(const MoverProcess&) = delete;
  MoverProcess& operator=(const MoverProcess&) = delete;

  // Says what it is for; once. An error: it has ended, or it is of no use.
  absl::Status begin(const migration::MoverStart& start);
  // kOutOfRange: it has ended. kCancelled: interrupt() was called (once answers once).
  // kDeadlineExceeded: nothing came. `attached`: the descriptor that came with it, if one did.
  absl::StatusOr<migration::MoverToDaemon> receive(Deadline deadline, UniqueFd* attached = nullptr);
  absl::Status send(const migration::DaemonToMover& message);
  void interrupt();
  // Whether it got as far (migration/daemon_link.h); also after its death. A file that cannot be
  // read counts as yes: then the store is asked.
  bool end_mark_sent() const;
  // A copy of one of its descriptors, while it lives (pidfd_getfd(2)).
  absl::StatusOr<UniqueFd> copy_fd(uint32_t fd) const;

  // It lives on when this object ends.
  void leave() { reaped_ = true; }
  // SIGKILL, waits for its end. Idempotent. From here on nothing of it runs.
  void kill();
  pid_t pid() const { return pid_; }
  uint64_t start_ticks() const { return start_ticks_; }

 private:
  MoverProcess() = default;
  pid_t pid_ = -1;
  uint64_t start_ticks_ = 0;
  UniqueFd pidfd_;
  UniqueFd socket_;
  UniqueFd interrupt_;               // eventfd
  UniqueFd mark_;                    // memfd
  std::unique_ptr<char[]> message_;  // kept and never cleared: a message is short, the room is not
  bool reaped_ = false;
};

// Ends a mover that an earlier daemon started, unless the pid is another process's by now. Gives a
// copy of its descriptor `hold_fd`, if it lived and had that.
absl::StatusOr<UniqueFd> end_left_over_mover(pid_t pid, uint64_t start_ticks, int hold_fd);

}  // namespace godwit::node

#endif  // GODWIT_NODE_MOVER_PROCESS_H_
