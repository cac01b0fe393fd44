#include <linux/udp.h>
#include <netinet/ip6.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "base/status.h"
#include "resource/socket_options/address.h"
#include "resource/socket_options/options.h"
#include "resource/udp_socket/internal.h"

namespace godwit::resource {
namespace {

constexpr size_t kMaxDatagram = 65536;
constexpr int kUdpGro = 104;  // UDP_GRO, linux/udp.h

absl::Status retry(const OpenFile& file, std::string_view why) {
  return make_error(absl::StatusCode::kUnavailable,
                    "UDP socket {} of process {}: {}; it passes by itself: let the program run "
                    "for a moment and try again",
                    file.remote_fd, file.tgid.value, why);
}

// What came beside the datagram: where it was sent to, and the fields of its header that a program
// can ask for.
struct Beside {
  KernelAddress to;
  int hop_limit = 64;
  int traffic_class = 0;
  int segment = 0;  // UDP_GRO: datagrams of this size, one after the other
};

template <typename T>
T content_of(const cmsghdr* message) {
  T value{};
  std::memcpy(&value, CMSG_DATA(message), sizeof value);
  return value;
}

Beside read_beside(msghdr& message, uint16_t port) {
  Beside beside;
  for (cmsghdr* c = CMSG_FIRSTHDR(&message); c != nullptr; c = CMSG_NXTHDR(&message, c)) {
    const auto is = [c](int level, int type) {
      return c->cmsg_level == level && c->cmsg_type == type;
    };
    if (is(IPPROTO_IP, IP_PKTINFO) && beside.to.storage.ss_family != AF_INET6) {
      sockaddr_in in{};
      in.sin_family = AF_INET;
      in.sin_port = htons(port);
      in.sin_addr = content_of<in_pktinfo>(c).ipi_addr;
      std::memcpy(&beside.to.storage, &in, sizeof in);
      beside.to.size = sizeof in;
    } else if (is(IPPROTO_IPV6, IPV6_PKTINFO)) {
      const auto info = content_of<in6_pktinfo>(c);
      sockaddr_in6 in6{};
      in6.sin6_family = AF_INET6;
      in6.sin6_port = htons(port);
      in6.sin6_addr = info.ipi6_addr;
      if (IN6_IS_ADDR_LINKLOCAL(&info.ipi6_addr)) in6.sin6_scope_id = info.ipi6_ifindex;
      std::memcpy(&beside.to.storage, &in6, sizeof in6);
      beside.to.size = sizeof in6;
    } else if (is(IPPROTO_IP, IP_TTL) || is(IPPROTO_IPV6, IPV6_HOPLIMIT)) {
      beside.hop_limit = content_of<int>(c);
    } else if (is(IPPROTO_IP, IP_TOS)) {
      beside.traffic_class = content_of<uint8_t>(c);
    } else if (is(IPPROTO_IPV6, IPV6_TCLASS)) {
      beside.traffic_class = content_of<int>(c);
    } else if (is(IPPROTO_UDP, kUdpGro)) {
      beside.segment = content_of<int>(c);
    }
  }
  return beside;
}

// Which packet could not be made again at the destination: loopback takes neither a packet over its
// MTU of 65536 nor a multicast one for a socket of AF_INET6.
std::string_view why_not(const KernelAddress& to, size_t bytes, int family) {
  constexpr size_t kLargest = 65536 - sizeof(ip6_hdr) - sizeof(udphdr);
  if (family != AF_INET6) return {};
  if (speaks_ipv4(to)) {
    if (IN_MULTICAST(ntohl(ipv4_of(to).s_addr))) return "a multicast datagram waits to be read";
    return {};
  }
  if (bytes > kLargest) return "a datagram of the largest size waits to be read";
  sockaddr_in6 in6{};
  std::memcpy(&in6, &to.storage, sizeof in6);
  return IN6_IS_ADDR_MULTICAST(&in6.sin6_addr) ? "a multicast datagram waits to be read"
                                               : std::string_view();
}

absl::Status peek_datagrams(const OpenFile& file, uint16_t port, InCapsule in_capsule,
                            UdpSocketState& state) {
  std::string buffer(kMaxDatagram, '\0');
  while (true) {
    KernelAddress from;
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
    const Beside beside = read_beside(message, port);
    if (beside.to.size == 0)
      return make_error(absl::StatusCode::kInternal, "a datagram without its destination");
    std::string_view rest(buffer.data(), static_cast<size_t>(got));
    const size_t step = beside.segment > 0 ? static_cast<size_t>(beside.segment) : rest.size();
    if (const auto why = why_not(beside.to, step, state.family()); !why.empty())
      return retry(file, why);
    do {
      UdpDatagram& out = *state.add_queue();
      GW_RETURN_IF_ERROR(encode_address(from, in_capsule, *out.mutable_from()));
      GW_RETURN_IF_ERROR(encode_address(beside.to, in_capsule, *out.mutable_to()));
      out.set_hop_limit(static_cast<uint32_t>(beside.hop_limit));
      out.set_traffic_class(static_cast<uint32_t>(beside.traffic_class));
      out.set_data(std::string(rest.substr(0, step)));
      rest.remove_prefix(std::min(step, rest.size()));
    } while (!rest.empty());
  }
}

// For the time of reading: SO_PEEK_OFF steps from datagram to datagram, and what came beside each
// is told. All is put back.
absl::Status capture_queue(const OpenFile& file, uint16_t port, InCapsule in_capsule,
                           UdpSocketState& state) {
  pollfd events{.fd = file.fd, .events = POLLIN, .revents = 0};
  if (::poll(&events, 1, 0) < 0) return errno_status(errno, "poll(UDP socket)");
  if ((events.revents & POLLERR) != 0) return retry(file, "an error waits to be read");
  if ((events.revents & POLLIN) == 0) return absl::OkStatus();
  struct Wanted {
    int level, name, value;
    bool ipv6;
    int saved = 0;
  } wanted[] = {{SOL_SOCKET, SO_PEEK_OFF, 0, false},
                // Merged datagrams are read together in any case; with it they tell their size.
                {IPPROTO_UDP, kUdpGro, 1, false},
                {IPPROTO_IP, IP_PKTINFO, 1, false},
                {IPPROTO_IP, IP_RECVTTL, 1, false},
                {IPPROTO_IP, IP_RECVTOS, 1, false},
                {IPPROTO_IPV6, IPV6_RECVPKTINFO, 1, true},
                {IPPROTO_IPV6, IPV6_RECVHOPLIMIT, 1, true},
                {IPPROTO_IPV6, IPV6_RECVTCLASS, 1, true}};
  absl::Status status;
  std::vector<const Wanted*> changed;
  for (Wanted& option : wanted) {
    if (option.ipv6 && state.family() != AF_INET6) continue;
    const auto before = get_int_option(file.fd, option.level, option.name);
    status = before.status();
    if (!status.ok()) break;
    option.saved = *before;
    if (option.saved == option.value && option.name != SO_PEEK_OFF) continue;
    status = set_int_option(file.fd, option.level, option.name, option.value);
    if (!status.ok()) break;
    changed.push_back(&option);
  }
  if (status.ok()) status = peek_datagrams(file, port, in_capsule, state);
  for (const Wanted* option : changed) {
    const absl::Status back = set_int_option(file.fd, option->level, option->name, option->saved);
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
