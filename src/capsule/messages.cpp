#include "capsule/messages.h"

#include <poll.h>
#include <sys/socket.h>

#include <cerrno>
#include <string>

#include "absl/strings/cord.h"
#include "base/status.h"

namespace godwit::capsule {

absl::Status send_message(int socket, const google::protobuf::MessageLite& message,
                          const std::vector<int>& fds) {
  std::string bytes;
  if (!message.SerializeToString(&bytes)) return absl::InternalError("message without a form");
  // A leading byte keeps an empty message from looking like the end of the connection.
  bytes.insert(bytes.begin(), 'm');
  if (bytes.size() > kMaxPacket) {
    return make_error(absl::StatusCode::kResourceExhausted,
                      "message of {} bytes to the capsule, at most {}", bytes.size(), kMaxPacket);
  }
  return kernel::send_with_fds(socket, bytes, fds);
}

absl::StatusOr<std::vector<UniqueFd>> receive_message(int socket,
                                                      google::protobuf::MessageLite& message,
                                                      Deadline deadline) {
  pollfd poll_fd{socket, POLLIN, 0};
  while (true) {
    const int n = ::poll(&poll_fd, 1, deadline.remaining_ms());
    if (n > 0) break;
    if (n == 0) return absl::DeadlineExceededError("no answer from the capsule in time");
    if (errno != EINTR) return errno_status(errno, "poll(socket)");
  }
  GW_ASSIGN_OR_RETURN(kernel::Received received, kernel::receive_with_fds(socket, kMaxPacket));
  if (received.bytes.empty() || received.bytes[0] != 'm' ||
      !message.ParseFromArray(received.bytes.data() + 1,
                              static_cast<int>(received.bytes.size() - 1))) {
    return absl::DataLossError("message that cannot be read");
  }
  return std::move(received.fds);
}

absl::Status status_from(int code, int error, const std::string& text) {
  if (code == 0) return absl::OkStatus();
  absl::Status status(static_cast<absl::StatusCode>(code), text);
  if (error != 0) status.SetPayload("godwit/errno", absl::Cord(std::to_string(error)));
  return status;
}

absl::StatusOr<SocketPair> socket_pair(int type) {
  int fds[2];
  if (::socketpair(AF_UNIX, type | SOCK_CLOEXEC, 0, fds) != 0) {
    return errno_status(errno, "socketpair(AF_UNIX)");
  }
  return SocketPair{UniqueFd(fds[0]), UniqueFd(fds[1])};
}

}  // namespace godwit::capsule
