#include "node/vm_network.h"

#include "base/log.h"
#include "base/status.h"
#include "network/announce.h"
#include "network/frames.h"
#include "network/netlink.h"

namespace godwit::node {

absl::Status announce_vm(const vm::DomainSpec& domain) {
  GW_ASSIGN_OR_RETURN(network::Netlink netlink, network::Netlink::open());
  for (const vm::Interface& each : domain.interfaces) {
    if (each.bridge.empty() || each.tap.empty()) continue;
    GW_ASSIGN_OR_RETURN(const network::MacAddress mac, network::parse_mac(each.mac));
    GW_ASSIGN_OR_RETURN(const int tap, netlink.ifindex_of(each.tap));
    GW_ASSIGN_OR_RETURN(const int on, netlink.ifindex_of(each.bridge));
    GW_RETURN_IF_ERROR(netlink.set_bridge_forwarding(tap, mac));
    // What the bridge itself sends to all goes out of every port; the guest ignores it.
    GW_ASSIGN_OR_RETURN(const network::FrameSender out, network::FrameSender::open(on));
    GW_RETURN_IF_ERROR(out.send(network::reverse_arp(mac)));
  }
  return absl::OkStatus();
}

namespace {

absl::StatusOr<int> tap_of(const vm::Interface& interface) {
  if (interface.tap.empty())
    return make_error(absl::StatusCode::kNotFound, "{} has no tap", interface.mac);
  GW_ASSIGN_OR_RETURN(network::Netlink netlink, network::Netlink::open());
  return netlink.ifindex_of(interface.tap);
}

}  // namespace

VmFrameRecorder::VmFrameRecorder(const vm::DomainSpec& domain) {
  for (const vm::Interface& each : domain.interfaces) {
    const auto tap = tap_of(each);
    auto recorder = tap.ok() ? network::TapRecorder::open(*tap) : tap.status();
    if (!recorder.ok() && !absl::IsNotFound(recorder.status()))
      log_warning("frames for {}: {}", each.mac, message_of(recorder.status()));
    taps_.push_back(recorder.ok() ? *std::move(recorder) : nullptr);
  }
}

void VmFrameRecorder::add_missed(int64_t stopped_ns, api::SwitchVmOverRequest& request) {
  for (const auto& each : taps_) {
    api::VmFrames* frames = request.add_frames();
    if (each == nullptr) continue;
    for (std::string& frame : each->missed(stopped_ns)) frames->add_frames(std::move(frame));
  }
}

absl::Status connect_vm(const vm::DomainSpec& domain, bool connected) {
  // As libvirt makes them; what waits in a queue that is shortened is dropped.
  constexpr uint32_t kQueue = 1000;
  GW_ASSIGN_OR_RETURN(network::Netlink netlink, network::Netlink::open());
  for (const vm::Interface& each : domain.interfaces) {
    if (each.bridge.empty() || each.tap.empty()) continue;
    GW_ASSIGN_OR_RETURN(const int tap, netlink.ifindex_of(each.tap));
    network::LinkChange queue;
    queue.txqueuelen = connected ? kQueue : 1;
    if (!connected) GW_RETURN_IF_ERROR(netlink.set_bridge_port(tap, false));
    GW_RETURN_IF_ERROR(netlink.change_link(tap, queue));
    if (connected) GW_RETURN_IF_ERROR(netlink.set_bridge_port(tap, true));
  }
  return absl::OkStatus();
}

VmFrameGiver::VmFrameGiver(const vm::DomainSpec& domain) {
  for (const vm::Interface& each : domain.interfaces) {
    const auto tap = tap_of(each);
    auto sender = tap.ok() ? network::TapSender::open(*tap) : tap.status();
    if (!sender.ok()) log_warning("frames for {}: {}", each.mac, message_of(sender.status()));
    taps_.push_back(sender.ok() ? std::optional(*std::move(sender)) : std::nullopt);
  }
}

void VmFrameGiver::give(const api::SwitchVmOverRequest& request) {
  const size_t count = std::min(taps_.size(), static_cast<size_t>(request.frames_size()));
  for (size_t i = 0; i < count; ++i) {
    if (!taps_[i]) continue;
    for (const std::string& frame : request.frames(static_cast<int>(i)).frames()) {
      const absl::Status sent = taps_[i]->send(frame);
      if (!sent.ok()) {
        log_warning("giving a machine its frames: {}", message_of(sent));
        break;
      }
    }
  }
}

}  // namespace godwit::node
