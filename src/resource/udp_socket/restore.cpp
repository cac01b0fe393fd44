#include <sys/socket.h>

#include "base/status.h"
#include "resource/socket_options/address.h"
#include "resource/socket_options/options.h"
#include "resource/udp_socket/internal.h"

namespace godwit::resource {
namespace {

absl::StatusOr<KernelAddress> decode(const InternetAddress& address, RestoreContext& context) {
  return decode_address(address, [&](absl::FunctionRef<absl::Status()> action) {
    return context.in_capsule(action);
  });
}

// Only in the final epoch: a bound socket can be freed of its address by nothing but its end, while
// the queue has to be filled before, and so does a program that has connected it meanwhile.
absl::Status establish(int fd, const UdpSocketState& state, RestoreContext& context) {
  GW_ASSIGN_OR_RETURN(const KernelAddress bound, local_address(fd));
  if (port_of(bound) != 0) return absl::OkStatus();
  if (state.queue_size() != 0) GW_RETURN_IF_ERROR(udp_fill(fd, state, context));
  GW_RETURN_IF_ERROR(restore_device(fd, state.common()));
  if (state.local().port() != 0 || !is_any(state.local())) {
    GW_ASSIGN_OR_RETURN(const KernelAddress local, decode(state.local(), context));
    if (::bind(fd, local.get(), local.size) != 0)
      return errno_status(errno, fmt::format("bind({})", text_of(state.local())));
  }
  if (state.has_remote()) {
    GW_ASSIGN_OR_RETURN(const KernelAddress remote, decode(state.remote(), context));
    if (::connect(fd, remote.get(), remote.size) != 0)
      return errno_status(errno, fmt::format("connect({})", text_of(state.remote())));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<UniqueFd> udp_create(const UdpSocketState& state, RestoreContext& context) {
  if (state.family() != AF_INET && state.family() != AF_INET6)
    return make_error(absl::StatusCode::kDataLoss, "UDP socket of family {}", state.family());
  UniqueFd fd;
  GW_RETURN_IF_ERROR(context.in_capsule([&] {
    fd.reset(::socket(state.family(), SOCK_DGRAM | SOCK_CLOEXEC, IPPROTO_UDP));
    return fd ? absl::OkStatus() : errno_status(errno, "socket(SOCK_DGRAM)");
  }));
  GW_RETURN_IF_ERROR(restore_common(fd.get(), kUseUdp, state.family(), nullptr, state.common()));
  GW_RETURN_IF_ERROR(restore_buffers(fd.get(), state.common()));
  if (context.final()) GW_RETURN_IF_ERROR(establish(fd.get(), state, context));
  return fd;
}

absl::StatusOr<bool> udp_update(int fd, const UdpSocketState& before, const UdpSocketState& now,
                                RestoreContext& context) {
  if (before.family() != now.family()) return false;
  GW_RETURN_IF_ERROR(restore_common(fd, kUseUdp, now.family(), &before.common(), now.common()));
  GW_RETURN_IF_ERROR(restore_buffers(fd, now.common()));
  if (context.final()) GW_RETURN_IF_ERROR(establish(fd, now, context));
  return true;
}

}  // namespace godwit::resource
