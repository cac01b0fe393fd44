// The capsules of this node with their ports: everything about a service that needs no store.
//
// Thread rule: any thread; calls for one service must not overlap (Busy), but reading calls (info,
// open) may come at any time.
#ifndef GODWIT_NODE_SERVICES_H_
#define GODWIT_NODE_SERVICES_H_

#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "api/records.pb.h"
#include "base/unique_fd.h"
#include "capsule/capsule.h"
#include "network/frames.h"
#include "node/node_config.h"

namespace godwit::node {

class Services {
 public:
  explicit Services(const NodeConfig& config)
      : config_(config), paths_{config.state_dir, config.local()} {}
  const capsule::NodePaths& paths() const { return paths_; }
  // The capsule that is the service's here: what all calls below mean by a service's name.
  std::string capsule_of(const std::string& service) const;
  void set_capsule(const std::string& service, const std::string& capsule) const;
  capsule::ServicePaths paths_of(const std::string& service) const {
    return paths_.service(capsule_of(service));
  }

  // Capsule and port; the gate is closed both ways. Nothing is left on error. A replica lives only
  // as long as what this returns, until adopt().
  absl::StatusOr<capsule::Capsule> create(const capsule::CapsuleSpec& spec, bool replica) const;
  // Opens the gate, tells the neighbours, runs the program.
  absl::StatusOr<capsule::CapsuleInfo> start(capsule::Capsule& capsule) const;
  absl::StatusOr<capsule::Capsule> open(const std::string& name) const {
    return capsule::Capsule::open(paths_, capsule_of(name));
  }
  absl::StatusOr<capsule::CapsuleInfo> info(const std::string& name) const;
  // Port first, so that the emptied namespace answers nobody; then everything else. Idempotent.
  absl::Status destroy(const std::string& name) const { return destroy_capsule(capsule_of(name)); }
  absl::Status destroy_capsule(const std::string& capsule) const;

  // The source of a move that will not happen, whatever its dead mover left: sockets out of repair,
  // gate open, neighbours told, tree thawed. Idempotent; the mover must be dead.
  // `hold`: a copy of its port's hold, or none: then what is held there is lost.
  absl::Status roll_back(const std::string& name, UniqueFd hold) const;
  // Frames that belong to it and came by another way than its port.
  absl::Status give(const std::string& name, const network::Frames& frames) const;
  // A replica (by its capsule) that will not be: nothing leaves its port any more; what comes is
  // held on.
  absl::Status silence(const std::string& capsule) const;
  // The destination of a move that was committed, if its mover did not get so far: thawed, gate
  // open, adopted with its main process (0: that has ended). Idempotent; the mover must be dead.
  absl::Status activate(const std::string& name, int32_t main_image_pid, UniqueFd hold) const;

 private:
  // Of services whose capsule has another name than they have.
  struct Capsules {
    std::mutex mutex;
    std::map<std::string, std::string> by_service;
  };
  NodeConfig config_;
  capsule::NodePaths paths_;
  std::unique_ptr<Capsules> capsules_ = std::make_unique<Capsules>();
};

// Of the cgroup that limits a service's CPU time (capsule/cpu_limit.h).
std::string cpu_limit_name(const capsule::NodePaths& node, const std::string& capsule);
// Of a record.
std::string capsule_in(const api::ServiceRecord& record);

}  // namespace godwit::node

#endif  // GODWIT_NODE_SERVICES_H_
