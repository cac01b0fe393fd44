#include "resource/raw_sockets.h"

#include <netinet/in.h>
#include <sys/socket.h>

#include "base/status.h"

namespace godwit::resource {

absl::StatusOr<int> RawSockets::get(
    int family, absl::FunctionRef<absl::Status(absl::FunctionRef<absl::Status()>)> inside) {
  const std::lock_guard lock(mutex_);
  UniqueFd& socket = sockets_[family];
  if (!socket)
    GW_RETURN_IF_ERROR(inside([&] {
      socket.reset(::socket(family, SOCK_RAW | SOCK_CLOEXEC, IPPROTO_RAW));
      return socket ? absl::OkStatus() : errno_status(errno, "socket(SOCK_RAW, IPPROTO_RAW)");
    }));
  return socket.get();
}

}  // namespace godwit::resource
