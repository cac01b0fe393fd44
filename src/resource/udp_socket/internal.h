// Internal to this folder.
#ifndef GODWIT_RESOURCE_UDP_SOCKET_INTERNAL_H_
#define GODWIT_RESOURCE_UDP_SOCKET_INTERNAL_H_

#include "absl/status/statusor.h"
#include "resource/resource.h"
#include "resource/udp_socket/udp_socket.pb.h"

namespace godwit::resource {

absl::StatusOr<std::string> udp_capture(const OpenFile& file, const CaptureContext& context);
absl::StatusOr<UniqueFd> udp_create(const UdpSocketState& state, RestoreContext& context);
absl::StatusOr<bool> udp_update(int fd, const UdpSocketState& before, const UdpSocketState& now,
                                RestoreContext& context);

}  // namespace godwit::resource

#endif  // GODWIT_RESOURCE_UDP_SOCKET_INTERNAL_H_
