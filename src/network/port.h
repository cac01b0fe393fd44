// A capsule's port: the veth pair between the node's bridge and the capsule's eth0, its gate, the
// hold for frames that come while the capsule is frozen, and its announcement.
//
// The node calls from its own network namespace. One process at a time works on a port; the gate,
// the devices and their state outlast it (see gate.h, hold.h). Not for several threads at once.
// What takes milliseconds is done by create(), prepare_hold() and prepare_announce(); all that is
// needed between freeze and activation afterwards is stores and sends.
#ifndef GODWIT_NETWORK_PORT_H_
#define GODWIT_NETWORK_PORT_H_

#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "network/frames.h"
#include "network/gate.h"
#include "network/hold.h"
#include "network/ip.h"
#include "network/netlink.h"

namespace godwit::network {

struct PortSpec {
  std::string service;
  std::string bridge = "gw0";
  int capsule_netns = -1;           // borrowed; needed by create, prepare_announce, neighbours
  MacAddress mac;                   // of the capsule's eth0; zero: mac_from_seed(service)
  std::vector<IpPrefix> addresses;  // v4 and v6; the link-local one is added
  std::vector<IpAddress> gateways;  // at most one of each family
  uint32_t mtu = 1500;
  std::string pin_dir;  // becomes a bpffs; one per node, shared by its ports
};

// DESIGN, section 3, "Gates".
enum class PortPhase {
  kInvalid,
  kSourceRunning,         // pass / pass: also a service that was just started
  kSourceFrozen,          // hold / drop
  kSourceCommitted,       // drop / drop, port down
  kDestinationPrepared,   // hold / drop
  kDestinationFrozen,     // hold / pass, announces itself
  kDestinationCommitted,  // hold / pass
  kActive,                // replays what is held, then pass / pass
  kRolledBack,            // the source's: as kActive, and announces itself
};

struct Replay {
  size_t frames = 0;  // put into the capsule
  uint32_t rounds = 0;
  bool in_order = true;  // false: so much kept coming that the gate was opened before the last
};

class Port {
 public:
  // Everything up, gate closed (drop/drop), bridge port forwarding, nothing ever sent. On failure
  // nothing stays. 20-80 ms.
  static absl::StatusOr<Port> create(const PortSpec& spec);
  // The port that another process of this node made; its gate stays as it is.
  static absl::StatusOr<Port> open(const PortSpec& spec);
  // Veth, hold, pins, and the bpffs with the last port. OK when there is none.
  static absl::Status remove(const std::string& service, const std::string& pin_dir);

  // "gwp" and "gwt" with 8 hexadecimal digits of the service's name.
  static std::string node_interface(const std::string& service);
  static std::string hold_interface(const std::string& service);

  absl::Status prepare_hold();
  // Goes on with the hold of another process: `fd` is a copy of its hold_fd().
  absl::Status adopt_hold(UniqueFd fd);
  // To be copied to a process that must not lose what is held when this one dies; -1 without hold.
  int hold_fd() const { return hold_ ? hold_->fd() : -1; }
  // Waits for stragglers, puts them into the capsule, takes the TAP away. The gate must be open
  // or dropping. OK without hold.
  absl::Status release_hold();

  absl::Status prepare_announce();
  // The gate must let pass what comes from the capsule. Microseconds.
  absl::Status announce() const;

  // Applies one line of the table. kFailedPrecondition when the phase needs a hold or an
  // announcement that was not prepared; nothing is changed then.
  absl::Status set_phase(PortPhase phase);

  // Appends what is held now, in order.
  absl::StatusOr<size_t> drain(Frames& out);
  // Puts frames into the capsule, past the gate.
  absl::Status inject(const Frames& frames);
  // Puts all held frames into the capsule and opens the gate, both ways. While it works, frames
  // that arrive queue up behind those held, so order stays.
  absl::StatusOr<Replay> replay_and_open();
  // After replay_and_open(): frames that a CPU had on their way into the hold when the gate opened.
  // Waits for them for `patience`; returns how many there were.
  absl::StatusOr<size_t> settle(absl::Duration patience);

  // What the capsule's kernel knows about its neighbours, and giving it to the capsule at the
  // other end, which then need not ask. ifindex is not carried. An address that this node's own
  // bridge has (the overlay's gateway, which every node has) gets this bridge's MAC.
  absl::StatusOr<std::vector<Neighbour>> neighbours() const;
  absl::Status set_neighbours(const std::vector<Neighbour>& neighbours);

  Gate& gate() { return gate_; }
  int ifindex() const { return ifindex_; }
  const PortSpec& spec() const { return spec_; }

 private:
  Port(PortSpec spec, Netlink netlink, Gate gate, FrameSender inner, int ifindex);
  absl::Status require(bool hold, bool announcement, const char* phase) const;
  absl::Status set_up(bool up);

  PortSpec spec_;
  Netlink netlink_;
  Gate gate_;
  FrameSender towards_capsule_;
  int ifindex_;
  std::optional<Hold> hold_;
  std::optional<FrameSender> from_capsule_;
  Frames announcement_;
};

}  // namespace godwit::network

#endif  // GODWIT_NETWORK_PORT_H_
