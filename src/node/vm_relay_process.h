// A VmRelay as its daemon sees it: a mover in the role of one. It ends with its daemon, unless it
// was told to keep(): then the daemon's successor ends it (end_vm_relay).
#ifndef GODWIT_NODE_VM_RELAY_PROCESS_H_
#define GODWIT_NODE_VM_RELAY_PROCESS_H_

#include <memory>
#include <mutex>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "api/records.pb.h"
#include "migration/daemon_link.h"
#include "migration/mover.pb.h"
#include "node/mover_process.h"
#include "node/node_config.h"
#include "node/spare_mover.h"

namespace godwit::node {

// Any thread.
class VmRelayProcess {
 public:
  // `start`: role, proof, bandwidth, peer or listen_host; the rest is set here.
  static absl::StatusOr<std::unique_ptr<VmRelayProcess>> start(SpareMover& spare,
                                                               const NodeConfig& config,
                                                               const std::string& libvirt_socket,
                                                               const std::string& id,
                                                               migration::MoverStart start);
  // Ends it, unless leave() was called.
  ~VmRelayProcess() = default;

  // `entry` can end it.
  void note(api::MigrationJournal& entry) const;
  // Done when this returns; a relay that has died is broken.
  void order(migration::VmOrder order);
  // As of the last order, VM_LOOK at least.
  migration::VmRelayState look();
  // It lives on, until end_vm_relay().
  void leave() { mover_->leave(); }

  uint16_t port() const { return port_; }
  // Of its sockets as this process has to name them (vm_relay.h).
  std::string path(char kind) const { return folder_ + "/" + id_ + "." + kind; }

 private:
  VmRelayProcess() = default;
  absl::Status ask(migration::VmOrder order);

  std::string folder_;
  std::string id_;
  uint16_t port_ = 0;
  std::mutex mutex_;
  std::unique_ptr<MoverProcess> mover_;
  migration::VmRelayState state_;
};

// Fine when it has gone.
absl::Status end_vm_relay(const api::MigrationJournal& entry);

// At a destination: whether the relay has let the machine run, or was about to.
bool was_let_run(const NodeConfig& config, const std::string& id);

// The mover's side.
migration::Finished run_vm_relay(const migration::MoverStart& start, migration::DaemonLink& daemon);

}  // namespace godwit::node

#endif  // GODWIT_NODE_VM_RELAY_PROCESS_H_
