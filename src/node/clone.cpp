#include "node/clone.h"

#include "absl/cleanup/cleanup.h"
#include "base/clock.h"
#include "base/fault_point.h"
#include "base/log.h"
#include "base/status.h"
#include "capsule/paths.h"
#include "node/launch.h"
#include "node/new_service.h"
#include "node/node.h"

namespace godwit::node {

absl::StatusOr<CloneClaim> claim_clone(Node& node, const api::PrepareReplicaRequest& request,
                                       const capsule::CapsuleSpec& original) {
  CloneClaim claim;
  claim.spec = original;
  claim.spec.set_name(request.service());
  if (original.hostname() == request.clone_of()) claim.spec.set_hostname(request.service());
  api::ServiceRecord& record = claim.record.record;
  GW_RETURN_IF_ERROR(claim_new_name(node, request.service(), claim.record));
  auto undo = absl::MakeCleanup([&] {
    const absl::Status gone = remove_clone(node, request.service());
    if (!gone.ok()) log_error("undoing clone {}: {}", request.service(), message_of(gone));
  });
  FAULT_POINT("clone.named");
  GW_RETURN_IF_ERROR(claim_addresses(node, request.ip(), claim.spec));
  record.set_address(claim.spec.addresses(0).ip());
  record.set_spec(claim.spec.SerializeAsString());
  GW_RETURN_IF_ERROR(node.records().put(claim.record));
  // Of both families in the same order, as they were given.
  for (const capsule::Address& from : original.addresses())
    for (const capsule::Address& to : claim.spec.addresses()) {
      const bool v6 = from.ip().find(':') != std::string::npos;
      if (v6 != (to.ip().find(':') != std::string::npos)) continue;
      auto& change = claim.changes.emplace_back();
      change.set_from(from.ip());
      change.set_to(to.ip());
    }
  std::move(undo).Cancel();
  return claim;
}

absl::Status remove_clone(Node& node, const std::string& name) {
  auto record = node.records().service(name);
  const bool ours = record.ok() && record->record.owner() == node.config().name &&
                    record->record.state() == api::SERVICE_CREATING;
  if (ours) return node.remove_service(name);
  if (!record.ok() && !absl::IsNotFound(record.status())) return record.status();
  // Another node's, or nobody's: then what is here is a leftover.
  if (!record.ok() || record->record.owner() != node.config().name) return node.destroy_local(name);
  return absl::OkStatus();
}

}  // namespace godwit::node
