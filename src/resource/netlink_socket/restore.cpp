#include <linux/netlink.h>
#include <sys/socket.h>

#include "base/status.h"
#include "resource/netlink_socket/internal.h"
#include "resource/socket_options/options.h"

namespace godwit::resource {

absl::StatusOr<UniqueFd> netlink_create(const NetlinkSocketState& state, RestoreContext& context) {
  if ((state.type() != SOCK_RAW && state.type() != SOCK_DGRAM) || state.protocol() < 0)
    return make_error(absl::StatusCode::kDataLoss, "netlink socket of type {}, protocol {}",
                      state.type(), state.protocol());
  UniqueFd fd;
  GW_RETURN_IF_ERROR(context.in_capsule([&] {
    fd.reset(::socket(AF_NETLINK, state.type() | SOCK_CLOEXEC, state.protocol()));
    return fd ? absl::OkStatus()
              : errno_status(errno, fmt::format("socket(AF_NETLINK, {})", state.protocol()));
  }));
  GW_RETURN_IF_ERROR(restore_common(fd.get(), kUseNetlink, AF_NETLINK, nullptr, state.common()));
  GW_RETURN_IF_ERROR(restore_buffers(fd.get(), state.common()));
  if (state.port() != 0) {
    sockaddr_nl local{};
    local.nl_family = AF_NETLINK;
    local.nl_pid = state.port();
    if (::bind(fd.get(), reinterpret_cast<const sockaddr*>(&local), sizeof local) != 0)
      return errno_status(errno, fmt::format("bind(netlink, port {})", state.port()));
  }
  for (const uint32_t group : state.groups())
    GW_RETURN_IF_ERROR(
        set_int_option(fd.get(), SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, static_cast<int>(group)));
  if (state.peer_port() != 0 || state.peer_groups() != 0) {
    sockaddr_nl remote{};
    remote.nl_family = AF_NETLINK;
    remote.nl_pid = state.peer_port();
    remote.nl_groups = state.peer_groups();
    if (::connect(fd.get(), reinterpret_cast<const sockaddr*>(&remote), sizeof remote) != 0)
      return errno_status(errno, fmt::format("connect(netlink, port {})", state.peer_port()));
  }
  return fd;
}

absl::StatusOr<bool> netlink_update(int fd, const NetlinkSocketState& before,
                                    const NetlinkSocketState& now) {
  const auto identity = [](NetlinkSocketState state) {
    state.clear_common();
    return state.SerializeAsString();
  };
  if (identity(before) != identity(now)) return false;
  GW_RETURN_IF_ERROR(restore_common(fd, kUseNetlink, AF_NETLINK, &before.common(), now.common()));
  GW_RETURN_IF_ERROR(restore_buffers(fd, now.common()));
  return true;
}

}  // namespace godwit::resource
