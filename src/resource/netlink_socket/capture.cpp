#include <linux/netlink.h>
#include <poll.h>
#include <sys/socket.h>

#include <vector>

#include "base/status.h"
#include "resource/netlink_socket/internal.h"
#include "resource/socket_options/options.h"

namespace godwit::resource {
namespace {

// NETLINK_LIST_MEMBERSHIPS: a bit a group, bit 0 of the first word is group 1.
absl::Status capture_groups(const OpenFile& file, NetlinkSocketState& state) {
  socklen_t size = 0;
  if (::getsockopt(file.fd, SOL_NETLINK, NETLINK_LIST_MEMBERSHIPS, nullptr, &size) != 0)
    return errno_status(errno, fmt::format("getsockopt({}, NETLINK_LIST_MEMBERSHIPS)", file.fd));
  std::vector<uint32_t> words((size + 3) / 4);
  if (words.empty()) return absl::OkStatus();
  if (::getsockopt(file.fd, SOL_NETLINK, NETLINK_LIST_MEMBERSHIPS, words.data(), &size) != 0)
    return errno_status(errno, fmt::format("getsockopt({}, NETLINK_LIST_MEMBERSHIPS)", file.fd));
  for (uint32_t bit = 0; bit < words.size() * 32; ++bit)
    if ((words[bit / 32] >> (bit % 32) & 1) != 0) state.add_groups(bit + 1);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::string> netlink_capture(const OpenFile& file, const CaptureContext& context) {
  NetlinkSocketState state;
  SocketIdentity kind;
  if (!socket_kind(file, kind))
    return make_error(absl::StatusCode::kInternal, "descriptor {} is no socket", file.remote_fd);
  state.set_type(kind.type);
  state.set_protocol(kind.protocol);
  sockaddr_nl local{}, remote{};
  socklen_t size = sizeof local;
  if (::getsockname(file.fd, reinterpret_cast<sockaddr*>(&local), &size) != 0)
    return errno_status(errno, fmt::format("getsockname({})", file.fd));
  state.set_port(local.nl_pid);
  size = sizeof remote;
  if (::getpeername(file.fd, reinterpret_cast<sockaddr*>(&remote), &size) != 0)
    return errno_status(errno, fmt::format("getpeername({})", file.fd));
  state.set_peer_port(remote.nl_pid);
  state.set_peer_groups(remote.nl_groups);
  GW_RETURN_IF_ERROR(capture_groups(file, state));
  GW_RETURN_IF_ERROR(capture_common(file, kUseNetlink, AF_NETLINK, true, *state.mutable_common()));
  if (context.final()) {
    pollfd events{.fd = file.fd, .events = POLLIN, .revents = 0};
    if (::poll(&events, 1, 0) < 0) return errno_status(errno, "poll(netlink socket)");
    if (events.revents & (POLLIN | POLLERR))
      return make_error(absl::StatusCode::kUnavailable,
                        "netlink socket {} of process {}: an answer of the kernel waits to be "
                        "read; let the program run for a moment and try again",
                        file.remote_fd, file.tgid.value);
  }
  return state.SerializeAsString();
}

}  // namespace godwit::resource
