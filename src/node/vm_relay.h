// The sockets of one virtual machine's migration on one node. What libvirt and QEMU have to say to
// the other node they say to unix sockets of ours, and it goes through the nodes' own authenticated
// connection (migration/peer.h), where it is counted and limited and can be cut off at once.
//
//   source                                                    destination
//   godwit (libvirt's client) -> ID.c  ==== kVmControl ====>  libvirt's socket
//   QEMU                      -> ID.m  ==== kVmMemory  ====>  ID.m <- QEMU listens
//   QEMU                      -> ID.d  ==== kVmDisks   ====>  ID.d <- QEMU's NBD server listens
//   godwit (libvirt's client) -> ID.s  ->  libvirt's socket here: see hold_own()
#ifndef GODWIT_NODE_VM_RELAY_H_
#define GODWIT_NODE_VM_RELAY_H_

#include <atomic>
#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include "absl/status/statusor.h"
#include "base/unique_fd.h"
#include "migration/peer.h"
#include "node/node_config.h"
#include "vm/lasting_pump.h"
#include "vm/pump.h"

namespace godwit::node {

// In a process of its own (a mover, see vm_relay_process.h): in post-copy its end would be the
// machine's, and a daemon may be started again meanwhile.
class VmRelay {
 public:
  // By start.role(). At the destination a message of libvirt's client that lets the machine run
  // is held back until release(), if it may run before all of its memory is there.
  static absl::StatusOr<std::unique_ptr<VmRelay>> start(const migration::MoverStart& start);
  ~VmRelay();

  // Of one whose daemon died, and what release() has left.
  static void remove_sockets(const NodeConfig& config, const std::string& id);
  // As libvirt and QEMU name it, at both ends alike.
  static std::string shared_path(const std::string& id, char kind);

  // A file that release() makes before it lets the machine run.
  static std::string mark_path(const std::string& folder, const std::string& id) {
    return folder + "/" + id + ".ran";
  }

  // Between libvirt's client here and libvirt here: while held, what the client says does not
  // arrive; nothing of it arrives any more when this returns.
  void hold_own(bool held);
  // From here on connections to the other node that break are made anew.
  void keep();
  // All connections are closed, at once; but, if asked so, the one of hold_own().
  void cut(bool own_too);
  void release();

  vm::Traffic& traffic() { return traffic_; }
  migration::VmRelayState state();
  // All that has been connected has ended.
  bool idle();

 private:
  struct Flow {
    char kind = 0;
    UniqueFd local;
    std::unique_ptr<tls::Channel> far;
    vm::FlowHello hello;                       // destination, in post-copy
    std::unique_ptr<vm::Pump> pump;            // under mutex_
    std::unique_ptr<vm::LastingPump> lasting;  // likewise: one of the two
    std::thread thread;
    std::atomic<bool> ended = false;
  };
  VmRelay(const migration::MoverStart& start, migration::Terms terms)
      : folder_(start.vm_sockets()),
        libvirt_(start.vm_libvirt()),
        id_(start.migration_id()),
        terms_(std::move(terms)),
        source_(start.role() == migration::ROLE_VM_SOURCE),
        post_copy_(start.vm_post_copy()) {}
  std::string path(char kind) const { return folder_ + "/" + id_ + "." + kind; }
  absl::Status listen_locally();
  void accept_locally();
  void accept_from_peer();
  void take(migration::Accepted accepted);
  void add(char kind, UniqueFd local, std::unique_ptr<tls::Channel> far, vm::FlowHello hello);
  absl::StatusOr<std::unique_ptr<tls::Channel>> connect_to_peer(char kind, absl::Duration within);
  // Makes the end that is missing.
  absl::Status complete(Flow& flow);
  bool pump(Flow& flow);
  bool pump_lasting(Flow& flow);
  void serve(Flow& flow);

  const std::string folder_;
  const std::string libvirt_;
  const std::string id_;
  const migration::Terms terms_;
  const bool source_;
  const bool post_copy_;
  std::string host_;  // source
  uint16_t port_ = 0;
  migration::Listener listener_;  // destination
  struct Local {
    char kind;
    UniqueFd fd;
  };
  std::vector<Local> locals_;  // source
  vm::Traffic traffic_;
  std::atomic<bool> stopping_ = false;
  std::atomic<bool> broken_ = false;
  std::atomic<bool> control_ended_ = false;
  std::atomic<bool> own_held_ = false;
  std::atomic<bool> lasting_ = false;
  std::mutex mutex_;
  std::list<Flow> flows_;
  uint32_t last_flow_ = 0;
  std::thread accepting_;
};

// The folder for the sockets, so that QEMU can make some there and nobody can list them.
absl::Status make_vm_socket_folder(const std::string& folder);

}  // namespace godwit::node

#endif  // GODWIT_NODE_VM_RELAY_H_
