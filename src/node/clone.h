// A clone: a second, live copy of a service, under another name and with addresses of its own.
//
//   original's node   clone(): as a checkpoint that leaves it running, to a peer instead of a file
//   clone's node      ReplicaSession: as a move to here, but for who is asked for the name
//
// The clone's record is there from the beginning, as of a service that is being created: it keeps
// name and address, and it is what a commit replaces, so that no late one can come after the clone
// was given up. What runs has a record that says so, since the commit and not before.
#ifndef GODWIT_NODE_CLONE_H_
#define GODWIT_NODE_CLONE_H_

#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "api/godwit.pb.h"
#include "capsule/capsule.pb.h"
#include "migration/mover.pb.h"
#include "node/records.h"

namespace godwit::node {

class Node;

struct CloneClaim {
  VersionedService record;
  capsule::CapsuleSpec spec;  // the clone's
  std::vector<migration::MoverStart::AddressChange> changes;
};
// Name and addresses. On error nothing of it is left.
absl::StatusOr<CloneClaim> claim_clone(Node& node, const api::PrepareReplicaRequest& request,
                                       const capsule::CapsuleSpec& original);
// A clone that will not be: whatever there is of it, unless the name is another's.
absl::Status remove_clone(Node& node, const std::string& name);

}  // namespace godwit::node

#endif  // GODWIT_NODE_CLONE_H_
