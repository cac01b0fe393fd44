// What follows when a migration did not end by itself: the store says who owns the service, and
// both ends obey. Everything here can be done again from the start by another daemon.
#include <grpcpp/client_context.h>

#include "api/rpc_status.h"
#include "base/log.h"
#include "base/status.h"
#include "node/log_carrier.h"
#include "node/mover_process.h"
#include "node/node.h"

namespace godwit::node {
namespace {

constexpr absl::Duration kAbortTimeout = absl::Seconds(30);

// The other end would find out by itself when it asks the store; told, it need not wait.
void tell_destination(Peers& peers, const api::MigrationJournal& entry) {
  if (entry.peer().empty()) return;
  const auto peer = peers.find(entry.peer());
  if (!peer.ok()) return;
  grpc::ClientContext context;
  set_timeout(context, kAbortTimeout);
  api::AbortReplicaRequest request;
  request.set_migration_id(entry.id());
  request.set_service(entry.service());
  api::Empty reply;
  const absl::Status told = api::from_grpc((*peer)->peer->AbortReplica(&context, request, &reply));
  if (!told.ok() && !absl::IsNotFound(told))
    log_warning("telling {} that migration {} is off: {}", entry.peer(), entry.id(),
                message_of(told));
}

// Best effort: a lost log must not keep a source from being taken down.
void hand_on_log(Peers& peers, const capsule::ServicePaths& paths, const std::string& service,
                 const std::string& owner) {
  const auto peer = peers.find(owner);
  const absl::Status sent = peer.ok() ? send_log(paths, service, *(*peer)->peer) : peer.status();
  if (!sent.ok()) log_warning("handing the log of {} to {}: {}", service, owner, message_of(sent));
}

}  // namespace

absl::StatusOr<std::string> Node::settle_source(const api::MigrationJournal& entry, bool undone,
                                                UniqueFd hold) {
  GW_RETURN_IF_ERROR(kill_left_over_mover(entry.mover_pid(), entry.mover_start_ticks()));
  std::string owner;
  const absl::Status answered = until_answered([&] {
    return records_
        ->update(entry.service(),
                 [&](api::ServiceRecord& record) {
                   owner = record.owner();
                   if (owner != config_.name || record.migration_id() != entry.id())
                     return absl::CancelledError("settled");
                   // Any change of the record fences the destination's commit, which replaces the
                   // one revision that it was told.
                   record.set_generation(record.generation() + 1);
                   record.set_state(api::SERVICE_RUNNING);
                   record.clear_migration_id();
                   record.clear_destination();
                   return absl::OkStatus();
                 })
        .status();
  });
  if (stopping()) return absl::CancelledError("the daemon stops");
  // Removed at the destination after it had moved.
  const bool gone = absl::IsNotFound(answered);
  if (!answered.ok() && !absl::IsCancelled(answered) && !gone) return answered;
  if (gone || owner != config_.name) {
    log_info("migration {}: {} is on {}; taking it down here", entry.id(), entry.service(),
             gone ? "no node" : owner);
    if (!gone)
      hand_on_log(*peers_, services_.paths().service(entry.service()), entry.service(), owner);
    GW_RETURN_IF_ERROR(destroy_local(entry.service()));
    GW_RETURN_IF_ERROR(journal_.remove(entry.id()));
    return owner;
  }
  if (!undone) {
    log_info("migration {}: {} runs on here", entry.id(), entry.service());
    const absl::Status back = services_.roll_back(entry.service(), std::move(hold));
    // The service ended meanwhile and its supervisor will say so.
    if (!back.ok() && !absl::IsNotFound(back)) return back;
  }
  GW_RETURN_IF_ERROR(journal_.remove(entry.id()));
  tell_destination(*peers_, entry);
  return owner;
}

absl::Status Node::settle_destination(const api::MigrationJournal& entry, UniqueFd hold) {
  GW_RETURN_IF_ERROR(kill_left_over_mover(entry.mover_pid(), entry.mover_start_ticks()));
  absl::StatusOr<VersionedService> record = absl::UnknownError("");
  const absl::Status answered = until_answered([&] {
    record = records_->service(entry.service());
    return record.status();
  });
  if (!answered.ok() && !absl::IsNotFound(answered)) return answered;
  // Only this node's daemon commits, and it does so no more: what the record says now is final.
  const bool ours = record.ok() && record->record.owner() == config_.name &&
                    record->record.last_migration().id() == entry.id();
  if (ours) {
    log_info("migration {}: {} is ours; finishing it", entry.id(), entry.service());
    const absl::Status active =
        services_.activate(entry.service(), entry.main_image_pid(), std::move(hold));
    if (!active.ok())
      log_error("activating {} after migration {}: {}", entry.service(), entry.id(),
                message_of(active));
    supervise(entry.service());
    return journal_.remove(entry.id());
  }
  GW_RETURN_IF_ERROR(destroy_local(entry.service()));
  return journal_.remove(entry.id());
}

}  // namespace godwit::node
