// Protobuf messages over SOCK_SEQPACKET sockets, descriptors beside them.
#ifndef GODWIT_CAPSULE_MESSAGES_H_
#define GODWIT_CAPSULE_MESSAGES_H_

#include <google/protobuf/message_lite.h>

#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/clock.h"
#include "base/unique_fd.h"
#include "kernel/syscalls.h"

namespace godwit::capsule {

// Longest packet: a command line and an environment of Linux's usual limit do not fit, a sensible
// one does.
inline constexpr size_t kMaxPacket = size_t{192} << 10;

absl::Status send_message(int socket, const google::protobuf::MessageLite& message,
                          const std::vector<int>& fds = {});

// kOutOfRange when the peer has closed; kDeadlineExceeded; kDataLoss for what does not parse.
absl::StatusOr<std::vector<UniqueFd>> receive_message(int socket,
                                                      google::protobuf::MessageLite& message,
                                                      Deadline deadline);

// Status to and from the fields code, error_errno and error of a reply.
template <typename Reply>
void put_status(Reply& reply, const absl::Status& status);
template <typename Reply>
absl::Status get_status(const Reply& reply);

struct SocketPair {
  UniqueFd first;
  UniqueFd second;
};
absl::StatusOr<SocketPair> socket_pair(int type);

}  // namespace godwit::capsule

#include "capsule/messages_inl.h"  // IWYU pragma: export

#endif  // GODWIT_CAPSULE_MESSAGES_H_
