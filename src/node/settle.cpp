// What follows when a migration did not end by itself: the store says who owns the service, and
// both ends obey. Everything here can be done again from the start by another daemon.
#include <grpcpp/client_context.h>

#include <ctime>

#include "api/rpc_status.h"
#include "base/fault_point.h"
#include "base/log.h"
#include "base/status.h"
#include "node/clone.h"
#include "node/log_carrier.h"
#include "node/mover_process.h"
#include "node/node.h"
#include "node/ownership.h"
#include "node/vms.h"
#include "pages/uffd_release.h"

namespace godwit::node {
namespace {

// One that was told nothing notices the broken connection, so there is no point in asking for ever.
constexpr absl::Duration kCallOffWithin = absl::Seconds(30);
// What is brought back later than this has been sent again long since.
constexpr absl::Duration kFramesKeepFor = absl::Seconds(1);
// So long does a daemon that is to stop wait for an answer.
constexpr absl::Duration kCallOffSlice = absl::Seconds(2);
// It stops each process for less than a millisecond.
constexpr absl::Duration kCleanUpWithin = absl::Seconds(20);

absl::Status abort_replica(Peers& peers, const Services& services,
                           const api::MigrationJournal& entry, Deadline keep) {
  GW_ASSIGN_OR_RETURN(const std::shared_ptr<Peer> peer, peers.find(entry.peer()));
  grpc::ClientContext context;
  set_timeout(context, kCallOffSlice);
  context.set_wait_for_ready(true);
  api::AbortReplicaRequest request;
  request.set_migration_id(entry.id());
  request.set_service(entry.service());
  const auto answer = peer->peer->AbortReplica(&context, request);
  api::ReturnedFrames returned;
  while (answer->Read(&returned)) {
    if (keep.passed()) continue;
    network::Frames frames;
    for (const std::string& frame : returned.frame()) frames.append(frame);
    const absl::Status given = services.give(entry.service(), frames);
    // One that ended meanwhile needs none.
    if (!given.ok() && !absl::IsNotFound(given))
      log_warning("giving {} what came to {}: {}", entry.service(), entry.peer(),
                  message_of(given));
  }
  return api::from_grpc(answer->Finish());
}

// Best effort: a lost log must not keep a source from being taken down.
void hand_on_log(Peers& peers, const capsule::ServicePaths& paths, const std::string& service,
                 const std::string& owner) {
  const auto peer = peers.find(owner);
  const absl::Status sent = peer.ok() ? send_log(paths, service, *(*peer)->peer) : peer.status();
  if (!sent.ok()) log_warning("handing the log of {} to {}: {}", service, owner, message_of(sent));
}

}  // namespace

void Node::call_off(const api::MigrationJournal& entry) {
  if (entry.peer().empty()) return;
  tasks_.run([this, entry] {
    const Deadline deadline = Deadline::in(kCallOffWithin);
    const Deadline keep = Deadline::in(kFramesKeepFor);
    for (;;) {
      const absl::Status told = abort_replica(*peers_, services_, entry, keep);
      const bool later = absl::IsUnavailable(told) || absl::IsDeadlineExceeded(told);
      if (later && !stopping() && !deadline.passed()) {
        const timespec pause{0, 100'000'000};  // the store may be what cannot be reached
        ::nanosleep(&pause, nullptr);
        continue;
      }
      if (!told.ok() && !absl::IsNotFound(told))
        log_warning("telling {} that migration {} is off: {}", entry.peer(), entry.id(),
                    message_of(told));
      return;
    }
  });
}

// The program runs meanwhile. What cannot be taken out is no reason to keep it from anything.
void Node::clean_up_after_mover(const std::string& service,
                                std::vector<LeftByMover::Userfaultfd> userfaultfds) {
  for (LeftByMover::Userfaultfd& each : userfaultfds) {
    const absl::Status released = pages::release_uffd(std::move(each.fd), each.pid);
    if (!released.ok()) log_warning("{}: {}", service, message_of(released));
  }
  migration::MoverStart start;
  start.set_role(migration::ROLE_WITHDRAW);
  start.set_service(services_.capsule_of(service));
  start.set_node(config_.local());
  start.set_state_dir(config_.state_dir);
  const SpareMover::Pause pause(spare_mover_);
  const auto clean = [&]() -> absl::Status {
    GW_ASSIGN_OR_RETURN(const auto mover, spare_mover_.take_or_start(start));
    GW_ASSIGN_OR_RETURN(const migration::MoverToDaemon last,
                        mover->receive(Deadline::in(kCleanUpWithin)));
    if (last.finished().error().empty()) return absl::OkStatus();
    return absl::InternalError(last.finished().error());
  };
  absl::Status cleaned = clean();
  // Killed as well: what it left can be taken out like the rest.
  if (absl::IsOutOfRange(cleaned)) cleaned = clean();
  if (!cleaned.ok())
    log_warning("taking out of {} what a mover left in it: {}", service, message_of(cleaned));
}

absl::StatusOr<std::string> Node::settle_source(const api::MigrationJournal& entry, Undone undone,
                                                LeftByMover left) {
  if (!entry.vm_uuid().empty() && entry.side() == api::MigrationJournal::LOCAL) {
    GW_RETURN_IF_ERROR(vms_->settle_local(entry));
    return config_.name;
  }
  if (!entry.vm_uuid().empty()) return vms_->settle_source(entry);
  GW_ASSIGN_OR_RETURN(
      UniqueFd hold,
      end_left_over_mover(entry.mover_pid(), entry.mover_start_ticks(), entry.mover_hold_fd()));
  if (!left.hold) left.hold = std::move(hold);
  const auto answered = settle_owner_at_source(*records_, config_.name, entry, ask_again());
  if (stopping()) return absl::CancelledError("the daemon stops");
  // Removed at the destination after it had moved.
  const bool gone = absl::IsNotFound(answered.status());
  if (!answered.ok() && !gone) return answered.status();
  const std::string owner = answered.ok() ? *answered : "";
  if (owner == kReplacedHere) {
    log_info("migration {}: {} is in another capsule here; taking {} down", entry.id(),
             entry.service(), entry.capsule());
    // Unless the destination has: the end of what is taken down here must not count as the
    // service's.
    const auto record = records_->service(entry.service());
    if (!record.ok() && !absl::IsNotFound(record.status())) return record.status();
    if (record.ok() && services_.capsule_of(entry.service()) == entry.capsule())
      replace_capsule(entry.service(), capsule_in(record->record));
    hand_on_log(*peers_, services_.paths().service(entry.capsule()), entry.service(), config_.name);
    GW_RETURN_IF_ERROR(services_.destroy_capsule(entry.capsule()));
    GW_RETURN_IF_ERROR(journal_.remove(entry));
    return owner;
  }
  if (!gone && owner != config_.name && !entry.pages_given()) {
    GW_ASSIGN_OR_RETURN(const bool needed, post_copy_.is_needed(entry));
    // Frozen and behind a port that is down: it never runs again, and goes when it is not needed.
    if (needed) {
      post_copy_.keep(entry);
      return owner;
    }
  }
  if (gone || owner != config_.name) {
    FAULT_POINT("node.taking_down");
    log_info("migration {}: {} is on {}; taking it down here", entry.id(), entry.service(),
             gone ? "no node" : owner);
    if (!gone) hand_on_log(*peers_, services_.paths_of(entry.service()), entry.service(), owner);
    GW_RETURN_IF_ERROR(destroy_local(entry.service()));
    GW_RETURN_IF_ERROR(journal_.remove(entry));
    return owner;
  }
  if (undone == Undone::kNothing) {
    FAULT_POINT("node.rolling_back");
    log_info("migration {}: {} runs on here", entry.id(), entry.service());
    const absl::Status back = services_.roll_back(entry.service(), std::move(left.hold));
    // The service ended meanwhile and its supervisor will say so.
    if (!back.ok() && !absl::IsNotFound(back)) return back;
  }
  call_off(entry);
  FAULT_POINT("node.rolled_back");
  if (undone != Undone::kAll) clean_up_after_mover(entry.service(), std::move(left.userfaultfds));
  GW_RETURN_IF_ERROR(journal_.remove(entry));
  return owner;
}

absl::Status Node::settle_destination(const api::MigrationJournal& entry, UniqueFd hold) {
  if (!entry.vm_uuid().empty()) return vms_->settle_destination(entry);
  GW_ASSIGN_OR_RETURN(
      UniqueFd copied,
      end_left_over_mover(entry.mover_pid(), entry.mover_start_ticks(), entry.mover_hold_fd()));
  if (!hold) hold = std::move(copied);
  GW_ASSIGN_OR_RETURN(const bool ours,
                      settle_owner_at_destination(*records_, config_.name, entry, ask_again()));
  if (ours) {
    log_info("migration {}: {} is ours; finishing it", entry.id(), entry.service());
    if (!entry.capsule().empty()) services_.set_capsule(entry.service(), entry.capsule());
    const absl::Status active =
        services_.activate(entry.service(), entry.main_image_pid(), std::move(hold));
    // It still stands frozen, with nobody but the journal to know that it is not meant to.
    if (!active.ok() && !absl::IsNotFound(active))
      return annotate(active, fmt::format("activating {}", entry.service()));
    if (!active.ok()) log_error("{} ended before it ran here", entry.service());
    supervise(entry.service());
    post_copy_.fetch(entry.service());
    return journal_.remove(entry);
  }
  // Without its record no late commit of it can be made.
  GW_RETURN_IF_ERROR(entry.clone()             ? remove_clone(*this, entry.service())
                     : entry.capsule().empty() ? destroy_local(entry.service())
                                               : services_.destroy_capsule(entry.capsule()));
  return journal_.remove(entry);
}

}  // namespace godwit::node
