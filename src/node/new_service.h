// The name of a service that is about to be: run, restored or cloned.
#ifndef GODWIT_NODE_NEW_SERVICE_H_
#define GODWIT_NODE_NEW_SERVICE_H_

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "node/busy.h"
#include "node/records.h"

namespace godwit::node {

class Node;

// Held here until nothing of an earlier service of that name is left on this node: one that has
// moved away is still being taken down when it can already be removed where it went.
// kAlreadyExists: the store has such a service. `doing` as Busy::hold() has it.
absl::StatusOr<Busy::Hold> hold_new_name(Node& node, const std::string& name,
                                         const std::string& doing);

// Writes the first record of it, SERVICE_CREATING and owned by this node; what else is in `service`
// stays. kAlreadyExists: somebody else was first.
absl::Status claim_new_name(Node& node, const std::string& name, VersionedService& service);

}  // namespace godwit::node

#endif  // GODWIT_NODE_NEW_SERVICE_H_
