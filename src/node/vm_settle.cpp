// What follows when a virtual machine's migration did not end by itself: the store says whose it
// is, as for services (settle.cpp).
#include <grpcpp/client_context.h>

#include "api/rpc_status.h"
#include "base/fault_point.h"
#include "base/log.h"
#include "base/status.h"
#include "node/node.h"
#include "node/vm_network.h"
#include "node/vm_relay.h"
#include "node/vm_relay_process.h"
#include "node/vms.h"

namespace godwit::node {
namespace {

constexpr absl::Duration kCallOffWithin = absl::Seconds(30);
constexpr absl::Duration kCallOffSlice = absl::Seconds(10);
// Of libvirt: for what its client has left to be given up.
constexpr absl::Duration kJobEndWait = absl::Seconds(20);

void nap() {
  const timespec pause{0, 50'000'000};
  ::nanosleep(&pause, nullptr);
}

// Of a machine that is this node's and whose memory is at its source yet: it never ran here, and is
// that one's again. The record first: whoever reads it may be the source.
absl::Status give_back(const Records& records, const api::MigrationJournal& entry,
                       const std::string& self) {
  return records
      .update(entry.service(),
              [&](api::ServiceRecord& record) -> absl::Status {
                if (record.owner() != self || record.pages_at().empty())
                  return absl::AbortedError("it is not to be given back");
                record.set_owner(record.pages_at());
                record.clear_pages_at();
                record.set_generation(record.generation() + 1);
                record.set_state(api::SERVICE_RUNNING);
                return absl::OkStatus();
              })
      .status();
}

// All of its memory is here.
absl::Status forget_source(const Records& records, const std::string& service,
                           const std::string& self) {
  bool done = false;
  const absl::Status told = records
                                .update(service,
                                        [&](api::ServiceRecord& record) -> absl::Status {
                                          done =
                                              record.owner() != self || record.pages_at().empty();
                                          if (done) return absl::CancelledError("done");
                                          record.clear_pages_at();
                                          return absl::OkStatus();
                                        })
                                .status();
  return done || absl::IsNotFound(told) ? absl::OkStatus() : told;
}

// A predecessor may have died with the bridges' ports closed.
absl::Status lead_frames_here(vm::Hypervisor& hypervisor, const std::string& uuid) {
  const auto xml = hypervisor.xml(uuid, false);
  const auto domain = xml.ok() ? vm::parse_domain(*xml) : xml.status();
  if (!domain.ok()) return absl::OkStatus();
  GW_RETURN_IF_ERROR(connect_vm(*domain, true));
  return announce_vm(*domain);
}

// The source runs on. libvirt resumes a domain whose migration failed by itself, but not one that
// had gone over completely.
absl::Status run_on(vm::Hypervisor& hypervisor, const api::MigrationJournal& entry) {
  const std::string& uuid = entry.vm_uuid();
  const Deadline deadline = Deadline::in(kJobEndWait);
  const auto in_post_copy = hypervisor.in_post_copy(uuid);
  if (in_post_copy.ok() && *in_post_copy) GW_RETURN_IF_ERROR(hypervisor.come_back(uuid));
  GW_RETURN_IF_ERROR(end_vm_relay(entry));
  for (;;) {
    const auto job = hypervisor.job(uuid);
    if (absl::IsNotFound(job.status())) return absl::OkStatus();  // it has ended
    // Of a domain that does not run there are no figures.
    if (!job.ok() && !absl::IsFailedPrecondition(job.status())) return job.status();
    if (!job.ok() || !job->active) break;
    if (deadline.passed()) {
      GW_RETURN_IF_ERROR(hypervisor.abort_job(uuid));
      return make_error(absl::StatusCode::kUnavailable,
                        "libvirt has not ended the migration yet; if it does not, start its "
                        "daemon again, which leaves machines as they are");
    }
    nap();
  }
  const auto state = hypervisor.state(uuid);
  if (absl::IsNotFound(state.status())) return absl::OkStatus();
  GW_RETURN_IF_ERROR(state.status());
  if (*state == vm::DomainState::kPaused) GW_RETURN_IF_ERROR(hypervisor.resume(uuid));
  const auto xml = hypervisor.xml(uuid, false);
  const auto spec = xml.ok() ? vm::parse_domain(*xml) : xml.status();
  if (spec.ok() && entry.vm_disks_size() > 0) hypervisor.drop_mirrors(uuid, spec->disks);
  const absl::Status told = spec.ok() ? announce_vm(*spec) : absl::Status(spec.status());
  if (!told.ok()) log_warning("announcing {}: {}", uuid, message_of(told));
  return absl::OkStatus();
}

absl::Status remove_disks(vm::Hypervisor& hypervisor, const api::MigrationJournal& entry) {
  for (const std::string& each : entry.vm_disks()) GW_RETURN_IF_ERROR(hypervisor.remove_disk(each));
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::string> Vms::settle_source(const api::MigrationJournal& entry) {
  GW_ASSIGN_OR_RETURN(const auto hypervisor, hypervisor());
  const auto answered =
      settle_owner_at_source(node_.records(), node_.config().name, entry, node_.ask_again());
  if (node_.stopping()) return absl::CancelledError("the daemon stops");
  const bool gone = absl::IsNotFound(answered.status());
  if (!answered.ok() && !gone) return answered.status();
  const std::string owner = answered.ok() ? *answered : "";
  if (owner == node_.config().name) {
    FAULT_POINT("node.rolling_back");
    log_info("migration {}: {} runs on here", entry.id(), entry.service());
    call_off(entry);
    GW_RETURN_IF_ERROR(run_on(*hypervisor, entry));
    GW_RETURN_IF_ERROR(take_on(entry.service(), entry.vm_uuid()));
  } else {
    GW_ASSIGN_OR_RETURN(const bool needed, gone ? false : is_needed(entry));
    // Its pages are fetched; it stands still, and never runs again unless it is given back.
    if (needed)
      return make_error(absl::StatusCode::kUnavailable, "{} lacks memory of {} that is here", owner,
                        entry.service());
    FAULT_POINT("node.taking_down");
    log_info("migration {}: {} is on {}; taking it down here", entry.id(), entry.service(),
             gone ? "no node" : owner);
    let_go(entry.service());
    GW_RETURN_IF_ERROR(end_vm_relay(entry));
    GW_RETURN_IF_ERROR(hypervisor->destroy(entry.vm_uuid()));
    GW_RETURN_IF_ERROR(hypervisor->undefine(entry.vm_uuid()));
    // The machine has gone with what was in them; where its record is gone, nobody knows.
    if (!gone) GW_RETURN_IF_ERROR(remove_disks(*hypervisor, entry));
  }
  VmRelay::remove_sockets(node_.config(), entry.id());
  GW_RETURN_IF_ERROR(node_.journal().remove(entry));
  return owner;
}

// Whether the machine's owner lacks memory of it that is here, by this migration.
absl::StatusOr<bool> Vms::is_needed(const api::MigrationJournal& entry) {
  const auto now = node_.records().service(entry.service());
  if (absl::IsNotFound(now.status())) return false;
  GW_RETURN_IF_ERROR(now.status());
  return now->record.last_migration().id() == entry.id() &&
         now->record.pages_at() == node_.config().name;
}

// It is ours, and some of its memory was at its source when it was committed. False: it has never
// run here, and is not ours any more.
absl::StatusOr<bool> Vms::settle_pages(const api::MigrationJournal& entry) {
  GW_ASSIGN_OR_RETURN(const auto hypervisor, hypervisor());
  const auto state = hypervisor->state(entry.vm_uuid());
  if (!state.ok() && !absl::IsNotFound(state.status())) return state.status();
  if (!was_let_run(node_.config(), entry.id())) {
    log_info("migration {}: {} has not run here; it is given back", entry.id(), entry.service());
    GW_RETURN_IF_ERROR(give_back(node_.records(), entry, node_.config().name));
    return false;
  }
  if (state.ok() && *state != vm::DomainState::kStopped) {
    GW_ASSIGN_OR_RETURN(const bool follows, hypervisor->in_post_copy(entry.vm_uuid()));
    if (follows) GW_RETURN_IF_ERROR(lead_frames_here(*hypervisor, entry.vm_uuid()));
    if (follows)
      return make_error(absl::StatusCode::kUnavailable, "memory of {} is on {} yet",
                        entry.service(), entry.peer());
  }
  GW_RETURN_IF_ERROR(forget_source(node_.records(), entry.service(), node_.config().name));
  return true;
}

absl::Status Vms::settle_destination(const api::MigrationJournal& entry) {
  GW_ASSIGN_OR_RETURN(const auto hypervisor, hypervisor());
  GW_ASSIGN_OR_RETURN(bool ours, settle_owner_at_destination(node_.records(), node_.config().name,
                                                             entry, node_.ask_again()));
  if (ours) {
    const auto now = node_.records().service(entry.service());
    if (!now.ok() && !absl::IsNotFound(now.status())) return now.status();
    if (now.ok() && !now->record.pages_at().empty()) {
      GW_ASSIGN_OR_RETURN(ours, settle_pages(entry));
    }
  }
  // Before the domain: nothing lets it run any more.
  GW_RETURN_IF_ERROR(end_vm_relay(entry));
  if (ours) {
    log_info("migration {}: {} is ours; finishing it", entry.id(), entry.service());
    const auto state = hypervisor->state(entry.vm_uuid());
    if (!state.ok() && !absl::IsNotFound(state.status())) return state.status();
    if (state.ok() && *state != vm::DomainState::kStopped)
      GW_RETURN_IF_ERROR(lead_frames_here(*hypervisor, entry.vm_uuid()));
    if (state.ok() && *state == vm::DomainState::kPaused) {
      GW_RETURN_IF_ERROR(hypervisor->resume(entry.vm_uuid()));
    }
    GW_RETURN_IF_ERROR(take_on(entry.service(), entry.vm_uuid()));
  } else {
    GW_RETURN_IF_ERROR(hypervisor->destroy(entry.vm_uuid()));
    GW_RETURN_IF_ERROR(hypervisor->undefine(entry.vm_uuid()));
    GW_RETURN_IF_ERROR(remove_disks(*hypervisor, entry));
  }
  VmRelay::remove_sockets(node_.config(), entry.id());
  return node_.journal().remove(entry);
}

void Vms::call_off(const api::MigrationJournal& entry) {
  if (entry.peer().empty()) return;
  node_.tasks().run([this, entry] {
    const Deadline deadline = Deadline::in(kCallOffWithin);
    for (;;) {
      absl::Status told = absl::OkStatus();
      const auto peer = node_.peers().find(entry.peer());
      if (peer.ok()) {
        grpc::ClientContext context;
        set_timeout(context, kCallOffSlice);
        api::AbortReplicaRequest request;
        request.set_migration_id(entry.id());
        request.set_service(entry.service());
        api::Empty reply;
        told = api::from_grpc((*peer)->peer->AbortVm(&context, request, &reply));
      } else {
        told = peer.status();
      }
      const bool later = absl::IsUnavailable(told) || absl::IsDeadlineExceeded(told);
      if (!later || node_.stopping() || deadline.passed()) return;
      nap();
    }
  });
}

}  // namespace godwit::node
