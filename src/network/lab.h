// A network of nodes and a client on this machine, each a network namespace named
// "<id>-n1" … "<id>-nN", "<id>-client", and a switch "<id>-sw". Nothing is in the caller's own
// namespace.
//
//   lan:      [n1: gw0 = up0 + ports] -- [sw: sw0] -- [n2: gw0 = up0 + ports]
//                                            |
//                                     [client: eth0]          all on `subnet`
//
//   overlay:  the same wires carry `underlay`; gw0 = gwx0 (VXLAN) + ports is on `subnet`; the
//             client is on the underlay and reaches `subnet` through a node.
#ifndef GODWIT_NETWORK_LAB_H_
#define GODWIT_NETWORK_LAB_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "network/ip.h"
#include "network/overlay.h"

namespace godwit::network {

struct LabSpec {
  std::string id = "gw";
  uint32_t nodes = 2;
  bool overlay = false;
  std::string subnet = "10.77.0.0/16";
  std::string subnet6 = "fd77::/64";
  std::string underlay = "10.78.0.0/24";  // overlay only
  std::string underlay6 = "fd78::/64";
};

class LabNetwork {
 public:
  // Checks the spec: subnets that parse, are large enough and do not overlap; 1..99 nodes.
  static absl::StatusOr<LabNetwork> of(const LabSpec& spec);

  // Makes what is missing; a lab that is up stays as it is. On failure what was made stays for
  // down().
  absl::Status up() const;
  // Takes away all of the lab `id`, also a half-made one. OK when there is none. Processes that
  // still run in its namespaces keep them, without wires and names.
  static absl::Status down(const std::string& id);
  // Names of the nodes' namespaces that exist: "<id>-n1", …
  static std::vector<std::string> nodes_up(const std::string& id);

  std::string node_netns(uint32_t node) const;  // node: 1..N
  std::string client_netns() const;
  std::string switch_netns() const;
  // By which other nodes and the client reach the node: on gw0 (lan) or up0 (overlay).
  IpPrefix node_address(uint32_t node) const;
  IpPrefix node_address6(uint32_t node) const;
  IpPrefix client_address() const;
  IpPrefix client_address6() const;
  // Addresses for services, index 0…; outside of what the lab uses itself.
  IpPrefix service_address(uint32_t index) const;
  IpPrefix service_address6(uint32_t index) const;
  // For a service's PortSpec: overlay: the anycast gateway, v4 and v6; lan: none.
  std::vector<IpAddress> service_gateways() const;
  uint32_t service_mtu() const;
  OverlaySpec overlay_of(uint32_t node) const;
  // Overlay: the client reaches the services through this node from now on.
  absl::Status route_client_through(uint32_t node) const;
  const LabSpec& spec() const { return spec_; }

 private:
  LabNetwork() = default;
  absl::Status wire(const std::string& port, const std::string& netns,
                    const std::string& name) const;
  absl::Status set_up_node(uint32_t node) const;
  absl::Status set_up_client() const;
  absl::Status wait_forwarding() const;
  const IpPrefix& wires() const { return spec_.overlay ? underlay_ : subnet_; }
  const IpPrefix& wires6() const { return spec_.overlay ? underlay6_ : subnet6_; }

  LabSpec spec_;
  IpPrefix subnet_, subnet6_, underlay_, underlay6_;
};

}  // namespace godwit::network

#endif  // GODWIT_NETWORK_LAB_H_
