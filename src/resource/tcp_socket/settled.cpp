// What of a TCP socket's state only the program can change, packets cannot: read in the rounds, and
// in the freeze before the gate is closed.
//
// The some fifty options of a connection are most of a freeze, and of a round, with many of them.
// Those of the first round stand for a connection (the description is known by the socket's inode)
// as long as all of this holds, and are read anew else; what is done to it while a round looks at
// it the next round or the freeze sees:
//
//   - it has the same addresses, and nobody has called setsockopt(2) for a socket with its ports
//     since before the rounds, nor for one without a peer, such as one that listens, which could
//     also have become this one by disconnecting and connecting again
//     (CaptureContext::options_changed(), which also tells of sysctls: TCP_KEEPIDLE, TCP_KEEPINTVL,
//     TCP_KEEPCNT, TCP_LINGER2 and IP_TTL follow one while they are not set);
//   - SO_PEEK_OFF is off (recv(2) moves it), and it is not bound to a device (whose name can
//     change);
//   - IPV6_UNICAST_HOPS is the same, which follows the route while it is not set.
//
// Where the kernel shows its view of the connection (fd_table/file_view.h) all of this is known
// without a descriptor: settled_stands().
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
  char mark = 0;  // 'c' connected, 'l' listening, 'i' idle
  bool may_stand = false;
  int hops = -1;
  uint64_t netns_cookie = 0;
  uint32_t options_size = 0;
  uint32_t addresses_size = 0;
  // Of a connection, as in a TcpView.
  TcpView::Addresses addresses{};
  Negotiated negotiated;
  bool owned = false;  // somebody gets its signals
};

char mark_of(TcpState state) {
  if (is_connected(state)) return 'c';
  return state == TCP_STATE_LISTEN ? 'l' : 'i';
}

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

// getsockname(2) and getpeername(2) as the kernel has them; a mapped address of IPv4 is one of
// IPv6.
TcpView::Addresses raw_addresses(const KernelAddress& local, const KernelAddress& remote) {
  TcpView::Addresses raw{};
  raw.family = local.storage.ss_family;
  raw.num = port_of(local);
  if (raw.family == AF_INET) {
    sockaddr_in from{}, to{};
    std::memcpy(&from, &local.storage, sizeof from);
    std::memcpy(&to, &remote.storage, sizeof to);
    raw.rcv_saddr = from.sin_addr.s_addr;
    raw.daddr = to.sin_addr.s_addr;
    raw.dport = to.sin_port;
  } else {
    sockaddr_in6 from{}, to{};
    std::memcpy(&from, &local.storage, sizeof from);
    std::memcpy(&to, &remote.storage, sizeof to);
    std::memcpy(&raw.v6_rcv_saddr, &from.sin6_addr, sizeof raw.v6_rcv_saddr);
    std::memcpy(&raw.v6_daddr, &to.sin6_addr, sizeof raw.v6_daddr);
    raw.dport = to.sin6_port;
  }
  return raw;
}

bool same_ends(const TcpView::Addresses& a, const TcpView::Addresses& b) {
  if (a.family != b.family || a.num != b.num || a.dport != b.dport) return false;
  return a.family == AF_INET ? a.daddr == b.daddr && a.rcv_saddr == b.rcv_saddr
                             : a.v6_daddr == b.v6_daddr && a.v6_rcv_saddr == b.v6_rcv_saddr;
}

absl::StatusOr<std::string> capture_addresses(const OpenFile& file, const CaptureContext& context,
                                              bool connected, int& family,
                                              TcpView::Addresses& raw) {
  const auto in_capsule = [&](absl::FunctionRef<absl::Status()> action) {
    return context.in_capsule(action);
  };
  TcpSocketState state;
  GW_ASSIGN_OR_RETURN(const KernelAddress local, local_address(file.fd));
  family = local.storage.ss_family;
  state.set_family(local.storage.ss_family);
  GW_RETURN_IF_ERROR(encode_address(local, in_capsule, *state.mutable_local()));
  if (!connected) return state.SerializeAsString();
  KernelAddress remote;
  remote.size = sizeof remote.storage;
  if (::getpeername(file.fd, remote.get(), &remote.size) != 0)
    return errno_status(errno, fmt::format("getpeername({})", file.fd));
  raw = raw_addresses(local, remote);
  GW_RETURN_IF_ERROR(encode_address(remote, in_capsule, *state.mutable_remote()));
  return state.SerializeAsString();
}

absl::StatusOr<int> hops_of(int fd, int family) {
  if (family != AF_INET6) return -1;
  return get_int_option(fd, IPPROTO_IPV6, IPV6_UNICAST_HOPS);
}

// The options of an earlier round, if they stand; `head` then says of them what it said there.
absl::StatusOr<std::optional<std::string_view>> options_before(const OpenFile& file,
                                                               const CaptureContext& context,
                                                               int family,
                                                               std::string_view addresses,
                                                               Head& head) {
  const std::string_view text = file.settled_before;
  const std::optional<Head> before = head_of(text);
  if (!before || before->mark != head.mark || !before->may_stand) return std::nullopt;
  if (text.substr(sizeof *before + before->options_size, before->addresses_size) != addresses ||
      context.options_changed(before->netns_cookie, head.addresses.num,
                              ntohs(head.addresses.dport)))
    return std::nullopt;
  GW_ASSIGN_OR_RETURN(const int hops, hops_of(file.fd, family));
  if (hops != before->hops) return std::nullopt;
  head.may_stand = true;
  head.hops = hops;
  head.netns_cookie = before->netns_cookie;
  return text.substr(sizeof *before, before->options_size);
}

// And whether they may stand for those of the freeze.
absl::StatusOr<std::string> read_options(const OpenFile& file, int family, bool connected,
                                         Head& head) {
  TcpSocketState state;
  SocketCommon& common = *state.mutable_common();
  GW_RETURN_IF_ERROR(capture_options(file, connected ? kUseTcpConnection : kUseTcpIdle, family,
                                     /*buffers=*/false, common));
  GW_ASSIGN_OR_RETURN(*state.mutable_congestion(), tcp_name_option(file.fd, TCP_CONGESTION));
  if (head.mark != 'i') {
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

absl::StatusOr<Negotiated> read_negotiated(int fd, const tcp_info& info) {
  Negotiated all;
  all.known = true;
  all.window_scaling = (info.tcpi_options & TCPI_OPT_WSCALE) != 0;
  all.sack = (info.tcpi_options & TCPI_OPT_SACK) != 0;
  all.timestamps = (info.tcpi_options & TCPI_OPT_TIMESTAMPS) != 0;
  all.send_scale = info.tcpi_snd_wscale;
  all.receive_scale = info.tcpi_rcv_wscale;
  if (!all.timestamps) return all;
  GW_ASSIGN_OR_RETURN(const int timestamp, get_int_option(fd, IPPROTO_TCP, TCP_TIMESTAMP));
  all.timestamp_us = (timestamp & 1) != 0;
  return all;
}

}  // namespace

absl::StatusOr<std::string> capture_settled(const OpenFile& file, const CaptureContext& context,
                                            const tcp_info& info) {
  const auto tcp_state = static_cast<TcpState>(info.tcpi_state);
  const bool connected = is_connected(tcp_state);
  Head head;
  head.mark = mark_of(tcp_state);
  int family = 0;
  GW_ASSIGN_OR_RETURN(const std::string addresses,
                      capture_addresses(file, context, connected, family, head.addresses));
  std::optional<std::string_view> options;
  if (head.mark != 'i') {
    GW_ASSIGN_OR_RETURN(options, options_before(file, context, family, addresses, head));
  }
  if (connected && !context.final()) {
    GW_ASSIGN_OR_RETURN(head.negotiated, read_negotiated(file.fd, info));
  }
  std::string read_now;
  if (!options) {
    GW_ASSIGN_OR_RETURN(read_now, read_options(file, family, connected, head));
    options = read_now;
  }
  TcpSocketState rest;
  GW_RETURN_IF_ERROR(capture_owners(file, *rest.mutable_common()));
  head.owned = rest.common().has_owner();
  head.options_size = static_cast<uint32_t>(options->size());
  head.addresses_size = static_cast<uint32_t>(addresses.size());
  std::string settled = with_head(head);
  settled.append(*options).append(addresses);
  rest.AppendToString(&settled);
  return settled;
}

std::optional<std::string_view> settled_state(std::string_view settled, TcpState state) {
  const std::optional<Head> head = head_of(settled);
  if (!head || head->mark != mark_of(state)) return std::nullopt;
  return settled.substr(sizeof *head);
}

Negotiated negotiated_of(std::string_view settled) {
  const std::optional<Head> head = head_of(settled);
  return head ? head->negotiated : Negotiated();
}

// IPV6_UNICAST_HOPS of a connection that speaks IPv4 means nothing while it does.
bool settled_stands(const OpenFile& before, const FileView& now, const CaptureContext& context) {
  const std::optional<Head> head = head_of(before.settled);
  if (!head || head->mark != 'c' || !head->may_stand || head->owned || !head->negotiated.known)
    return false;
  const TcpView::Addresses& ends = now.tcp.addresses;
  const bool mapped =
      ends.v6_daddr[0] == 0 && ends.v6_daddr[1] == 0 && ends.v6_daddr[2] == htonl(0xffff);
  const bool own_hops = ends.family != AF_INET6 || mapped || ends.hop_limit >= 0;
  return own_hops && same_ends(ends, head->addresses) && now.owner == 0 &&
         now.flags == static_cast<uint32_t>(before.status_flags) && now.uid == before.stat.st_uid &&
         now.gid == before.stat.st_gid && now.mode == before.stat.st_mode &&
         !context.options_changed(head->netns_cookie, ends.num, ntohs(ends.dport));
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
