// Where a node keeps what belongs to a service.
//
//   <state>/services/<name>/  spec.pb     CapsuleSpec
//                             status.pb   CapsuleInfo, as of the last change of state
//                             shim.sock   the shim listens here (SOCK_SEQPACKET)
//                             shim.log    the shim's own messages
//                             log         what the service wrote (log_file.h)
//                             layer/      upper, shm: the writable layer, moves with the service;
//                                         work: overlayfs's own
//                             root/       mount point, only inside the capsule's mount namespace
//                             port/       the network component's
#ifndef GODWIT_CAPSULE_PATHS_H_
#define GODWIT_CAPSULE_PATHS_H_

#include <string>
#include <string_view>

#include "absl/status/status.h"

namespace godwit::capsule {

// Names become folders, cgroups and host names: 1..63 of [a-z0-9A-Z_.-], letter or digit first.
absl::Status check_name(std::string_view name);

// A service's capsule on a node has the service's name, or that with "~" and a few letters and
// digits, for a service that was moved in place: then two capsules of it are there for a while.
absl::Status check_capsule_name(std::string_view name);
std::string_view service_of(std::string_view capsule);

struct ServicePaths {
  std::string dir;
  std::string spec() const { return dir + "/spec.pb"; }
  std::string status() const { return dir + "/status.pb"; }
  std::string socket() const { return dir + "/shim.sock"; }
  std::string shim_log() const { return dir + "/shim.log"; }
  std::string log() const { return dir + "/log"; }
  std::string layer() const { return dir + "/layer"; }
  std::string upper() const { return dir + "/layer/upper"; }
  std::string work() const { return dir + "/layer/work"; }
  std::string shm() const { return dir + "/layer/shm"; }
  std::string root() const { return dir + "/root"; }
  std::string port() const { return dir + "/port"; }
};

struct NodePaths {
  std::string state_dir;  // absolute
  std::string node;       // also names the cgroup godwit/<node>

  std::string services() const { return state_dir + "/services"; }
  ServicePaths service(std::string_view name) const {
    return {services() + "/" + std::string(name)};
  }
};

// Creates dir, layer/{upper,work,shm}, root and port where missing. The mover calls it before it
// fills the layer of a replica; Capsule::create() does too.
absl::Status make_service_dirs(const ServicePaths& paths);

}  // namespace godwit::capsule

#endif  // GODWIT_CAPSULE_PATHS_H_
