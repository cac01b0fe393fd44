#include "migration/daemon_link.h"

#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cstring>
#include <string>

#include "base/status.h"

namespace godwit::migration {
namespace {
constexpr size_t kMaxPacket = 64 << 10;
}

DaemonLink::~DaemonLink() {
  if (watcher_.joinable()) {
    ::shutdown(fd_.get(), SHUT_RD);  // ends the thread's recv
    watcher_.join();
  }
}

absl::Status DaemonLink::send(const MoverToDaemon& message) {
  const std::string bytes = message.SerializeAsString();
  if (::send(fd_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL) < 0)
    return absl::UnavailableError("the node daemon has gone");
  return absl::OkStatus();
}

absl::StatusOr<DaemonToMover> DaemonLink::receive(Deadline deadline) {
  std::string bytes(kMaxPacket, '\0');
  for (;;) {
    pollfd one{fd_.get(), POLLIN, 0};
    const int ready = ::poll(&one, 1, deadline.remaining_ms());
    if (ready < 0 && errno != EINTR) return errno_status(errno, "poll(daemon)");
    if (ready == 0 && deadline.passed())
      return absl::DeadlineExceededError("no answer from the node daemon in time");
    if (ready <= 0) continue;
    const ssize_t n = ::recv(fd_.get(), bytes.data(), bytes.size(), 0);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return absl::UnavailableError("the node daemon has gone");
    DaemonToMover message;
    if (!message.ParseFromArray(bytes.data(), static_cast<int>(n)))
      return absl::InternalError("a message from the node daemon that cannot be read");
    return message;
  }
}

absl::Status DaemonLink::end_mark_sent() {
  const char yes = 1;
  if (::pwrite(mark_.get(), &yes, 1, 0) != 1)
    return errno_status(errno, "pwrite(the daemon's mark)");
  return absl::OkStatus();
}

void DaemonLink::progress(const Progress& progress) {
  MoverToDaemon message;
  *message.mutable_progress() = progress;
  (void)send(message);  // a daemon that has gone is noticed where an answer is needed
}

void DaemonLink::hold_fd(int fd) {
  if (fd < 0) return;
  MoverToDaemon message;
  message.set_hold_fd(static_cast<uint32_t>(fd));
  (void)send(message);
}

void DaemonLink::userfaultfd(HostPid pid, int fd) {
  MoverToDaemon message;
  message.set_userfaultfd_of(pid.value);
  std::string bytes = message.SerializeAsString();
  iovec part{bytes.data(), bytes.size()};
  alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof fd)> control{};
  msghdr packet{};
  packet.msg_iov = &part;
  packet.msg_iovlen = 1;
  packet.msg_control = control.data();
  packet.msg_controllen = control.size();
  cmsghdr* rights = CMSG_FIRSTHDR(&packet);
  rights->cmsg_level = SOL_SOCKET;
  rights->cmsg_type = SCM_RIGHTS;
  rights->cmsg_len = CMSG_LEN(sizeof fd);
  std::memcpy(CMSG_DATA(rights), &fd, sizeof fd);
  // A daemon that has gone is noticed where an answer is needed.
  (void)::sendmsg(fd_.get(), &packet, MSG_NOSIGNAL);
}

DaemonLink::Watch::~Watch() {
  std::lock_guard lock(link_.mutex_);
  link_.on_cancel_ = nullptr;
}

DaemonLink::Watch DaemonLink::watch_for_cancel(std::function<void()> on_cancel) {
  on_cancel_ = std::move(on_cancel);
  watcher_ = std::thread([this] {
    for (;;) {
      const auto message = receive(Deadline::in(absl::Hours(24)));
      if (!message.ok() && absl::IsDeadlineExceeded(message.status())) continue;
      if (!message.ok() || message->cancel()) {
        cancelled_ = true;
        std::lock_guard lock(mutex_);
        if (on_cancel_) on_cancel_();
        return;
      }
    }
  });
  return Watch(*this);
}

}  // namespace godwit::migration
