// Forwarding entries are neighbours of family AF_BRIDGE: of the bridge above a port (NTF_MASTER) or
// of a VXLAN device itself (NTF_SELF): bridge(8), net/core/rtnetlink.c rtnl_fdb_add().
#include <linux/if_bridge.h>
#include <linux/neighbour.h>
#include <linux/rtnetlink.h>
#include <sys/socket.h>

#include "base/status.h"
#include "network/netlink.h"
#include "network/netlink_message.h"

namespace godwit::network {

absl::Status Netlink::forwarding_entry(int type, int flags, int ifindex, const MacAddress& mac,
                                       uint8_t entry_flags, uint16_t state, const IpAddress* to) {
  ndmsg header{};
  header.ndm_family = AF_BRIDGE;
  header.ndm_ifindex = ifindex;
  header.ndm_flags = entry_flags;
  header.ndm_state = state;
  Request request(type, flags, header);
  request.put(NDA_LLADDR, mac);
  if (to != nullptr) request.put(NDA_DST, *to);
  return talk(request.get(), fmt::format("forwarding entry {} on link {}{}", mac.text(), ifindex,
                                         to != nullptr ? " to " + to->text() : ""));
}

// NUD_REACHABLE makes a dynamic entry: learning moves it. NUD_PERMANENT would pin it.
absl::Status Netlink::set_bridge_forwarding(int port_ifindex, const MacAddress& mac) {
  return forwarding_entry(RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, port_ifindex, mac, NTF_MASTER,
                          NUD_REACHABLE, nullptr);
}

// A number that is not nested is the state (net/bridge/br_netlink.c, br_setlink()).
absl::Status Netlink::set_bridge_port(int port_ifindex, bool forwarding) {
  ifinfomsg header{};
  header.ifi_family = AF_BRIDGE;
  header.ifi_index = port_ifindex;
  Request request(RTM_SETLINK, 0, header);
  request.put_u8(IFLA_PROTINFO, forwarding ? BR_STATE_FORWARDING : BR_STATE_DISABLED);
  return talk(request.get(), fmt::format("bridge port {} {}", port_ifindex,
                                         forwarding ? "forwarding" : "disabled"));
}

absl::Status Netlink::delete_bridge_forwarding(int port_ifindex, const MacAddress& mac) {
  const absl::Status status =
      forwarding_entry(RTM_DELNEIGH, 0, port_ifindex, mac, NTF_MASTER, 0, nullptr);
  return errno_of(status) == ENOENT ? absl::OkStatus() : status;
}

absl::StatusOr<int> Netlink::bridge_forwarding(int bridge_ifindex, const MacAddress& mac) {
  ndmsg header{};
  header.ndm_family = AF_BRIDGE;
  Request request(RTM_GETNEIGH, NLM_F_DUMP, header);
  int port = 0;
  const absl::Status status = dump(request.get(), "get forwarding", [&](nlmsghdr* message) {
    nlattr* found[NDA_MAX + 1]{};
    if (message->nlmsg_type != RTM_NEWNEIGH ||
        ::nlmsg_parse(message, sizeof(ndmsg), found, NDA_MAX, nullptr) < 0 ||
        found[NDA_MASTER] == nullptr || found[NDA_LLADDR] == nullptr ||
        ::nla_len(found[NDA_LLADDR]) != 6) {
      return;
    }
    const auto* entry = static_cast<const ndmsg*>(::nlmsg_data(message));
    const auto* lladdr = static_cast<const uint8_t*>(::nla_data(found[NDA_LLADDR]));
    if (static_cast<int>(::nla_get_u32(found[NDA_MASTER])) == bridge_ifindex &&
        std::equal(mac.bytes.begin(), mac.bytes.end(), lladdr)) {
      port = entry->ndm_ifindex;
    }
  });
  GW_RETURN_IF_ERROR(status);
  if (port == 0) {
    return make_error(absl::StatusCode::kNotFound, "bridge {} does not know {}", bridge_ifindex,
                      mac.text());
  }
  return port;
}

absl::Status Netlink::set_vxlan_forwarding(int vxlan_ifindex, const MacAddress& mac,
                                           const IpAddress& to) {
  return forwarding_entry(RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, vxlan_ifindex, mac, NTF_SELF,
                          NUD_REACHABLE, &to);
}

absl::Status Netlink::delete_vxlan_forwarding(int vxlan_ifindex, const MacAddress& mac,
                                              const IpAddress& to) {
  const absl::Status status =
      forwarding_entry(RTM_DELNEIGH, 0, vxlan_ifindex, mac, NTF_SELF, 0, &to);
  return errno_of(status) == ENOENT ? absl::OkStatus() : status;
}

absl::Status Netlink::add_vxlan_peer(int vxlan_ifindex, const IpAddress& peer) {
  const absl::Status status =
      forwarding_entry(RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_APPEND, vxlan_ifindex, MacAddress{},
                       NTF_SELF, NUD_PERMANENT, &peer);
  return errno_of(status) == EEXIST ? absl::OkStatus() : status;
}

absl::Status Netlink::delete_vxlan_peer(int vxlan_ifindex, const IpAddress& peer) {
  return delete_vxlan_forwarding(vxlan_ifindex, MacAddress{}, peer);
}

}  // namespace godwit::network
