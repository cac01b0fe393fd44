#include "network/lab.h"

#include <algorithm>
#include <cctype>

#include "base/status.h"
#include "network/netlink.h"
#include "network/netns.h"

namespace godwit::network {
namespace {

constexpr char kSwitch[] = "sw0";
constexpr char kClientInterface[] = "eth0";
constexpr uint32_t kMtu = 1500;
constexpr uint32_t kTxQueueLength = 1000;
constexpr uint32_t kMostNodes = 99;
// Host numbers in a subnet: gateway, client, nodes, services.
constexpr uint32_t kGatewayHost = 1, kClientHost = 9, kFirstNodeHost = 10, kFirstServiceHost = 128;

absl::Status ensure_netns(const std::string& name) {
  const absl::Status status = create_named_netns(name);
  if (!status.ok() && errno_of(status) != EEXIST) return status;
  GW_ASSIGN_OR_RETURN(const NetnsScope inside, NetnsScope::enter_named(name));
  GW_ASSIGN_OR_RETURN(Netlink netlink, Netlink::open());
  GW_ASSIGN_OR_RETURN(const int lo, netlink.ifindex_of("lo"));
  LinkChange up;
  up.up = true;
  return netlink.change_link(lo, up);
}

bool is_node_suffix(std::string_view suffix) {
  return suffix.size() > 1 && suffix[0] == 'n' &&
         std::all_of(suffix.begin() + 1, suffix.end(), [](unsigned char c) { return isdigit(c); });
}

absl::StatusOr<IpPrefix> subnet(const std::string& text, int longest) {
  GW_ASSIGN_OR_RETURN(const IpPrefix prefix, parse_prefix(text));
  const bool v6 = longest > 32;
  if (prefix.ip.is_v6() != v6 || prefix.length > longest || prefix.length == 0) {
    return make_error(absl::StatusCode::kInvalidArgument,
                      "\"{}\": an IPv{} subnet of /1 to /{} is needed", text, v6 ? 6 : 4, longest);
  }
  return network_of(prefix);
}

bool overlap(const IpPrefix& a, const IpPrefix& b) {
  const uint8_t shorter = std::min(a.length, b.length);
  return network_of({a.ip, shorter}) == network_of({b.ip, shorter});
}

absl::Status delete_links_in(const std::string& netns, const std::vector<std::string>& names) {
  absl::StatusOr<NetnsScope> inside = NetnsScope::enter_named(netns);
  // A name without a namespace behind it: a lab whose maker died.
  if (!inside.ok()) return absl::OkStatus();
  GW_ASSIGN_OR_RETURN(Netlink netlink, Netlink::open());
  for (const std::string& name : names) GW_RETURN_IF_ERROR(netlink.delete_link(name));
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<LabNetwork> LabNetwork::of(const LabSpec& spec) {
  LabNetwork lab;
  lab.spec_ = spec;
  if (spec.nodes < 1 || spec.nodes > kMostNodes) {
    return make_error(absl::StatusCode::kInvalidArgument, "a lab has 1 to {} nodes, not {}",
                      kMostNodes, spec.nodes);
  }
  GW_ASSIGN_OR_RETURN(lab.subnet_, subnet(spec.subnet, 24));
  GW_ASSIGN_OR_RETURN(lab.subnet6_, subnet(spec.subnet6, 112));
  GW_ASSIGN_OR_RETURN(lab.underlay_, subnet(spec.underlay, 24));
  GW_ASSIGN_OR_RETURN(lab.underlay6_, subnet(spec.underlay6, 112));
  if (spec.overlay &&
      (overlap(lab.subnet_, lab.underlay_) || overlap(lab.subnet6_, lab.underlay6_))) {
    return make_error(absl::StatusCode::kInvalidArgument,
                      "subnet {} and underlay {} of an overlay must not overlap", spec.subnet,
                      spec.underlay);
  }
  return lab;
}

std::string LabNetwork::node_netns(uint32_t node) const {
  return fmt::format("{}-n{}", spec_.id, node);
}
std::string LabNetwork::client_netns() const { return spec_.id + "-client"; }
std::string LabNetwork::switch_netns() const { return spec_.id + "-sw"; }

IpPrefix LabNetwork::node_address(uint32_t node) const {
  return {host_of(wires(), kFirstNodeHost + node), wires().length};
}
IpPrefix LabNetwork::node_address6(uint32_t node) const {
  return {host_of(wires6(), kFirstNodeHost + node), wires6().length};
}
IpPrefix LabNetwork::client_address() const {
  return {host_of(wires(), kClientHost), wires().length};
}
IpPrefix LabNetwork::client_address6() const {
  return {host_of(wires6(), kClientHost), wires6().length};
}
IpPrefix LabNetwork::service_address(uint32_t index) const {
  return {host_of(subnet_, kFirstServiceHost + index), subnet_.length};
}
IpPrefix LabNetwork::service_address6(uint32_t index) const {
  return {host_of(subnet6_, kFirstServiceHost + index), subnet6_.length};
}
std::vector<IpAddress> LabNetwork::service_gateways() const {
  if (!spec_.overlay) return {};
  return {host_of(subnet_, kGatewayHost), host_of(subnet6_, kGatewayHost)};
}
uint32_t LabNetwork::service_mtu() const { return spec_.overlay ? overlay_mtu(kMtu) : kMtu; }

OverlaySpec LabNetwork::overlay_of(uint32_t node) const {
  OverlaySpec overlay;
  overlay.local = node_address(node).ip;
  for (uint32_t other = 1; other <= spec_.nodes; ++other) {
    if (other != node) overlay.peers.push_back(node_address(other).ip);
  }
  overlay.addresses = {{host_of(subnet_, kFirstNodeHost + node), subnet_.length},
                       {host_of(subnet6_, kFirstNodeHost + node), subnet6_.length}};
  overlay.gateways = {{host_of(subnet_, kGatewayHost), 32}, {host_of(subnet6_, kGatewayHost), 128}};
  overlay.underlay_mtu = kMtu;
  return overlay;
}

absl::Status LabNetwork::wire(const std::string& port, const std::string& netns,
                              const std::string& name) const {
  GW_ASSIGN_OR_RETURN(const UniqueFd there, open_named_netns(netns));
  GW_ASSIGN_OR_RETURN(const NetnsScope inside, NetnsScope::enter_named(switch_netns()));
  GW_ASSIGN_OR_RETURN(Netlink netlink, Netlink::open());
  if (!netlink.ifindex_of(port).ok()) {
    GW_RETURN_IF_ERROR(netlink.create_veth({port, std::nullopt, MacAddress{}},
                                           {name, there.get(), MacAddress{}}, kMtu,
                                           kTxQueueLength));
  }
  LanSpec as_port;  // the switch is a bridge without addresses
  as_port.bridge = kSwitch;
  as_port.uplink = port;
  return set_up_lan(as_port);
}

absl::Status LabNetwork::set_up_node(uint32_t node) const {
  const std::string netns = node_netns(node);
  GW_RETURN_IF_ERROR(ensure_netns(netns));
  GW_RETURN_IF_ERROR(wire(fmt::format("n{}", node), netns, kUplink));
  GW_ASSIGN_OR_RETURN(const NetnsScope inside, NetnsScope::enter_named(netns));
  if (!spec_.overlay) {
    LanSpec lan;
    lan.addresses = {node_address(node), node_address6(node)};
    return set_up_lan(lan);
  }
  GW_ASSIGN_OR_RETURN(Netlink netlink, Netlink::open());
  GW_ASSIGN_OR_RETURN(const int uplink, netlink.ifindex_of(kUplink));
  GW_RETURN_IF_ERROR(
      bring_up_with(netlink, kUplink, uplink, {node_address(node), node_address6(node)}));
  return set_up_overlay(overlay_of(node));
}

absl::Status LabNetwork::set_up_client() const {
  GW_RETURN_IF_ERROR(ensure_netns(client_netns()));
  GW_RETURN_IF_ERROR(wire("client", client_netns(), kClientInterface));
  {
    GW_ASSIGN_OR_RETURN(const NetnsScope inside, NetnsScope::enter_named(client_netns()));
    GW_ASSIGN_OR_RETURN(Netlink netlink, Netlink::open());
    GW_ASSIGN_OR_RETURN(const int eth0, netlink.ifindex_of(kClientInterface));
    GW_RETURN_IF_ERROR(
        bring_up_with(netlink, kClientInterface, eth0, {client_address(), client_address6()}));
  }
  return spec_.overlay ? route_client_through(1) : absl::OkStatus();
}

absl::Status LabNetwork::route_client_through(uint32_t node) const {
  GW_ASSIGN_OR_RETURN(const NetnsScope inside, NetnsScope::enter_named(client_netns()));
  GW_ASSIGN_OR_RETURN(Netlink netlink, Netlink::open());
  GW_ASSIGN_OR_RETURN(const int eth0, netlink.ifindex_of(kClientInterface));
  GW_RETURN_IF_ERROR(netlink.add_route(subnet_, node_address(node).ip, eth0));
  return netlink.add_route(subnet6_, node_address6(node).ip, eth0);
}

absl::Status LabNetwork::up() const {
  GW_RETURN_IF_ERROR(ensure_netns(switch_netns()));
  for (uint32_t node = 1; node <= spec_.nodes; ++node) GW_RETURN_IF_ERROR(set_up_node(node));
  GW_RETURN_IF_ERROR(set_up_client());
  return wait_forwarding();
}

absl::Status LabNetwork::wait_forwarding() const {
  const Deadline deadline = Deadline::in(absl::Seconds(10));
  const auto wait = [&](const std::string& netns, const std::vector<std::string>& ports,
                        const std::vector<std::string>& devices) -> absl::Status {
    GW_ASSIGN_OR_RETURN(const NetnsScope inside, NetnsScope::enter_named(netns));
    GW_ASSIGN_OR_RETURN(Netlink netlink, Netlink::open());
    for (const std::string& port : ports) {
      GW_RETURN_IF_ERROR(netlink.wait_forwarding(port, deadline));
    }
    for (const std::string& device : devices) {
      GW_RETURN_IF_ERROR(netlink.wait_operational(device, deadline));
    }
    return absl::OkStatus();
  };
  std::vector<std::string> wires{"client"};
  for (uint32_t node = 1; node <= spec_.nodes; ++node) {
    wires.push_back(fmt::format("n{}", node));
    GW_RETURN_IF_ERROR(
        wait(node_netns(node), {spec_.overlay ? kVxlan : kUplink}, {kUplink, kNodeBridge}));
  }
  GW_RETURN_IF_ERROR(wait(client_netns(), {}, {kClientInterface}));
  return wait(switch_netns(), wires, wires);
}

std::vector<std::string> LabNetwork::nodes_up(const std::string& id) {
  std::vector<std::string> names = named_netns(id + "-");
  std::erase_if(names, [&](const std::string& name) {
    return !is_node_suffix(std::string_view(name).substr(id.size() + 1));
  });
  return names;
}

absl::Status LabNetwork::down(const std::string& id) {
  const std::vector<std::string> nodes = nodes_up(id);
  // Wires first: a veth goes with both its ends at once, also when a process keeps a namespace.
  std::vector<std::string> wires{"client", kSwitch};
  for (const std::string& name : nodes) wires.push_back(name.substr(id.size() + 1));
  GW_RETURN_IF_ERROR(delete_links_in(id + "-sw", wires));
  GW_RETURN_IF_ERROR(delete_links_in(id + "-client", {kClientInterface}));
  for (const std::string& name : nodes) {
    GW_RETURN_IF_ERROR(delete_links_in(name, {kVxlan, kUplink, kNodeBridge}));
    GW_RETURN_IF_ERROR(delete_named_netns(name));
  }
  GW_RETURN_IF_ERROR(delete_named_netns(id + "-client"));
  return delete_named_netns(id + "-sw");
}

}  // namespace godwit::network
