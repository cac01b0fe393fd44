// The mover's connection to its daemon: descriptor 3, SOCK_SEQPACKET, one protobuf message a
// packet. A closed connection means that the daemon has gone.
#ifndef GODWIT_MIGRATION_DAEMON_LINK_H_
#define GODWIT_MIGRATION_DAEMON_LINK_H_

#include <atomic>
#include <functional>
#include <mutex>
#include <thread>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/clock.h"
#include "base/ids.h"
#include "base/unique_fd.h"
#include "migration/mover.pb.h"

namespace godwit::migration {

class DaemonLink {
 public:
  // `mark`: a file that the daemon reads one byte of, see end_mark_sent(); none: not needed.
  explicit DaemonLink(UniqueFd fd, UniqueFd mark = {})
      : fd_(std::move(fd)), mark_(std::move(mark)) {}
  ~DaemonLink();

  absl::Status send(const MoverToDaemon& message);
  // kUnavailable when the daemon has gone.
  absl::StatusOr<DaemonToMover> receive(Deadline deadline);

  // From here on only the store knows who owns the workload. In a file, not in a message: the
  // daemon needs to know when we have died, and would be woken in the middle of the freeze.
  absl::Status end_mark_sent();
  void progress(const Progress& progress);
  // Tells the daemon which descriptor of ours it should have a copy of, to have what is held should
  // we die.
  void hold_fd(int fd);
  // Gives the daemon a copy of the userfaultfd for the memory of `pid`: closed by our death alone,
  // it would stall the program.
  void userfaultfd(HostPid pid, int fd);

  // While it lives, a cancel calls `on_cancel`. The daemon closes the link when it has been told
  // the result, and what would be called may be gone by then.
  class [[nodiscard]] Watch {
   public:
    explicit Watch(DaemonLink& link) : link_(link) {}
    ~Watch();
    Watch(const Watch&) = delete;
    Watch& operator=(const Watch&) = delete;

   private:
    DaemonLink& link_;
  };
  // From here on messages are taken by a thread: cancel, or the daemon's end, sets cancelled() and
  // calls `on_cancel` there.
  Watch watch_for_cancel(std::function<void()> on_cancel);
  const std::atomic<bool>& cancelled() const { return cancelled_; }

 private:
  UniqueFd fd_;
  UniqueFd mark_;
  std::atomic<bool> cancelled_{false};
  std::mutex mutex_;
  std::function<void()> on_cancel_;  // under mutex_; empty when nobody watches any more
  std::thread watcher_;
};

}  // namespace godwit::migration

#endif  // GODWIT_MIGRATION_DAEMON_LINK_H_
