#include <poll.h>
#include <sys/socket.h>

#include <cstring>

#include "base/status.h"
#include "resource/socket_options/address.h"
#include "resource/socket_options/options.h"
#include "resource/udp_socket/internal.h"

namespace godwit::resource {
namespace {

constexpr size_t kMaxDatagram = 65536;

absl::Status retry(const OpenFile& file, std::string_view why) {
  return make_error(absl::StatusCode::kUnavailable,
                    "UDP socket {} of process {}: {}; it passes by itself: let the program run "
                    "for a moment and try again",
                    file.remote_fd, file.tgid.value, why);
}

// The address that the datagram was sent to, from IP_PKTINFO or IPV6_PKTINFO.
bool destination_of(msghdr& message, uint16_t port, KernelAddress& to) {
  for (cmsghdr* c = CMSG_FIRSTHDR(&message); c != nullptr; c = CMSG_NXTHDR(&message, c)) {
    if (c->cmsg_level == IPPROTO_IP && c->cmsg_type == IP_PKTINFO) {
      in_pktinfo info{};
      std::memcpy(&info, CMSG_DATA(c), sizeof info);
      sockaddr_in in{};
      in.sin_family = AF_INET;
      in.sin_port = htons(port);
      in.sin_addr = info.ipi_addr;
      std::memcpy(&to.storage, &in, sizeof in);
      to.size = sizeof in;
      return true;
    }
    if (c->cmsg_level == IPPROTO_IPV6 && c->cmsg_type == IPV6_PKTINFO) {
      in6_pktinfo info{};
      std::memcpy(&info, CMSG_DATA(c), sizeof info);
      sockaddr_in6 in6{};
      in6.sin6_family = AF_INET6;
      in6.sin6_port = htons(port);
      in6.sin6_addr = info.ipi6_addr;
      std::memcpy(&to.storage, &in6, sizeof in6);
      to.size = sizeof in6;
      return true;
    }
  }
  return false;
}

absl::Status peek_datagrams(const OpenFile& file, uint16_t port, InCapsule in_capsule,
                            UdpSocketState& state) {
  std::string buffer(kMaxDatagram, '\0');
  while (true) {
    KernelAddress from, to;
    iovec part{buffer.data(), buffer.size()};
    alignas(cmsghdr) char control[1024];
    msghdr message{};
    message.msg_name = from.get();
    message.msg_namelen = sizeof from.storage;
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    const ssize_t got = ::recvmsg(file.fd, &message, MSG_PEEK | MSG_DONTWAIT);
    if (got < 0 && errno == EAGAIN) return absl::OkStatus();
    if (got < 0) return errno_status(errno, fmt::format("recvmsg({}, MSG_PEEK)", file.fd));
    from.size = message.msg_namelen;
    if (!destination_of(message, port, to))
      return make_error(absl::StatusCode::kInternal, "a datagram without its destination");
    UdpDatagram& out = *state.add_queue();
    GW_RETURN_IF_ERROR(encode_address(from, in_capsule, *out.mutable_from()));
    GW_RETURN_IF_ERROR(encode_address(to, in_capsule, *out.mutable_to()));
    out.set_data(buffer.data(), static_cast<size_t>(got));
  }
}

// For the time of reading: SO_PEEK_OFF steps from datagram to datagram, and the destination is
// told. Both are put back.
absl::Status capture_queue(const OpenFile& file, uint16_t port, InCapsule in_capsule,
                           UdpSocketState& state) {
  pollfd events{.fd = file.fd, .events = POLLIN, .revents = 0};
  if (::poll(&events, 1, 0) < 0) return errno_status(errno, "poll(UDP socket)");
  if ((events.revents & POLLERR) != 0) return retry(file, "an error waits to be read");
  if ((events.revents & POLLIN) == 0) return absl::OkStatus();
  const struct {
    int level, name, value;
  } wanted[] = {{SOL_SOCKET, SO_PEEK_OFF, 0},
                {IPPROTO_UDP, 104 /* UDP_GRO: what was merged would lose its borders */, 0},
                {IPPROTO_IP, IP_PKTINFO, 1},
                {IPPROTO_IPV6, IPV6_RECVPKTINFO, 1}};
  int saved[4] = {};
  absl::Status status;
  size_t done = 0;
  for (; done < 4 && status.ok(); ++done) {
    const auto& option = wanted[done];
    if (option.level == IPPROTO_IPV6 && state.family() != AF_INET6) break;
    auto before = get_int_option(file.fd, option.level, option.name);
    status = before.status();
    if (!status.ok()) break;
    saved[done] = *before;
    status = set_int_option(file.fd, option.level, option.name, option.value);
  }
  if (status.ok()) status = peek_datagrams(file, port, in_capsule, state);
  while (done-- > 0) {
    absl::Status back = set_int_option(file.fd, wanted[done].level, wanted[done].name, saved[done]);
    if (status.ok()) status = back;
  }
  return status;
}

}  // namespace

absl::StatusOr<std::string> udp_capture(const OpenFile& file, const CaptureContext& context) {
  UdpSocketState state;
  const auto in_capsule = [&](absl::FunctionRef<absl::Status()> action) {
    return context.in_capsule(action);
  };
  GW_ASSIGN_OR_RETURN(const KernelAddress local, local_address(file.fd));
  state.set_family(local.storage.ss_family);
  GW_RETURN_IF_ERROR(encode_address(local, in_capsule, *state.mutable_local()));
  KernelAddress remote;
  remote.size = sizeof remote.storage;
  if (::getpeername(file.fd, remote.get(), &remote.size) == 0) {
    GW_RETURN_IF_ERROR(encode_address(remote, in_capsule, *state.mutable_remote()));
  } else if (errno != ENOTCONN) {
    return errno_status(errno, fmt::format("getpeername({})", file.fd));
  }
  GW_RETURN_IF_ERROR(capture_common(file, kUseUdp, state.family(), true, *state.mutable_common()));
  if (context.final()) GW_RETURN_IF_ERROR(capture_queue(file, port_of(local), in_capsule, state));
  return state.SerializeAsString();
}

}  // namespace godwit::resource
