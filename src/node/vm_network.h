// Frames for a virtual machine: where they go, and those that came while it stood still.
#ifndef GODWIT_NODE_VM_NETWORK_H_
#define GODWIT_NODE_VM_NETWORK_H_

#include <memory>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "api/godwit.pb.h"
#include "network/tap_frames.h"
#include "vm/domain.h"

namespace godwit::node {

// From here on frames for it come here: this bridge's forwarding entries are set, all others learn.
// The domain's XML must be that of a running one.
absl::Status announce_vm(const vm::DomainSpec& domain);

// At the source: what its taps get while it is about to stop.
class VmFrameRecorder {
 public:
  // Interfaces that are on no tap are left out; so are those that cannot be seen, with a warning:
  // then clients send again what they miss.
  explicit VmFrameRecorder(const vm::DomainSpec& domain);
  // Adds what has come since the last call. `stopped_ns`: CLOCK_REALTIME.
  void add_missed(int64_t stopped_ns, api::SwitchVmOverRequest& request);

 private:
  std::vector<std::unique_ptr<network::TapRecorder>> taps_;  // null: none
};

// Whether its bridges send frames to the machine.
//
// A QEMU that loads reads its taps already, before it has the network card's state, and with
// another header than the card will expect. So none may come until all is loaded.
absl::Status connect_vm(const vm::DomainSpec& domain, bool connected);

// At the destination: into the taps of a machine that is loaded and does not run yet, whose queues
// keep them.
class VmFrameGiver {
 public:
  explicit VmFrameGiver(const vm::DomainSpec& domain);
  void give(const api::SwitchVmOverRequest& request);

 private:
  std::vector<std::optional<network::TapSender>> taps_;
};

}  // namespace godwit::node

#endif  // GODWIT_NODE_VM_NETWORK_H_
