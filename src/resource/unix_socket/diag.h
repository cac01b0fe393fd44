// sock_diag(7), unix_diag: what can be learnt of a unix socket by its inode. Internal.
#ifndef GODWIT_RESOURCE_UNIX_SOCKET_DIAG_H_
#define GODWIT_RESOURCE_UNIX_SOCKET_DIAG_H_

#include <sys/types.h>

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "resource/resource.h"

namespace godwit::resource {

struct UnixDiag {
  ino_t inode = 0;
  int type = 0;
  bool listening = false;
  bool has_peer = false;
  ino_t peer = 0;        // 0 with has_peer: the peer has no socket (closed, or not yet accepted)
  uint32_t pending = 0;  // connections not yet accepted
  uint32_t receive_queue = 0;
  uint32_t backlog = 0;
  uint8_t shutdown = 0;
  std::string name;
};

absl::StatusOr<UnixDiag> unix_diag(ino_t inode, const CaptureContext& context);
// All listening sockets of the capsule's network namespace.
absl::StatusOr<std::vector<UnixDiag>> unix_listeners(const CaptureContext& context);

}  // namespace godwit::resource

#endif  // GODWIT_RESOURCE_UNIX_SOCKET_DIAG_H_
