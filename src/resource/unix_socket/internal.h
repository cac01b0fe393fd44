// What capture and restore of unix sockets share. Internal to this folder.
#ifndef GODWIT_RESOURCE_UNIX_SOCKET_INTERNAL_H_
#define GODWIT_RESOURCE_UNIX_SOCKET_INTERNAL_H_

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "resource/resource.h"
#include "resource/unix_socket/unix_socket.pb.h"

namespace godwit::resource {

absl::Status unix_precheck(const OpenFile& file, const CaptureContext& context,
                           std::vector<Refusal>& refusals);
absl::StatusOr<std::string> unix_capture(const OpenFile& file, const CaptureContext& context);

absl::StatusOr<UniqueFd> unix_create(uint64_t id, const UnixSocketState& state,
                                     RestoreContext& context);
absl::StatusOr<bool> unix_update(int fd, const UnixSocketState& before, const UnixSocketState& now);
absl::Status unix_fill(int fd, const UnixSocketState& state, RestoreContext& context);

}  // namespace godwit::resource

#endif  // GODWIT_RESOURCE_UNIX_SOCKET_INTERNAL_H_
