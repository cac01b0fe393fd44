#include "network/overlay.h"

#include "base/status.h"
#include "network/netlink.h"
#include "network/netns.h"

namespace godwit::network {
absl::Status bring_up_with(Netlink& netlink, const std::string& name, int ifindex,
                           const std::vector<IpPrefix>& addresses) {
  for (const char* key : {"accept_dad", "dad_transmits"}) {
    GW_RETURN_IF_ERROR(write_net_sysctl_if_present(fmt::format("ipv6/conf/{}/{}", name, key), "0"));
  }
  for (const IpPrefix& address : addresses) {
    GW_RETURN_IF_ERROR(netlink.add_address(ifindex, address));
  }
  LinkChange up;
  up.up = true;
  return netlink.change_link(ifindex, up);
}

namespace {

absl::StatusOr<int> bridge_with(Netlink& netlink, const std::string& name, uint32_t mtu,
                                const std::vector<IpPrefix>& addresses) {
  absl::StatusOr<int> bridge = netlink.ifindex_of(name);
  if (!bridge.ok()) {
    GW_RETURN_IF_ERROR(netlink.create_bridge(name, mtu));
    bridge = netlink.ifindex_of(name);
    GW_RETURN_IF_ERROR(bridge.status());
    // Setting the MAC that it has pins it. Else it follows the lowest of the ports' and changes
    // with the coming and going of services: whoever knew the node by it meets a black hole until
    // the neighbour entry has failed, 8 s later (br_stp_recalculate_bridge_id()).
    GW_ASSIGN_OR_RETURN(const LinkState made, netlink.link_state(name));
    LinkChange keep;
    keep.mac = made.mac;
    GW_RETURN_IF_ERROR(netlink.change_link(*bridge, keep));
  }
  GW_RETURN_IF_ERROR(bring_up_with(netlink, name, *bridge, addresses));
  return bridge;
}

// No addresses of its own on a port: it would speak for itself on the segment.
absl::Status enslave(Netlink& netlink, const std::string& port, int ifindex, int bridge) {
  GW_RETURN_IF_ERROR(
      write_net_sysctl_if_present(fmt::format("ipv6/conf/{}/disable_ipv6", port), "1"));
  LinkChange change;
  change.master = bridge;
  change.up = true;
  return netlink.change_link(ifindex, change);
}

}  // namespace

absl::Status set_up_lan(const LanSpec& spec) {
  GW_ASSIGN_OR_RETURN(Netlink netlink, Netlink::open());
  GW_ASSIGN_OR_RETURN(const int uplink, netlink.ifindex_of(spec.uplink));
  GW_ASSIGN_OR_RETURN(const int bridge,
                      bridge_with(netlink, spec.bridge, spec.mtu, spec.addresses));
  return enslave(netlink, spec.uplink, uplink, bridge);
}

absl::Status set_up_overlay(const OverlaySpec& spec) {
  GW_ASSIGN_OR_RETURN(Netlink netlink, Netlink::open());
  const uint32_t mtu = overlay_mtu(spec.underlay_mtu);
  std::vector<IpPrefix> addresses = spec.addresses;
  // After the node's own, which stays the one that the kernel speaks from.
  addresses.insert(addresses.end(), spec.gateways.begin(), spec.gateways.end());
  GW_ASSIGN_OR_RETURN(const int bridge, bridge_with(netlink, spec.bridge, mtu, addresses));
  absl::StatusOr<int> vxlan = netlink.ifindex_of(spec.vxlan);
  if (!vxlan.ok()) {
    GW_RETURN_IF_ERROR(netlink.create_vxlan(spec.vxlan, spec.vni, spec.local, mtu));
    vxlan = netlink.ifindex_of(spec.vxlan);
    GW_RETURN_IF_ERROR(vxlan.status());
  }
  for (const IpAddress& peer : spec.peers) {
    GW_RETURN_IF_ERROR(netlink.add_vxlan_peer(*vxlan, peer));
  }
  GW_RETURN_IF_ERROR(enslave(netlink, spec.vxlan, *vxlan, bridge));
  GW_RETURN_IF_ERROR(write_net_sysctl("ipv4/ip_forward", "1"));
  return write_net_sysctl_if_present("ipv6/conf/all/forwarding", "1");
}

absl::Status move_forwarding(const OverlaySpec& spec, const MacAddress& mac,
                             const IpAddress& to_peer) {
  GW_ASSIGN_OR_RETURN(Netlink netlink, Netlink::open());
  GW_ASSIGN_OR_RETURN(const int vxlan, netlink.ifindex_of(spec.vxlan));
  GW_RETURN_IF_ERROR(netlink.set_vxlan_forwarding(vxlan, mac, to_peer));
  return netlink.set_bridge_forwarding(vxlan, mac);
}

absl::Status forget_forwarding(const OverlaySpec& spec, const MacAddress& mac,
                               const IpAddress& old_peer) {
  GW_ASSIGN_OR_RETURN(Netlink netlink, Netlink::open());
  GW_ASSIGN_OR_RETURN(const int vxlan, netlink.ifindex_of(spec.vxlan));
  GW_RETURN_IF_ERROR(netlink.delete_vxlan_forwarding(vxlan, mac, old_peer));
  return netlink.delete_bridge_forwarding(vxlan, mac);
}

}  // namespace godwit::network
