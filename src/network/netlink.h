// rtnetlink(7) over libnl-3: links, addresses, routes, neighbours, bridge forwarding entries. All
// calls act in the network namespace in which the Netlink object was opened, which is the calling
// thread's at that time. Errors carry the kernel's own errno.
#ifndef GODWIT_NETWORK_NETLINK_H_
#define GODWIT_NETWORK_NETLINK_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/clock.h"
#include "network/ip.h"

struct nl_sock;
struct nl_msg;
struct nlmsghdr;

namespace godwit::network {

struct LinkState {
  int ifindex = 0;
  bool up = false;             // IFF_UP
  bool operational = false;    // carrier, and IFLA_OPERSTATE says so or nothing
  int bridge_port_state = -1;  // 3: forwarding (BR_STATE_FORWARDING); -1: not a port of a bridge
  int master = 0;
  uint32_t mtu = 0;
  uint64_t tx_dropped = 0;  // IFLA_STATS64
  MacAddress mac;
};

struct VethEnd {
  std::string name;
  std::optional<int> netns_fd;  // created directly in there; nothing: here
  MacAddress mac;               // zero: the kernel's choice
};

// How a change of a link is described; only what is set is changed.
struct LinkChange {
  std::optional<bool> up;
  std::optional<int> master;  // 0: none
  std::optional<MacAddress> mac;
  std::optional<uint32_t> mtu;
  std::optional<uint32_t> txqueuelen;
  std::optional<int> netns_fd;  // moved to there
};

struct Neighbour {
  int ifindex = 0;
  IpAddress ip;
  MacAddress mac;
  uint16_t state = 0;  // NUD_*
};

class Netlink {
 public:
  static absl::StatusOr<Netlink> open();
  Netlink(Netlink&&) noexcept;
  Netlink& operator=(Netlink&&) noexcept;
  ~Netlink();

  absl::Status create_veth(const VethEnd& here, const VethEnd& peer, uint32_t mtu,
                           uint32_t txqueuelen);
  // No STP, no multicast snooping (it would filter neighbour solicitations to silent hosts).
  absl::Status create_bridge(const std::string& name, uint32_t mtu);
  // UDP port 4789; learns where a MAC is from what arrives.
  absl::Status create_vxlan(const std::string& name, uint32_t vni, const IpAddress& local,
                            uint32_t mtu);
  absl::Status delete_link(const std::string& name);  // OK when there is none
  absl::Status change_link(int ifindex, const LinkChange& change);
  // IPv6 link-local addresses are not made by the kernel (IN6_ADDR_GEN_MODE_NONE, 4.2).
  absl::Status no_generated_addresses(int ifindex);
  absl::StatusOr<int> ifindex_of(const std::string& name);  // kNotFound when there is none
  absl::StatusOr<LinkState> link_state(const std::string& name);
  // The kernel's linkwatch sees a carrier up to a second after "up". Until then a veth or bridge
  // drops what is sent on it (its queue is still "noop"), and a bridge what comes in on a port.
  absl::Status wait_operational(const std::string& name, const Deadline& deadline);
  absl::Status wait_forwarding(const std::string& port, const Deadline& deadline);

  // v6 addresses are added with IFA_F_NODAD: usable at once and silent. Existing: OK.
  absl::Status add_address(int ifindex, const IpPrefix& address);
  absl::StatusOr<std::vector<IpPrefix>> addresses(int ifindex);
  // `gateway` nothing: on link. Replaces an equal route.
  absl::Status add_route(const IpPrefix& to, const std::optional<IpAddress>& gateway, int ifindex);
  absl::Status add_neighbour(const Neighbour& neighbour);  // replaces
  absl::StatusOr<std::vector<Neighbour>> neighbours(int ifindex);

  // Forwarding entry of a bridge: `mac` is behind `port_ifindex` (dynamic: learning may move it).
  absl::Status set_bridge_forwarding(int port_ifindex, const MacAddress& mac);
  // Port on which the bridge `bridge_ifindex` has `mac`; kNotFound when it knows none.
  absl::StatusOr<int> bridge_forwarding(int bridge_ifindex, const MacAddress& mac);
  // Whether a bridge without STP sends to the port and takes from it (BR_STATE_FORWARDING), or
  // neither (BR_STATE_DISABLED). At once, other than setting the port's link up or down.
  absl::Status set_bridge_port(int port_ifindex, bool forwarding);
  absl::Status delete_bridge_forwarding(int port_ifindex, const MacAddress& mac);
  // Forwarding entry of a VXLAN device: `mac` is behind the peer `to` (dynamic).
  absl::Status set_vxlan_forwarding(int vxlan_ifindex, const MacAddress& mac, const IpAddress& to);
  absl::Status delete_vxlan_forwarding(int vxlan_ifindex, const MacAddress& mac,
                                       const IpAddress& to);
  // A peer that gets what is for all or for unknown MACs (00:00:00:00:00:00, appended). Repeated:
  // OK.
  absl::Status add_vxlan_peer(int vxlan_ifindex, const IpAddress& peer);
  absl::Status delete_vxlan_peer(int vxlan_ifindex, const IpAddress& peer);

 private:
  explicit Netlink(nl_sock* socket) : socket_(socket) {}
  // Sends, waits for the acknowledgement; `what` names the call in the error.
  absl::Status talk(nl_msg* message, const std::string& what);
  absl::Status dump(nl_msg* message, const std::string& what,
                    absl::FunctionRef<void(nlmsghdr*)> each);
  absl::Status forwarding_entry(int type, int flags, int ifindex, const MacAddress& mac,
                                uint8_t entry_flags, uint16_t state, const IpAddress* to);
  absl::Status wait_for(const std::string& name, const Deadline& deadline, const char* what,
                        absl::FunctionRef<bool(const LinkState&)> reached);
  nl_sock* socket_;
};

}  // namespace godwit::network

#endif  // GODWIT_NETWORK_NETLINK_H_
