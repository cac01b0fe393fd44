#include "node/service_port.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>

#include "base/status.h"
#include "capsule/small_file.h"
#include "kernel/syscalls.h"

namespace godwit::node {
namespace {

std::string file_of(const std::string& state_dir) { return state_dir + "/network.pb"; }

}  // namespace

absl::Status save_network(const std::string& state_dir, const NodeNetwork& network) {
  return capsule::write_small_file(file_of(state_dir), network.SerializeAsString());
}

absl::StatusOr<NodeNetwork> load_network(const std::string& state_dir) {
  GW_ASSIGN_OR_RETURN(const std::string bytes, kernel::read_file(file_of(state_dir)));
  NodeNetwork network;
  if (!network.ParseFromString(bytes))
    return make_error(absl::StatusCode::kDataLoss, "{} does not parse", file_of(state_dir));
  return network;
}

absl::StatusOr<network::PortSpec> port_spec(const NodeNetwork& network,
                                            const capsule::CapsuleSpec& spec, int capsule_netns) {
  network::PortSpec port;
  port.service = spec.name();
  port.bridge = network.bridge();
  port.capsule_netns = capsule_netns;
  port.mtu = network.mtu();
  port.pin_dir = network.pin_dir();
  if (!spec.mac().empty()) {
    GW_ASSIGN_OR_RETURN(port.mac, network::parse_mac(spec.mac()));
  }
  for (const capsule::Address& each : spec.addresses()) {
    GW_ASSIGN_OR_RETURN(const network::IpPrefix address,
                        network::parse_prefix(fmt::format("{}/{}", each.ip(), each.prefix())));
    port.addresses.push_back(address);
  }
  // One of each family, with a comma between.
  for (size_t at = 0; at < spec.gateway().size();) {
    const size_t comma = std::min(spec.gateway().find(',', at), spec.gateway().size());
    GW_ASSIGN_OR_RETURN(const network::IpAddress gateway,
                        network::parse_ip(spec.gateway().substr(at, comma - at)));
    port.gateways.push_back(gateway);
    at = comma + 1;
  }
  return port;
}

absl::StatusOr<UniqueFd> open_netns_of(HostPid pid) {
  return kernel::open(fmt::format("/proc/{}/ns/net", pid.value), O_RDONLY | O_CLOEXEC);
}

absl::StatusOr<OpenedPort> open_port(const std::string& state_dir, const capsule::CapsuleSpec& spec,
                                     HostPid init) {
  GW_ASSIGN_OR_RETURN(const NodeNetwork network, load_network(state_dir));
  GW_ASSIGN_OR_RETURN(UniqueFd netns, open_netns_of(init));
  GW_ASSIGN_OR_RETURN(const network::PortSpec described, port_spec(network, spec, netns.get()));
  GW_ASSIGN_OR_RETURN(network::Port port, network::Port::open(described));
  return OpenedPort{std::move(netns), std::move(port)};
}

}  // namespace godwit::node
