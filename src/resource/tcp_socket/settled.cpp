// What of a TCP socket's state only the program can change, packets cannot: read in the rounds, and
// in the freeze before the gate is closed.
//
// The some fifty options of a connection are most of a freeze with many of them. In the freeze
// those of the last round stand for a connection (the description is known by the socket's inode)
// if all of this holds, and are read anew else:
//
//   - it has the same addresses, and nobody has called setsockopt(2) for a socket with its ports
//     since before the rounds, nor for one without a peer, which could have become this one by
//     disconnecting and connecting again (CaptureContext::options_changed(), which also tells of
//     sysctls: TCP_KEEPIDLE, TCP_KEEPINTVL, TCP_KEEPCNT, TCP_LINGER2 and IP_TTL follow one while
//     they are not set);
//   - SO_PEEK_OFF is off (recv(2) moves it), and it is not bound to a device (whose name can
//     change);
//   - IPV6_UNICAST_HOPS is the same, which follows the route while it is not set.
//
// Read in the freeze in any case: the addresses, the signal owner (fcntl(2), ioctl(2)), and with
// the descriptor the status flags (fcntl(2)) and the inode's owner and mode (fchown(2), fchmod(2)).
// The kernel itself changes the buffers' sizes, TCP_MAXSEG and TCP_WINDOW_CLAMP:
// capture_connection() reads them when the gate is closed. It also changes the lowest two bits of
// IP_TOS (ECN), which setsockopt(2) ignores for TCP.
#include <cstring>

#include "base/status.h"
#include "resource/tcp_socket/repair.h"

namespace godwit::resource {
namespace {

constexpr int kSoNetnsCookie = 71;  // asm-generic/socket.h of Linux 5.14

// In front of a settled part, which is: options, addresses, the rest.
struct Head {
  char mark = 0;  // 'c' connected, 'i' idle
  bool may_stand = false;
  int hops = -1;
  uint64_t netns_cookie = 0;
  uint32_t options_size = 0;
  uint32_t addresses_size = 0;
};

char mark_of(bool connected) { return connected ? 'c' : 'i'; }

std::string with_head(const Head& head) {
  std::string text(sizeof head, '\0');
  std::memcpy(text.data(), &head, sizeof head);
  return text;
}

std::optional<Head> head_of(std::string_view settled) {
  Head head;
  if (settled.size() < sizeof head) return std::nullopt;
  std::memcpy(&head, settled.data(), sizeof head);
  return head;
}

struct Ports {
  uint16_t local = 0;
  uint16_t remote = 0;
};

absl::StatusOr<std::string> capture_addresses(const OpenFile& file, const CaptureContext& context,
                                              bool connected, int& family, Ports& ports) {
  const InCapsule in_capsule = [&](absl::FunctionRef<absl::Status()> action) {
    return context.in_capsule(action);
  };
  TcpSocketState state;
  GW_ASSIGN_OR_RETURN(const KernelAddress local, local_address(file.fd));
  family = local.storage.ss_family;
  ports.local = port_of(local);
  state.set_family(local.storage.ss_family);
  GW_RETURN_IF_ERROR(encode_address(local, in_capsule, *state.mutable_local()));
  if (!connected) return state.SerializeAsString();
  KernelAddress remote;
  remote.size = sizeof remote.storage;
  if (::getpeername(file.fd, remote.get(), &remote.size) != 0)
    return errno_status(errno, fmt::format("getpeername({})", file.fd));
  ports.remote = port_of(remote);
  GW_RETURN_IF_ERROR(encode_address(remote, in_capsule, *state.mutable_remote()));
  return state.SerializeAsString();
}

absl::StatusOr<int> hops_of(int fd, int family) {
  if (family != AF_INET6) return -1;
  return get_int_option(fd, IPPROTO_IPV6, IPV6_UNICAST_HOPS);
}

// The options of the last round, if they stand.
absl::StatusOr<std::optional<std::string_view>> options_before(const OpenFile& file,
                                                               const CaptureContext& context,
                                                               int family, Ports ports,
                                                               std::string_view addresses) {
  const std::string_view before = file.settled_before;
  const std::optional<Head> head = head_of(before);
  if (!context.final() || !head || head->mark != mark_of(true) || !head->may_stand)
    return std::nullopt;
  if (before.substr(sizeof *head + head->options_size, head->addresses_size) != addresses ||
      context.options_changed(head->netns_cookie, ports.local, ports.remote))
    return std::nullopt;
  GW_ASSIGN_OR_RETURN(const int hops, hops_of(file.fd, family));
  if (hops != head->hops) return std::nullopt;
  return before.substr(sizeof *head, head->options_size);
}

// And whether they may stand for those of the freeze.
absl::StatusOr<std::string> read_options(const OpenFile& file, int family, bool connected,
                                         Head& head) {
  TcpSocketState state;
  SocketCommon& common = *state.mutable_common();
  GW_RETURN_IF_ERROR(capture_options(file, connected ? kUseTcpConnection : kUseTcpIdle, family,
                                     /*buffers=*/false, common));
  GW_ASSIGN_OR_RETURN(*state.mutable_congestion(), tcp_name_option(file.fd, TCP_CONGESTION));
  if (connected) {
    GW_ASSIGN_OR_RETURN(head.hops, hops_of(file.fd, family));
    socklen_t size = sizeof head.netns_cookie;
    const bool known =
        ::getsockopt(file.fd, SOL_SOCKET, kSoNetnsCookie, &head.netns_cookie, &size) == 0;
    bool peeks = false;
    for (const SocketOption& option : common.options())
      peeks = peeks || (option.level() == SOL_SOCKET && option.name() == SO_PEEK_OFF);
    head.may_stand = known && !peeks && common.bind_device().empty();
  }
  return state.SerializeAsString();
}

}  // namespace

absl::StatusOr<std::string> capture_settled(const OpenFile& file, const CaptureContext& context,
                                            bool connected) {
  Head head;
  head.mark = mark_of(connected);
  int family = 0;
  Ports ports;
  GW_ASSIGN_OR_RETURN(const std::string addresses,
                      capture_addresses(file, context, connected, family, ports));
  std::optional<std::string_view> options;
  if (connected) {
    GW_ASSIGN_OR_RETURN(options, options_before(file, context, family, ports, addresses));
  }
  std::string read_now;
  if (!options) {
    GW_ASSIGN_OR_RETURN(read_now, read_options(file, family, connected, head));
    options = read_now;
  }
  TcpSocketState rest;
  GW_RETURN_IF_ERROR(capture_owners(file, *rest.mutable_common()));
  head.options_size = static_cast<uint32_t>(options->size());
  head.addresses_size = static_cast<uint32_t>(addresses.size());
  std::string settled = with_head(head);
  settled.append(*options).append(addresses);
  rest.AppendToString(&settled);
  return settled;
}

std::optional<std::string_view> settled_state(std::string_view settled, bool connected) {
  const std::optional<Head> head = head_of(settled);
  if (!head || head->mark != mark_of(connected)) return std::nullopt;
  return settled.substr(sizeof *head);
}

absl::StatusOr<std::string> tcp_name_option(int fd, int name) {
  char text[32] = {};
  socklen_t size = sizeof text - 1;
  if (::getsockopt(fd, IPPROTO_TCP, name, text, &size) != 0) {
    if (errno == ENOPROTOOPT) return std::string();
    return errno_status(errno, fmt::format("getsockopt({}, IPPROTO_TCP, {})", fd, name));
  }
  return std::string(text);
}

}  // namespace godwit::resource
