// This node's machine as a place for a service, and what one of its services needs of another: the
// two sides of migration/precheck.h.
#ifndef GODWIT_NODE_MACHINE_H_
#define GODWIT_NODE_MACHINE_H_

#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "api/godwit.pb.h"
#include "api/records.pb.h"
#include "capsule/capsule.h"
#include "kernel/features.h"
#include "kernel/vdso.h"
#include "migration/mover.pb.h"
#include "migration/precheck.pb.h"
#include "node/services.h"

namespace godwit::node {

// What does not change while the machine runs; 5 ms.
struct MachineFacts {
  kernel::Features features;
  migration::Cpu cpu;
  migration::Vdso vdso;
  std::string kernel;  // release
};
absl::StatusOr<MachineFacts> find_machine_facts();

// With what there is now.
absl::StatusOr<migration::Machine> describe_machine(const MachineFacts& facts,
                                                    const capsule::NodePaths& paths);

// Of a service that runs here. Reads /proc only.
absl::StatusOr<migration::Needs> needs_of(const MachineFacts& facts, const Services& services,
                                          const api::ServiceRecord& record);

// May the service of `request` come to this node, by what it says that it needs? What stands in the
// way goes into `reply`, with what this machine has.
absl::Status judge_needs(const MachineFacts& facts, const capsule::NodePaths& paths,
                         const std::string& node, const api::PrepareReplicaRequest& request,
                         api::PrepareReplicaReply& reply);

// Compares `request.used_files` with what is below a layer here, for a replica that is not there
// yet.
absl::Status compare_files(const capsule::NodePaths& paths, const capsule::CapsuleSpec& spec,
                           const api::PrepareReplicaRequest& request,
                           api::PrepareReplicaReply& reply);

// What this kernel lacks for a move away, by the name of `node`.
std::vector<migration::Reason> missing_at_source(const MachineFacts& facts,
                                                 const std::string& node);

// What stands in the way where `node` (this one) and `peer` have it otherwise about TLS on movers'
// connections.
std::optional<migration::Reason> judge_data_tls(const std::string& node, bool data_tls,
                                                const std::string& peer, api::DataTls peers);

api::Refusal to_refusal(const migration::Reason& reason);

}  // namespace godwit::node

#endif  // GODWIT_NODE_MACHINE_H_
