#include "network/port.h"

#include <linux/neighbour.h>
#include <poll.h>

#include <utility>

#include "absl/cleanup/cleanup.h"
#include "base/clock.h"
#include "base/status.h"
#include "network/announce.h"
#include "network/netns.h"

namespace godwit::network {
namespace {

constexpr char kInner[] = "eth0";
constexpr uint32_t kTxQueueLength = 1000;
constexpr absl::Duration kUpWithin = absl::Seconds(5);
// Replaying goes on in order for that long against frames that keep coming.
constexpr absl::Duration kReplayWithin = absl::Milliseconds(50);
// From "counted" to "in the queue" a frame takes a CPU 1-3 us, with softirqs disabled.
constexpr int64_t kOnItsWayNs = 10'000;

PortSpec completed(PortSpec spec) {
  if (spec.mac.is_zero()) spec.mac = mac_from_seed(spec.service);
  return spec;
}

// In the capsule's namespace. The kernel must not send a word of its own about the addresses:
// no duplicate address detection, no solicitation of routers, no address that it makes itself.
absl::Status quieten_inner() {
  for (const auto& [key, value] : {std::pair{"accept_ra", "0"},
                                   {"accept_dad", "0"},
                                   {"dad_transmits", "0"},
                                   {"router_solicitations", "0"}}) {
    GW_RETURN_IF_ERROR(
        write_net_sysctl_if_present(fmt::format("ipv6/conf/{}/{}", kInner, key), value));
  }
  // After a move no neighbour is known yet, and every connection answers at once: what waits for
  // the one resolution is dropped beyond this (a connection that was just rebuilt would send it
  // again only after a second).
  for (const std::string_view family : {"ipv4", "ipv6"})
    GW_RETURN_IF_ERROR(write_net_sysctl_if_present(
        fmt::format("{}/neigh/{}/unres_qlen_bytes", family, kInner), "16777216"));
  // addr_gen_mode 1 is IN6_ADDR_GEN_MODE_NONE (ip-sysctl). No file: a kernel without IPv6.
  return write_net_sysctl_if_present(fmt::format("ipv6/conf/{}/addr_gen_mode", kInner), "1");
}

absl::Status configure_capsule(const PortSpec& spec) {
  GW_ASSIGN_OR_RETURN(const NetnsScope inside, NetnsScope::enter(spec.capsule_netns));
  GW_ASSIGN_OR_RETURN(Netlink netlink, Netlink::open());
  GW_ASSIGN_OR_RETURN(const int eth0, netlink.ifindex_of(kInner));
  GW_ASSIGN_OR_RETURN(const int lo, netlink.ifindex_of("lo"));
  LinkChange up;
  up.up = true;
  GW_RETURN_IF_ERROR(netlink.change_link(lo, up));
  GW_RETURN_IF_ERROR(quieten_inner());
  bool v6 = false;
  for (const IpPrefix& address : spec.addresses) {
    v6 = v6 || address.ip.is_v6();
    GW_RETURN_IF_ERROR(netlink.add_address(eth0, address));
  }
  GW_RETURN_IF_ERROR(netlink.change_link(eth0, up));
  // The address that the kernel would have made, without the chatter. Kernels without IPv6 have
  // none, and no port with IPv6 addresses got this far there.
  const absl::Status link_local = netlink.add_address(eth0, link_local_of(spec.mac));
  if (v6) GW_RETURN_IF_ERROR(link_local);
  for (const IpAddress& gateway : spec.gateways) {
    IpPrefix everywhere;
    everywhere.ip.family = gateway.family;
    GW_RETURN_IF_ERROR(netlink.add_route(everywhere, gateway, eth0));
  }
  return absl::OkStatus();
}

absl::Status wait_ready(Netlink& node, const std::string& name, int capsule_netns) {
  const Deadline deadline = Deadline::in(kUpWithin);
  GW_RETURN_IF_ERROR(node.wait_forwarding(name, deadline));
  GW_RETURN_IF_ERROR(node.wait_operational(name, deadline));
  GW_ASSIGN_OR_RETURN(const NetnsScope inside, NetnsScope::enter(capsule_netns));
  GW_ASSIGN_OR_RETURN(Netlink netlink, Netlink::open());
  return netlink.wait_operational(kInner, deadline);
}

}  // namespace

std::string Port::node_interface(const std::string& service) {
  return fmt::format("gwp{:08x}", short_hash(service));
}
std::string Port::hold_interface(const std::string& service) {
  return fmt::format("gwt{:08x}", short_hash(service));
}

Port::Port(PortSpec spec, Netlink netlink, Gate gate, FrameSender inner, int ifindex)
    : spec_(std::move(spec)),
      netlink_(std::move(netlink)),
      gate_(std::move(gate)),
      towards_capsule_(std::move(inner)),
      ifindex_(ifindex) {}

absl::StatusOr<Port> Port::create(const PortSpec& wanted) {
  const PortSpec spec = completed(wanted);
  const std::string name = node_interface(spec.service);
  GW_ASSIGN_OR_RETURN(Netlink netlink, Netlink::open());
  GW_ASSIGN_OR_RETURN(const int bridge, netlink.ifindex_of(spec.bridge));
  const VethEnd inner{kInner, spec.capsule_netns, spec.mac};
  GW_RETURN_IF_ERROR(
      netlink.create_veth({name, std::nullopt, MacAddress{}}, inner, spec.mtu, kTxQueueLength));
  absl::Cleanup undo = [&] { (void)remove(spec.service, spec.pin_dir); };

  GW_ASSIGN_OR_RETURN(const int ifindex, netlink.ifindex_of(name));
  GW_RETURN_IF_ERROR(
      write_net_sysctl_if_present(fmt::format("ipv6/conf/{}/disable_ipv6", name), "1"));
  LinkChange enslave;
  enslave.master = bridge;
  GW_RETURN_IF_ERROR(netlink.change_link(ifindex, enslave));
  // From here on the gate is shut; before it neither end was up.
  GW_ASSIGN_OR_RETURN(Gate gate, Gate::create(spec.pin_dir, name, ifindex));
  GW_RETURN_IF_ERROR(configure_capsule(spec));
  LinkChange up;
  up.up = true;
  GW_RETURN_IF_ERROR(netlink.change_link(ifindex, up));
  GW_RETURN_IF_ERROR(wait_ready(netlink, name, spec.capsule_netns));
  GW_ASSIGN_OR_RETURN(FrameSender sender, FrameSender::open(ifindex));
  std::move(undo).Cancel();
  return Port(spec, std::move(netlink), std::move(gate), std::move(sender), ifindex);
}

absl::StatusOr<Port> Port::open(const PortSpec& wanted) {
  const PortSpec spec = completed(wanted);
  const std::string name = node_interface(spec.service);
  GW_ASSIGN_OR_RETURN(Netlink netlink, Netlink::open());
  GW_ASSIGN_OR_RETURN(const int ifindex, netlink.ifindex_of(name));
  GW_ASSIGN_OR_RETURN(Gate gate, Gate::open(spec.pin_dir, name, ifindex));
  GW_ASSIGN_OR_RETURN(FrameSender sender, FrameSender::open(ifindex));
  return Port(spec, std::move(netlink), std::move(gate), std::move(sender), ifindex);
}

absl::Status Port::remove(const std::string& service, const std::string& pin_dir) {
  GW_ASSIGN_OR_RETURN(Netlink netlink, Netlink::open());
  // The port goes before its gate does.
  GW_RETURN_IF_ERROR(netlink.delete_link(node_interface(service)));
  GW_RETURN_IF_ERROR(netlink.delete_link(hold_interface(service)));
  return Gate::unpin(pin_dir, node_interface(service));
}

absl::Status Port::prepare_hold() {
  if (hold_) return absl::OkStatus();
  GW_ASSIGN_OR_RETURN(Hold hold, Hold::create(netlink_, hold_interface(spec_.service), spec_.mtu));
  gate_.set_hold_ifindex(hold.ifindex());
  hold_ = std::move(hold);
  return absl::OkStatus();
}

absl::Status Port::adopt_hold(UniqueFd fd) {
  GW_ASSIGN_OR_RETURN(Hold hold,
                      Hold::adopt(netlink_, hold_interface(spec_.service), std::move(fd)));
  gate_.set_hold_ifindex(hold.ifindex());
  hold_ = std::move(hold);
  return absl::OkStatus();
}

absl::Status Port::release_hold() {
  if (!hold_) return netlink_.delete_link(hold_interface(spec_.service));
  const GateMode mode = gate_.towards();
  if (mode == GateMode::kHold || mode == GateMode::kReplay) {
    return make_error(absl::StatusCode::kFailedPrecondition,
                      "{}: frames are being held: open or close the gate first", spec_.service);
  }
  if (mode == GateMode::kPass) GW_RETURN_IF_ERROR(settle(absl::Milliseconds(5)).status());
  gate_.set_hold_ifindex(0);
  hold_.reset();
  return netlink_.delete_link(hold_interface(spec_.service));
}

absl::Status Port::prepare_announce() {
  GW_ASSIGN_OR_RETURN(const NetnsScope inside, NetnsScope::enter(spec_.capsule_netns));
  GW_ASSIGN_OR_RETURN(Netlink netlink, Netlink::open());
  GW_ASSIGN_OR_RETURN(const int eth0, netlink.ifindex_of(kInner));
  GW_ASSIGN_OR_RETURN(FrameSender sender, FrameSender::open(eth0));
  // What is there counts, not what was asked for: the program may have added addresses.
  GW_ASSIGN_OR_RETURN(const std::vector<IpPrefix> addresses, netlink.addresses(eth0));
  announcement_ = announcement(spec_.mac, addresses);
  from_capsule_ = std::move(sender);
  return absl::OkStatus();
}

absl::Status Port::announce() const {
  GW_RETURN_IF_ERROR(require(false, true, "announce"));
  return from_capsule_->send(announcement_);
}

absl::Status Port::require(bool hold, bool announcement, const char* phase) const {
  if (hold && !hold_) {
    return make_error(absl::StatusCode::kFailedPrecondition, "{}: {} without prepare_hold()",
                      spec_.service, phase);
  }
  if (announcement && !from_capsule_) {
    return make_error(absl::StatusCode::kFailedPrecondition, "{}: {} without prepare_announce()",
                      spec_.service, phase);
  }
  return absl::OkStatus();
}

absl::Status Port::set_up(bool up) {
  LinkChange change;
  change.up = up;
  return netlink_.change_link(ifindex_, change);
}

absl::Status Port::set_phase(PortPhase phase) {
  switch (phase) {
    case PortPhase::kInvalid:
      break;
    case PortPhase::kSourceRunning:
      gate_.set_from(GateMode::kPass);
      gate_.set_towards(GateMode::kPass);
      return absl::OkStatus();
    case PortPhase::kSourceFrozen:
      GW_RETURN_IF_ERROR(require(true, false, "frozen"));
      gate_.set_from(GateMode::kDrop);
      gate_.set_towards(GateMode::kHold);
      return absl::OkStatus();
    case PortPhase::kSourceCommitted:
      gate_.set_from(GateMode::kDrop);
      gate_.set_towards(GateMode::kDrop);
      return set_up(false);
    case PortPhase::kDestinationPrepared:
      GW_RETURN_IF_ERROR(require(true, false, "prepared"));
      gate_.set_from(GateMode::kDrop);
      gate_.set_towards(GateMode::kHold);
      return absl::OkStatus();
    case PortPhase::kDestinationFrozen:
      GW_RETURN_IF_ERROR(require(true, true, "frozen"));
      gate_.set_towards(GateMode::kHold);
      gate_.set_from(GateMode::kPass);
      return announce();
    case PortPhase::kDestinationCommitted:
      GW_RETURN_IF_ERROR(require(true, false, "committed"));
      gate_.set_towards(GateMode::kHold);
      gate_.set_from(GateMode::kPass);
      return absl::OkStatus();
    case PortPhase::kActive:
      return replay_and_open().status();
    case PortPhase::kRolledBack:
      GW_RETURN_IF_ERROR(require(false, true, "rolled back"));
      gate_.set_from(GateMode::kPass);
      GW_RETURN_IF_ERROR(announce());
      return replay_and_open().status();
  }
  return absl::InvalidArgumentError("not a phase of a port");
}

absl::StatusOr<size_t> Port::drain(Frames& out) {
  GW_RETURN_IF_ERROR(require(true, false, "drain"));
  return hold_->drain(out);
}

absl::Status Port::inject(const Frames& frames) { return towards_capsule_.send(frames); }

absl::StatusOr<Replay> Port::replay_and_open() {
  Replay result;
  // First, so that answers to what is replayed get out.
  gate_.set_from(GateMode::kPass);
  if (!hold_) {
    gate_.set_towards(GateMode::kPass);
    return result;
  }
  const Deadline deadline = Deadline::in(kReplayWithin);
  gate_.set_towards(GateMode::kReplay);
  Frames frames;
  uint64_t seen = gate_.counters().held;
  int64_t unchanged_since = monotonic_ns();
  for (;;) {
    const uint64_t held = gate_.counters().held;
    if (held != seen) {
      seen = held;
      unchanged_since = monotonic_ns();
    }
    frames.clear();
    GW_ASSIGN_OR_RETURN(const size_t count, hold_->drain(frames));
    GW_RETURN_IF_ERROR(inject(frames));
    result.frames += count;
    ++result.rounds;
    // Empty, and all that was counted has had time to arrive: from this store on frames pass, but
    // only while nothing newer is held.
    if (count == 0 && monotonic_ns() - unchanged_since >= kOnItsWayNs) {
      gate_.set_replayed(held);
      if (gate_.counters().held == held) break;
    }
    if (deadline.passed()) {
      result.in_order = false;
      break;
    }
  }
  gate_.set_towards(GateMode::kPass);
  GW_ASSIGN_OR_RETURN(const size_t tail, settle(absl::ZeroDuration()));
  result.frames += tail;
  return result;
}

absl::StatusOr<size_t> Port::settle(absl::Duration patience) {
  GW_RETURN_IF_ERROR(require(true, false, "settle"));
  const Deadline deadline = Deadline::in(patience);
  size_t total = 0;
  for (;;) {
    Frames frames;
    GW_ASSIGN_OR_RETURN(const size_t count, hold_->drain(frames));
    GW_RETURN_IF_ERROR(inject(frames));
    total += count;
    if (deadline.passed()) return total;
    pollfd waiting{hold_->fd(), POLLIN, 0};
    ::poll(&waiting, 1, deadline.remaining_ms());
  }
}

absl::StatusOr<std::vector<Neighbour>> Port::neighbours() const {
  GW_ASSIGN_OR_RETURN(const NetnsScope inside, NetnsScope::enter(spec_.capsule_netns));
  GW_ASSIGN_OR_RETURN(Netlink netlink, Netlink::open());
  GW_ASSIGN_OR_RETURN(const int eth0, netlink.ifindex_of(kInner));
  return netlink.neighbours(eth0);
}

absl::Status Port::set_neighbours(const std::vector<Neighbour>& neighbours) {
  GW_ASSIGN_OR_RETURN(const LinkState bridge, netlink_.link_state(spec_.bridge));
  GW_ASSIGN_OR_RETURN(const std::vector<IpPrefix> ours, netlink_.addresses(bridge.ifindex));
  GW_ASSIGN_OR_RETURN(const NetnsScope inside, NetnsScope::enter(spec_.capsule_netns));
  GW_ASSIGN_OR_RETURN(Netlink netlink, Netlink::open());
  GW_ASSIGN_OR_RETURN(const int eth0, netlink.ifindex_of(kInner));
  for (Neighbour neighbour : neighbours) {
    neighbour.ifindex = eth0;
    for (const IpPrefix& own : ours) {
      if (own.ip == neighbour.ip) neighbour.mac = bridge.mac;
    }
    // Stale: used at once, and confirmed by the kernel while it is in use. A probe or delay under
    // way at the source would be sent by this kernel in the name of a timer it does not have.
    if ((neighbour.state & NUD_PERMANENT) == 0) neighbour.state = NUD_STALE;
    GW_RETURN_IF_ERROR(netlink.add_neighbour(neighbour));
  }
  return absl::OkStatus();
}

}  // namespace godwit::network
