// The port of a service on this node, for its daemon and for its movers: both describe it the same
// way, from the capsule's spec and what the daemon keeps about the node's network.
#ifndef GODWIT_NODE_SERVICE_PORT_H_
#define GODWIT_NODE_SERVICE_PORT_H_

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/ids.h"
#include "base/unique_fd.h"
#include "capsule/capsule.pb.h"
#include "network/port.h"
#include "node/node_state.pb.h"

namespace godwit::node {

absl::Status save_network(const std::string& state_dir, const NodeNetwork& network);
absl::StatusOr<NodeNetwork> load_network(const std::string& state_dir);

// `capsule_netns` is borrowed and may be -1 where PortSpec does not need it.
absl::StatusOr<network::PortSpec> port_spec(const NodeNetwork& network,
                                            const capsule::CapsuleSpec& spec, int capsule_netns);
// Network namespace of a capsule, by its init.
absl::StatusOr<UniqueFd> open_netns_of(HostPid pid);

// A port by itself, opened from what is known here: for rollback and recovery.
struct OpenedPort {
  UniqueFd netns;
  network::Port port;
};
absl::StatusOr<OpenedPort> open_port(const std::string& state_dir, const capsule::CapsuleSpec& spec,
                                     HostPid init);

}  // namespace godwit::node

#endif  // GODWIT_NODE_SERVICE_PORT_H_
