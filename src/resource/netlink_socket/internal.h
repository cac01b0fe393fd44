// Internal to this folder.
#ifndef GODWIT_RESOURCE_NETLINK_SOCKET_INTERNAL_H_
#define GODWIT_RESOURCE_NETLINK_SOCKET_INTERNAL_H_

#include "absl/status/statusor.h"
#include "resource/netlink_socket/netlink_socket.pb.h"
#include "resource/resource.h"

namespace godwit::resource {

absl::StatusOr<std::string> netlink_capture(const OpenFile& file, const CaptureContext& context);
absl::StatusOr<UniqueFd> netlink_create(const NetlinkSocketState& state, RestoreContext& context);
absl::StatusOr<bool> netlink_update(int fd, const NetlinkSocketState& before,
                                    const NetlinkSocketState& now);

}  // namespace godwit::resource

#endif  // GODWIT_RESOURCE_NETLINK_SOCKET_INTERNAL_H_
