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
  GW_RETURN_IF_ERROR(restore_device(fd.get(), state.common()));
  if (state.local().port() != 0 || !is_any(state.local())) {
    GW_ASSIGN_OR_RETURN(const KernelAddress local, decode(state.local(), context));
    if (::bind(fd.get(), local.get(), local.size) != 0)
      return errno_status(errno, fmt::format("bind({})", text_of(state.local())));
  }
  if (state.has_remote()) {
    GW_ASSIGN_OR_RETURN(const KernelAddress remote, decode(state.remote(), context));
    if (::connect(fd.get(), remote.get(), remote.size) != 0)
      return errno_status(errno, fmt::format("connect({})", text_of(state.remote())));
  }
  return fd;
}

absl::StatusOr<bool> udp_update(int fd, const UdpSocketState& before, const UdpSocketState& now,
                                RestoreContext&) {
  const auto identity = [](UdpSocketState state) {
    const std::string device = state.common().bind_device();
    state.clear_common();
    state.clear_queue();
    return state.SerializeAsString() + device;
  };
  if (identity(before) != identity(now)) return false;
  GW_RETURN_IF_ERROR(restore_common(fd, kUseUdp, now.family(), &before.common(), now.common()));
  GW_RETURN_IF_ERROR(restore_buffers(fd, now.common()));
  return true;
}

}  // namespace godwit::resource
