// Internal to this folder.
#ifndef GODWIT_RESOURCE_UDP_SOCKET_INTERNAL_H_
#define GODWIT_RESOURCE_UDP_SOCKET_INTERNAL_H_

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "resource/resource.h"
#include "resource/udp_socket/udp_socket.pb.h"

namespace godwit::resource {

absl::StatusOr<std::string> udp_capture(const OpenFile& file, const CaptureContext& context);
absl::StatusOr<UniqueFd> udp_create(const UdpSocketState& state, RestoreContext& context);
// The datagram as an IPv4 or IPv6 packet to `port`, with checksums, without a link-layer header.
absl::StatusOr<std::string> udp_packet(const UdpDatagram& datagram, uint16_t port);
// Puts the state's queue into the one of `fd`, a socket with all its options that was never bound
// and is not bound afterwards either. Nothing may be read or sent in the capsule meanwhile.
absl::Status udp_fill(int fd, const UdpSocketState& state, RestoreContext& context);
absl::StatusOr<bool> udp_update(int fd, const UdpSocketState& before, const UdpSocketState& now,
                                RestoreContext& context);

}  // namespace godwit::resource

#endif  // GODWIT_RESOURCE_UDP_SOCKET_INTERNAL_H_
