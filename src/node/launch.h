// From a user's `run` to a service: name and address claimed in the store, capsule and port made,
// program started. Whatever fails, nothing is left.
#ifndef GODWIT_NODE_LAUNCH_H_
#define GODWIT_NODE_LAUNCH_H_

#include <cstdint>
#include <optional>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "api/godwit.pb.h"
#include "capsule/capsule.h"
#include "node/busy.h"
#include "node/node_config.h"
#include "node/records.h"

namespace godwit::node {

class Node;

// Made, not started. Unless start() succeeds, the destructor takes it all back.
class Launch {
 public:
  static absl::StatusOr<Launch> prepare(Node& node, const api::RunRequest& request);
  Launch(Launch&& other) noexcept
      : node_(other.node_),
        hold_(std::move(other.hold_)),
        versioned_(std::move(other.versioned_)),
        claimed_(std::exchange(other.claimed_, false)),
        capsule_(std::move(other.capsule_)) {}
  ~Launch();

  capsule::Capsule& capsule() { return *capsule_; }
  // Runs the program; from here on the service is supervised.
  absl::StatusOr<api::Service> start();

 private:
  explicit Launch(Node* node) : node_(node) {}

  Node* node_;
  Busy::Hold hold_;
  VersionedService versioned_;
  bool claimed_ = false;
  std::optional<capsule::Capsule> capsule_;
};

// What the capsule is made from; its address is still to be chosen.
absl::StatusOr<capsule::CapsuleSpec> spec_of(const api::RunRequest& request);

// Of --ip: "" or an address of the subnet.
absl::Status check_ip(const NodeConfig& config, const std::string& ip);
// `wanted` ("": a free one) becomes the service's, with what follows from it: the other family's, a
// MAC address, the gateway.
absl::Status claim_addresses(const Node& node, const std::string& wanted,
                             capsule::CapsuleSpec& spec);

// Addresses to try, in order: a random start keeps two nodes from racing for the same one.
struct AddressPool {
  uint32_t first = 0, last = 0;  // host byte order
  uint8_t prefix = 0;
};
absl::StatusOr<AddressPool> parse_pool(const std::string& subnet, const std::string& pool);

}  // namespace godwit::node

#endif  // GODWIT_NODE_LAUNCH_H_
