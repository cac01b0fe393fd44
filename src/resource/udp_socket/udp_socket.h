// UDP sockets (udp(7), Linux 6.18).
//
// A datagram cannot be put back into a receive queue with its sender's address. What lay unread is
// in the state, and udp_frames() makes packets of it: whoever replays the packets held at the gate
// injects these first, at activation. An empty datagram that was peeked at before, by the program
// or by a capture that came to nothing, is passed over by the kernel (SO_PEEK_OFF) and lost.
#ifndef GODWIT_RESOURCE_UDP_SOCKET_UDP_SOCKET_H_
#define GODWIT_RESOURCE_UDP_SOCKET_UDP_SOCKET_H_

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "resource/resource.h"

namespace godwit::resource {

const FileKind& udp_socket_kind();

// The unread datagrams of a socket's state as IPv4 or IPv6 packets with UDP header and checksums,
// without a link-layer header, in order. May be longer than the interface's MTU.
absl::StatusOr<std::vector<std::string>> udp_frames(std::string_view state);

}  // namespace godwit::resource

#endif  // GODWIT_RESOURCE_UDP_SOCKET_UDP_SOCKET_H_
