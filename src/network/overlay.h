// What joins a node to the segment of the services: its bridge, with the uplink as a port (lan) or
// with a VXLAN device to static peers (overlay). In the calling thread's network namespace.
#ifndef GODWIT_NETWORK_OVERLAY_H_
#define GODWIT_NETWORK_OVERLAY_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "network/ip.h"
#include "network/netlink.h"

namespace godwit::network {

inline constexpr char kNodeBridge[] = "gw0";
inline constexpr char kUplink[] = "up0";
inline constexpr char kVxlan[] = "gwx0";
// Room that VXLAN takes of the underlay's MTU over IPv4 (50) and IPv6 (70); the larger is used.
inline constexpr uint32_t kVxlanOverhead = 70;

// Addresses and up. Without duplicate address detection, also of the link-local address: for its
// two seconds a node could not ask for a neighbour (a solicitation comes from that address).
absl::Status bring_up_with(Netlink& netlink, const std::string& name, int ifindex,
                           const std::vector<IpPrefix>& addresses);

struct LanSpec {
  std::string bridge = kNodeBridge;
  std::string uplink = kUplink;     // becomes a port of the bridge; its addresses stay on it
  std::vector<IpPrefix> addresses;  // the node's, on the bridge
  uint32_t mtu = 1500;
};
// Idempotent: what is there already stays.
absl::Status set_up_lan(const LanSpec& spec);

struct OverlaySpec {
  std::string bridge = kNodeBridge;
  std::string vxlan = kVxlan;
  uint32_t vni = 7;
  IpAddress local;                  // of this node in the underlay
  std::vector<IpAddress> peers;     // the other nodes there
  std::vector<IpPrefix> addresses;  // the node's own, on the bridge
  // The same on every node: the services' default route leads to the node they are on, which
  // forwards, and each node lets clients in.
  std::vector<IpPrefix> gateways;
  uint32_t underlay_mtu = 1500;
};
inline uint32_t overlay_mtu(uint32_t underlay_mtu) { return underlay_mtu - kVxlanOverhead; }
// Idempotent; peers are added, not taken away.
absl::Status set_up_overlay(const OverlaySpec& spec);

// Points this node's forwarding at once to where `mac` is from now on; what the network learns from
// the capsule's own frames later overrides it.
absl::Status move_forwarding(const OverlaySpec& spec, const MacAddress& mac,
                             const IpAddress& to_peer);
// The capsule came here: forgets the peer.
absl::Status forget_forwarding(const OverlaySpec& spec, const MacAddress& mac,
                               const IpAddress& old_peer);

}  // namespace godwit::network

#endif  // GODWIT_NETWORK_OVERLAY_H_
