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
#include "vm/pump.h"

namespace godwit::node {

class VmRelay {
 public:
  // `libvirt`: its daemon's socket on this node. `pacer`: null: no limit.
  static absl::StatusOr<std::unique_ptr<VmRelay>> at_source(const NodeConfig& config,
                                                            const std::string& libvirt,
                                                            const std::string& id,
                                                            const std::string& host, uint16_t port,
                                                            migration::Terms terms,
                                                            std::unique_ptr<pages::Pacer> pacer);
  static absl::StatusOr<std::unique_ptr<VmRelay>> at_destination(const NodeConfig& config,
                                                                 const std::string& libvirt,
                                                                 const std::string& id,
                                                                 migration::Terms terms);
  ~VmRelay();

  // Of a daemon that died.
  static void remove_sockets(const NodeConfig& config, const std::string& id);

  uint16_t port() const { return port_; }  // destination
  // Of the sockets above: 'c', 'm', 'd' or 's'. As our own process has to name them,
  std::string path(char kind) const { return folder_ + "/" + id_ + "." + kind; }
  // and as libvirt and QEMU do, at both ends alike.
  static std::string shared_path(const std::string& id, char kind);

  // Between libvirt's client here and libvirt here: while held, what the client says does not
  // arrive; nothing of it arrives any more when this returns.
  void hold_own(bool held);
  // All connections are closed, at once.
  void cut();

  vm::Traffic& traffic() { return traffic_; }
  // The way to the other node broke, or, at the destination, its client has gone.
  bool broken() const { return broken_; }
  bool control_ended() const { return control_ended_; }

 private:
  struct Flow {
    char kind = 0;
    UniqueFd local;
    std::unique_ptr<tls::Channel> far;
    std::unique_ptr<vm::Pump> pump;  // under mutex_
    std::thread thread;
    std::atomic<bool> ended = false;
  };
  VmRelay(const NodeConfig& config, std::string libvirt, std::string id, migration::Terms terms)
      : folder_(config.vm_sockets),
        libvirt_(std::move(libvirt)),
        id_(std::move(id)),
        terms_(std::move(terms)) {}
  absl::Status listen_locally();
  void accept_locally();
  void accept_from_peer();
  void add(char kind, UniqueFd local, std::unique_ptr<tls::Channel> far);
  // Makes the end that is missing.
  absl::Status complete(Flow& flow);
  void serve(Flow& flow);

  const std::string folder_;
  const std::string libvirt_;
  const std::string id_;
  const migration::Terms terms_;
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
  std::mutex mutex_;
  std::list<Flow> flows_;
  std::thread accepting_;
};

// The folder for the sockets, so that QEMU can make some there and nobody can list them.
absl::Status make_vm_socket_folder(const std::string& folder);

}  // namespace godwit::node

#endif  // GODWIT_NODE_VM_RELAY_H_
