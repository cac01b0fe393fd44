#include "network/netlink.h"

#include <linux/if.h>
#include <linux/if_bridge.h>
#include <linux/if_link.h>
#include <linux/neighbour.h>
#include <linux/rtnetlink.h>
#include <linux/veth.h>
#include <netlink/netlink.h>
#include <netlink/socket.h>
#include <poll.h>
#include <sys/socket.h>

#include <cstring>
#include <utility>

#include "base/status.h"
#include "network/netlink_message.h"

namespace godwit::network {
namespace {

constexpr uint16_t kVxlanPort = 4789;  // RFC 7348
constexpr int kCreate = NLM_F_CREATE | NLM_F_EXCL;
constexpr int kReplace = NLM_F_CREATE | NLM_F_REPLACE;

ifinfomsg link_header(int ifindex = 0) {
  ifinfomsg header{};
  header.ifi_family = AF_UNSPEC;
  header.ifi_index = ifindex;
  return header;
}

// State of one talk: libnl turns errno into its own smaller set, so the kernel's is kept here.
struct Exchange {
  int error = 0;
  bool done = false;
  absl::FunctionRef<void(nlmsghdr*)> each;
};

int on_error(sockaddr_nl*, nlmsgerr* answer, void* argument) {
  auto* exchange = static_cast<Exchange*>(argument);
  exchange->error = -answer->error;
  exchange->done = true;
  return NL_STOP;
}
int on_end(nl_msg*, void* argument) {
  static_cast<Exchange*>(argument)->done = true;
  return NL_STOP;
}
int on_message(nl_msg* message, void* argument) {
  static_cast<Exchange*>(argument)->each(::nlmsg_hdr(message));
  return NL_OK;
}

absl::Status exchange_messages(nl_sock* socket, nl_msg* message, const std::string& what,
                               absl::FunctionRef<void(nlmsghdr*)> each) {
  const int sent = ::nl_send_auto(socket, message);
  if (sent < 0) {
    return make_error(absl::StatusCode::kInternal, "netlink {}: {}", what, ::nl_geterror(sent));
  }
  Exchange exchange{0, false, each};
  nl_cb* callbacks = ::nl_cb_alloc(NL_CB_DEFAULT);
  ::nl_cb_err(callbacks, NL_CB_CUSTOM, on_error, &exchange);
  ::nl_cb_set(callbacks, NL_CB_ACK, NL_CB_CUSTOM, on_end, &exchange);
  ::nl_cb_set(callbacks, NL_CB_FINISH, NL_CB_CUSTOM, on_end, &exchange);
  ::nl_cb_set(callbacks, NL_CB_VALID, NL_CB_CUSTOM, on_message, &exchange);
  int received = 0;
  while (!exchange.done && received >= 0) received = ::nl_recvmsgs(socket, callbacks);
  ::nl_cb_put(callbacks);
  if (exchange.error != 0) return errno_status(exchange.error, "netlink " + what);
  if (!exchange.done) {
    return make_error(absl::StatusCode::kInternal, "netlink {}: {}", what, ::nl_geterror(received));
  }
  return absl::OkStatus();
}

MacAddress mac_of(const nlattr* attribute) {
  MacAddress mac;
  if (attribute != nullptr && ::nla_len(attribute) == 6) {
    std::memcpy(mac.bytes.data(), ::nla_data(attribute), 6);
  }
  return mac;
}

std::optional<IpAddress> ip_of(int family, const nlattr* attribute) {
  IpAddress ip;
  ip.family = family;
  if (attribute == nullptr || static_cast<size_t>(::nla_len(attribute)) != ip.size()) {
    return std::nullopt;
  }
  std::memcpy(ip.bytes.data(), ::nla_data(attribute), ip.size());
  return ip;
}

}  // namespace

absl::StatusOr<Netlink> Netlink::open() {
  nl_sock* socket = ::nl_socket_alloc();
  if (socket == nullptr) return absl::ResourceExhaustedError("nl_socket_alloc: no memory");
  Netlink result(socket);
  const int error = ::nl_connect(socket, NETLINK_ROUTE);
  if (error < 0) {
    return make_error(absl::StatusCode::kInternal, "nl_connect(NETLINK_ROUTE): {}",
                      ::nl_geterror(error));
  }
  return result;
}

Netlink::Netlink(Netlink&& other) noexcept : socket_(std::exchange(other.socket_, nullptr)) {}
Netlink& Netlink::operator=(Netlink&& other) noexcept {
  std::swap(socket_, other.socket_);
  return *this;
}
Netlink::~Netlink() {
  if (socket_ != nullptr) ::nl_socket_free(socket_);
}

absl::Status Netlink::talk(nl_msg* message, const std::string& what) {
  ::nlmsg_hdr(message)->nlmsg_flags |= NLM_F_ACK;
  return exchange_messages(socket_, message, what, [](nlmsghdr*) {});
}

absl::Status Netlink::dump(nl_msg* message, const std::string& what,
                           absl::FunctionRef<void(nlmsghdr*)> each) {
  return exchange_messages(socket_, message, what, each);
}

absl::Status Netlink::create_veth(const VethEnd& here, const VethEnd& peer, uint32_t mtu,
                                  uint32_t txqueuelen) {
  Request request(RTM_NEWLINK, kCreate, link_header());
  const auto describe = [&](const VethEnd& end) {
    request.put(IFLA_IFNAME, end.name);
    if (!end.mac.is_zero()) request.put(IFLA_ADDRESS, end.mac);
    if (end.netns_fd) request.put_u32(IFLA_NET_NS_FD, static_cast<uint32_t>(*end.netns_fd));
    request.put_u32(IFLA_MTU, mtu);
    request.put_u32(IFLA_TXQLEN, txqueuelen);
  };
  describe(here);
  {
    Request::Nest info(request, IFLA_LINKINFO);
    request.put(IFLA_INFO_KIND, "veth");
    Request::Nest data(request, IFLA_INFO_DATA);
    Request::Nest of_peer(request, VETH_INFO_PEER);
    request.put_struct(link_header());
    describe(peer);
  }
  return talk(request.get(), fmt::format("create veth {} - {}", here.name, peer.name));
}

absl::Status Netlink::create_bridge(const std::string& name, uint32_t mtu) {
  Request request(RTM_NEWLINK, kCreate, link_header());
  request.put(IFLA_IFNAME, name);
  request.put_u32(IFLA_MTU, mtu);
  {
    Request::Nest info(request, IFLA_LINKINFO);
    request.put(IFLA_INFO_KIND, "bridge");
    Request::Nest data(request, IFLA_INFO_DATA);
    request.put_u32(IFLA_BR_STP_STATE, 0);
    request.put_u8(IFLA_BR_MCAST_SNOOPING, 0);
  }
  return talk(request.get(), "create bridge " + name);
}

absl::Status Netlink::create_vxlan(const std::string& name, uint32_t vni, const IpAddress& local,
                                   uint32_t mtu) {
  Request request(RTM_NEWLINK, kCreate, link_header());
  request.put(IFLA_IFNAME, name);
  request.put_u32(IFLA_MTU, mtu);
  {
    Request::Nest info(request, IFLA_LINKINFO);
    request.put(IFLA_INFO_KIND, "vxlan");
    Request::Nest data(request, IFLA_INFO_DATA);
    request.put_u32(IFLA_VXLAN_ID, vni);
    request.put(local.is_v6() ? IFLA_VXLAN_LOCAL6 : IFLA_VXLAN_LOCAL, local);
    request.put_u16(IFLA_VXLAN_PORT, __builtin_bswap16(kVxlanPort));
    request.put_u8(IFLA_VXLAN_LEARNING, 1);
  }
  return talk(request.get(), fmt::format("create vxlan {} id {}", name, vni));
}

absl::Status Netlink::delete_link(const std::string& name) {
  Request request(RTM_DELLINK, 0, link_header());
  request.put(IFLA_IFNAME, name);
  const absl::Status status = talk(request.get(), "delete link " + name);
  return errno_of(status) == ENODEV ? absl::OkStatus() : status;
}

absl::Status Netlink::change_link(int ifindex, const LinkChange& change) {
  ifinfomsg header = link_header(ifindex);
  if (change.up) {
    header.ifi_change = IFF_UP;
    header.ifi_flags = *change.up ? IFF_UP : 0;
  }
  Request request(RTM_NEWLINK, 0, header);
  if (change.master) request.put_u32(IFLA_MASTER, static_cast<uint32_t>(*change.master));
  if (change.mac) request.put(IFLA_ADDRESS, *change.mac);
  if (change.mtu) request.put_u32(IFLA_MTU, *change.mtu);
  if (change.txqueuelen) request.put_u32(IFLA_TXQLEN, *change.txqueuelen);
  if (change.netns_fd) request.put_u32(IFLA_NET_NS_FD, static_cast<uint32_t>(*change.netns_fd));
  return talk(request.get(), fmt::format("change link {}", ifindex));
}

absl::Status Netlink::no_generated_addresses(int ifindex) {
  Request request(RTM_NEWLINK, 0, link_header(ifindex));
  {
    Request::Nest spec(request, IFLA_AF_SPEC);
    Request::Nest inet6(request, AF_INET6);
    request.put_u8(IFLA_INET6_ADDR_GEN_MODE, IN6_ADDR_GEN_MODE_NONE);
  }
  return talk(request.get(), fmt::format("addrgenmode none of link {}", ifindex));
}

absl::StatusOr<LinkState> Netlink::link_state(const std::string& name) {
  Request request(RTM_GETLINK, NLM_F_ACK, link_header());
  request.put(IFLA_IFNAME, name);
  LinkState state;
  const absl::Status status = dump(request.get(), "get link " + name, [&](nlmsghdr* message) {
    if (message->nlmsg_type != RTM_NEWLINK) return;
    nlattr* found[IFLA_MAX + 1]{};
    if (::nlmsg_parse(message, sizeof(ifinfomsg), found, IFLA_MAX, nullptr) < 0) return;
    const auto* header = static_cast<const ifinfomsg*>(::nlmsg_data(message));
    state.ifindex = header->ifi_index;
    state.up = (header->ifi_flags & IFF_UP) != 0;
    if (found[IFLA_OPERSTATE] != nullptr && found[IFLA_CARRIER] != nullptr) {
      // Unknown: the carrier has been there since the device was made.
      const uint8_t oper = ::nla_get_u8(found[IFLA_OPERSTATE]);
      state.operational =
          ::nla_get_u8(found[IFLA_CARRIER]) != 0 && (oper == IF_OPER_UP || oper == IF_OPER_UNKNOWN);
    }
    if (found[IFLA_MASTER] != nullptr) {
      state.master = static_cast<int>(::nla_get_u32(found[IFLA_MASTER]));
    }
    if (found[IFLA_MTU] != nullptr) state.mtu = ::nla_get_u32(found[IFLA_MTU]);
    state.mac = mac_of(found[IFLA_ADDRESS]);
    if (found[IFLA_STATS64] != nullptr) {
      rtnl_link_stats64 statistics{};
      ::nla_memcpy(&statistics, found[IFLA_STATS64], sizeof statistics);
      state.tx_dropped = statistics.tx_dropped;
    }
    nlattr* info[IFLA_INFO_MAX + 1]{};
    if (found[IFLA_LINKINFO] == nullptr ||
        ::nla_parse_nested(info, IFLA_INFO_MAX, found[IFLA_LINKINFO], nullptr) < 0 ||
        info[IFLA_INFO_SLAVE_KIND] == nullptr || info[IFLA_INFO_SLAVE_DATA] == nullptr ||
        std::strcmp(::nla_get_string(info[IFLA_INFO_SLAVE_KIND]), "bridge") != 0) {
      return;
    }
    nlattr* port[IFLA_BRPORT_MAX + 1]{};
    if (::nla_parse_nested(port, IFLA_BRPORT_MAX, info[IFLA_INFO_SLAVE_DATA], nullptr) < 0) return;
    if (port[IFLA_BRPORT_STATE] != nullptr) {
      state.bridge_port_state = ::nla_get_u8(port[IFLA_BRPORT_STATE]);
    }
  });
  GW_RETURN_IF_ERROR(status);
  return state;
}

absl::StatusOr<int> Netlink::ifindex_of(const std::string& name) {
  absl::StatusOr<LinkState> state = link_state(name);
  if (!state.ok()) {
    if (errno_of(state.status()) != ENODEV) return state.status();
    return make_error(absl::StatusCode::kNotFound, "{}: no such interface here", name);
  }
  return state->ifindex;
}

absl::Status Netlink::wait_for(const std::string& name, const Deadline& deadline, const char* what,
                               absl::FunctionRef<bool(const LinkState&)> reached) {
  for (;;) {
    GW_ASSIGN_OR_RETURN(const LinkState state, link_state(name));
    if (reached(state)) return absl::OkStatus();
    if (deadline.passed()) {
      return make_error(absl::StatusCode::kDeadlineExceeded,
                        "{}: not {} (up {}, operational {}, bridge port state {}): is the other "
                        "end up?",
                        name, what, state.up, state.operational, state.bridge_port_state);
    }
    // Link messages would come just as late as the state changes, so polling loses nothing.
    ::poll(nullptr, 0, 1);
  }
}

absl::Status Netlink::wait_operational(const std::string& name, const Deadline& deadline) {
  return wait_for(name, deadline, "operational",
                  [](const LinkState& state) { return state.operational; });
}

absl::Status Netlink::wait_forwarding(const std::string& port, const Deadline& deadline) {
  return wait_for(port, deadline, "forwarding", [](const LinkState& state) {
    return state.bridge_port_state == BR_STATE_FORWARDING;
  });
}

absl::Status Netlink::add_address(int ifindex, const IpPrefix& address) {
  ifaddrmsg header{};
  header.ifa_family = static_cast<uint8_t>(address.ip.family);
  header.ifa_prefixlen = address.length;
  header.ifa_index = static_cast<uint32_t>(ifindex);
  Request request(RTM_NEWADDR, kCreate, header);
  request.put(IFA_LOCAL, address.ip);
  request.put(IFA_ADDRESS, address.ip);
  if (address.ip.is_v6()) {
    request.put_u32(IFA_FLAGS, IFA_F_NODAD);
  } else if (address.length < 31) {
    IpAddress broadcast = address.ip;
    for (size_t bit = address.length; bit < 32; ++bit) {
      broadcast.bytes[bit / 8] |= static_cast<uint8_t>(0x80u >> (bit % 8));
    }
    request.put(IFA_BROADCAST, broadcast);
  }
  const absl::Status status =
      talk(request.get(), fmt::format("add address {} to link {}", address.text(), ifindex));
  return errno_of(status) == EEXIST ? absl::OkStatus() : status;
}

absl::StatusOr<std::vector<IpPrefix>> Netlink::addresses(int ifindex) {
  Request request(RTM_GETADDR, NLM_F_DUMP, ifaddrmsg{});
  std::vector<IpPrefix> result;
  const absl::Status status = dump(request.get(), "get addresses", [&](nlmsghdr* message) {
    nlattr* found[IFA_MAX + 1]{};
    if (message->nlmsg_type != RTM_NEWADDR ||
        ::nlmsg_parse(message, sizeof(ifaddrmsg), found, IFA_MAX, nullptr) < 0) {
      return;
    }
    const auto* header = static_cast<const ifaddrmsg*>(::nlmsg_data(message));
    if (header->ifa_index != static_cast<uint32_t>(ifindex)) return;
    const nlattr* ip = found[IFA_LOCAL] != nullptr ? found[IFA_LOCAL] : found[IFA_ADDRESS];
    if (const auto address = ip_of(header->ifa_family, ip)) {
      result.push_back({*address, header->ifa_prefixlen});
    }
  });
  GW_RETURN_IF_ERROR(status);
  return result;
}

absl::Status Netlink::add_route(const IpPrefix& to, const std::optional<IpAddress>& gateway,
                                int ifindex) {
  rtmsg header{};
  header.rtm_family = static_cast<uint8_t>(to.ip.family);
  header.rtm_dst_len = to.length;
  header.rtm_table = RT_TABLE_MAIN;
  header.rtm_protocol = RTPROT_STATIC;
  header.rtm_scope = gateway || to.ip.is_v6() ? RT_SCOPE_UNIVERSE : RT_SCOPE_LINK;
  header.rtm_type = RTN_UNICAST;
  Request request(RTM_NEWROUTE, kReplace, header);
  if (to.length != 0) request.put(RTA_DST, to.ip);
  if (gateway) request.put(RTA_GATEWAY, *gateway);
  if (ifindex != 0) request.put_u32(RTA_OIF, static_cast<uint32_t>(ifindex));
  return talk(request.get(),
              fmt::format("add route to {} via {}", to.text(), gateway ? gateway->text() : "link"));
}

absl::Status Netlink::add_neighbour(const Neighbour& neighbour) {
  ndmsg header{};
  header.ndm_family = static_cast<uint8_t>(neighbour.ip.family);
  header.ndm_ifindex = neighbour.ifindex;
  header.ndm_state = neighbour.state;
  Request request(RTM_NEWNEIGH, kReplace, header);
  request.put(NDA_DST, neighbour.ip);
  request.put(NDA_LLADDR, neighbour.mac);
  return talk(request.get(),
              fmt::format("add neighbour {} at {}", neighbour.ip.text(), neighbour.mac.text()));
}

absl::StatusOr<std::vector<Neighbour>> Netlink::neighbours(int ifindex) {
  ndmsg header{};
  header.ndm_ifindex = ifindex;
  Request request(RTM_GETNEIGH, NLM_F_DUMP, header);
  std::vector<Neighbour> result;
  const absl::Status status = dump(request.get(), "get neighbours", [&](nlmsghdr* message) {
    nlattr* found[NDA_MAX + 1]{};
    if (message->nlmsg_type != RTM_NEWNEIGH ||
        ::nlmsg_parse(message, sizeof(ndmsg), found, NDA_MAX, nullptr) < 0) {
      return;
    }
    const auto* entry = static_cast<const ndmsg*>(::nlmsg_data(message));
    const auto ip = ip_of(entry->ndm_family, found[NDA_DST]);
    // Incomplete and failed entries have no MAC; multicast and loopback ones are NOARP.
    if (entry->ndm_ifindex != ifindex || !ip || found[NDA_LLADDR] == nullptr ||
        (entry->ndm_state & (NUD_NOARP | NUD_FAILED | NUD_INCOMPLETE)) != 0) {
      return;
    }
    result.push_back({ifindex, *ip, mac_of(found[NDA_LLADDR]), entry->ndm_state});
  });
  GW_RETURN_IF_ERROR(status);
  return result;
}

}  // namespace godwit::network
