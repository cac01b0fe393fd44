#include "node/vm_replica.h"

#include <openssl/rand.h>

#include <algorithm>

#include "absl/cleanup/cleanup.h"
#include "base/fault_point.h"
#include "base/log.h"
#include "base/status.h"
#include "node/node.h"
#include "node/ownership.h"
#include "node/vm_precheck.h"
#include "node/vm_relay.h"
#include "node/vms.h"

namespace godwit::node {
namespace {

constexpr size_t kTokenBytes = 32;
// What is left here of an earlier stay is being taken down.
constexpr absl::Duration kHoldWait = absl::Seconds(30);
// For the source's first connection, and for its word after everything has come.
constexpr absl::Duration kConnectWait = absl::Seconds(30);
constexpr absl::Duration kSwitchWait = absl::Seconds(30);
constexpr std::chrono::milliseconds kLook{100};
// While the guest stands still.
constexpr std::chrono::milliseconds kLookSoon{3};
// For libvirt to let it run, once it may.
constexpr absl::Duration kRunWait = absl::Seconds(30);
// Messages with frames; older ones are of no use any more.
constexpr size_t kMostKept = 100;

absl::Status fault_after_commit() {
  FAULT_POINT("node.after_commit");
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::shared_ptr<VmReplica>> VmReplica::begin(Node& node,
                                                            const api::PrepareVmRequest& request,
                                                            api::PrepareVmReply& reply) {
  std::shared_ptr<VmReplica> replica(new VmReplica(node, request));
  GW_ASSIGN_OR_RETURN(
      replica->hold_,
      node.busy().hold(request.name(), fmt::format("being moved here from {}", request.source()),
                       Deadline::in(kHoldWait)));
  // Under the hold: what an earlier move has left here is gone.
  GW_RETURN_IF_ERROR(judge_vm(node, request, reply));
  if (reply.refusals_size() > 0) return std::shared_ptr<VmReplica>();
  GW_RETURN_IF_ERROR(replica->prepare(reply));
  node.vms().add_session(replica);
  node.tasks().run([replica] { replica->run(); });
  return replica;
}

absl::Status VmReplica::prepare(api::PrepareVmReply& reply) {
  GW_ASSIGN_OR_RETURN(hypervisor_, node_.vms().hypervisor());
  entry_.set_id(request_.migration_id());
  entry_.set_side(api::MigrationJournal::DESTINATION);
  entry_.set_service(request_.name());
  entry_.set_peer(request_.source());
  entry_.set_vm_uuid(request_.uuid());
  GW_RETURN_IF_ERROR(expect_record());
  GW_RETURN_IF_ERROR(node_.journal().write(entry_));
  auto undo = absl::MakeCleanup([this] {
    absl::Status undone = absl::OkStatus();
    for (const std::string& each : entry_.vm_disks()) undone.Update(hypervisor_->remove_disk(each));
    if (undone.ok()) undone = node_.journal().remove(entry_);
    if (undone.ok()) return;
    log_warning("migration {}: {}", migration_id(), message_of(undone));
    if (!node_.stopping()) node_.settle_later(entry_.service(), {entry_}, std::move(hold_));
  });
  GW_RETURN_IF_ERROR(make_disks(reply));
  swaps_ = node_.open_swaps();
  GW_ASSIGN_OR_RETURN(watch_, hypervisor_->watch(request_.uuid(), [this](vm::Happened what) {
    std::lock_guard lock(mutex_);
    if (what == vm::Happened::kStarted) begun_ = true;
    if (what == vm::Happened::kPaused && begun_) complete_ = true;
    if (what == vm::Happened::kResumed && begun_) runs_ = true;
    if (what == vm::Happened::kStopped && begun_) aborted_ = true;
    changed_.notify_all();
  }));
  migration::MoverStart proof;
  std::string token(kTokenBytes, '\0');
  if (::RAND_bytes(reinterpret_cast<unsigned char*>(token.data()), kTokenBytes) != 1)
    return make_error(absl::StatusCode::kInternal, "RAND_bytes failed");
  node_.set_proof(proof, token, request_.source());
  proof.set_stall_timeout_ns(request_.stall_timeout_ns());
  proof.set_role(migration::ROLE_VM_DESTINATION);
  proof.set_vm_post_copy(request_.post_copy());
  GW_ASSIGN_OR_RETURN(relay_, VmRelayProcess::start(node_.spare_mover(), node_.config(),
                                                    node_.vms().libvirt_socket(),
                                                    request_.migration_id(), std::move(proof)));
  relay_->note(entry_);
  GW_RETURN_IF_ERROR(node_.journal().write(entry_));
  reply.set_host(node_.config().listen_host);
  reply.set_port(relay_->port());
  reply.set_token(token);
  std::move(undo).Cancel();
  return absl::OkStatus();
}

absl::Status VmReplica::make_disks(const api::PrepareVmReply& judged) {
  const auto& copied = judged.copied_disks();
  std::vector<api::VmDisk> disks;
  for (const api::VmDisk& each : request_.disks())
    if (std::find(copied.begin(), copied.end(), each.target()) != copied.end())
      disks.push_back(each);
  if (disks.empty()) return absl::OkStatus();
  for (const api::VmDisk& each : disks) entry_.add_vm_disks(each.path());
  GW_RETURN_IF_ERROR(node_.journal().write(entry_));
  for (size_t i = 0; i < disks.size(); ++i) {
    const absl::Status made =
        hypervisor_->create_disk(disks[i].path(), disks[i].format(), disks[i].bytes());
    if (made.ok()) continue;
    // One that somebody has made since it was judged is none of ours.
    const size_t ours = absl::IsAlreadyExists(made) ? i : i + 1;
    while (static_cast<size_t>(entry_.vm_disks_size()) > ours)
      entry_.mutable_vm_disks()->RemoveLast();
    return annotate(made, fmt::format("on {}", node_.config().name));
  }
  return absl::OkStatus();
}

absl::Status VmReplica::expect_record() {
  GW_ASSIGN_OR_RETURN(VersionedService current, node_.records().service(request_.name()));
  api::ServiceRecord& record = current.record;
  if (current.revision != request_.record_revision() ||
      record.migration_id() != request_.migration_id() ||
      record.destination() != node_.config().name || record.vm().uuid() != request_.uuid())
    return make_error(absl::StatusCode::kAborted,
                      "the store does not say that {} is on its way here as migration {}",
                      request_.name(), request_.migration_id());
  if (request_.source() != record.owner())
    return make_error(absl::StatusCode::kPermissionDenied, "{} is {}'s to give away, not {}'s",
                      request_.name(), record.owner(), request_.source());
  entry_.set_generation(record.generation());
  record.set_owner(node_.config().name);
  record.set_generation(record.generation() + 1);
  record.clear_migration_id();
  record.clear_destination();
  record.set_state(request_.stopped() ? api::SERVICE_EXITED : api::SERVICE_RUNNING);
  api::MigrationStatistics* last = record.mutable_last_migration();
  last->Clear();
  last->set_id(request_.migration_id());
  last->set_source(request_.source());
  last->set_destination(node_.config().name);
  last->set_outcome("moved");
  committed_record_ = record;
  return absl::OkStatus();
}

absl::Status VmReplica::wait_until_complete() {
  const Deadline connect = Deadline::in(kConnectWait);
  std::optional<Deadline> word;
  bool looked = false;
  std::unique_lock lock(mutex_);
  for (;;) {
    if (aborted_) return absl::CancelledError("the source took the migration back");
    if (node_.stopping()) return absl::CancelledError("the daemon stops");
    lock.unlock();
    const migration::VmRelayState relay = relay_->look();
    lock.lock();
    // Of libvirt's client, which says so when the source has stopped for good.
    if (request_.post_copy() && relay.finish_held()) complete_ = true;
    const bool all_here = complete_ || request_.stopped();
    // After "finish" the source's client may go: the store decides. In post-copy the relay has it.
    if ((!all_here || request_.post_copy()) && (relay.broken() || relay.control_ended()))
      return make_error(absl::StatusCode::kUnavailable,
                        "the connection to {} broke before all of it had come", request_.source());
    if (all_here && asked_) {
      if (!request_.post_copy()) lead_frames_here();
      return absl::OkStatus();
    }
    if (begun_ && !looked) {
      looked = true;
      lock.unlock();
      prepare_network();
      lock.lock();
      continue;
    }
    if (!begun_ && !asked_ && connect.passed())
      return make_error(absl::StatusCode::kDeadlineExceeded, "{} did not begin with it",
                        request_.source());
    if (complete_ && !word) word = Deadline::in(kSwitchWait);
    if (word && word->passed())
      return make_error(absl::StatusCode::kDeadlineExceeded,
                        "{} does not say whether it is to run here", request_.source());
    changed_.wait_for(lock, asked_ ? kLookSoon : kLook);
  }
}

absl::Status VmReplica::commit() {
  FAULT_POINT("node.before_commit");
  if (request_.stopped()) GW_RETURN_IF_ERROR(hypervisor_->define(request_.xml()).status());
  if (pages_follow_) committed_record_.set_pages_at(request_.source());
  const std::string committed = committed_record_.SerializeAsString();
  const std::string key = service_key(request_.name());
  const auto swap = [&]() -> absl::Status {
    const auto revision =
        swaps_
            ? swaps_->compare_and_swap(key, request_.record_revision(), committed)
            : node_.records().store()->compare_and_swap(key, request_.record_revision(), committed);
    if (!revision.ok()) swaps_.reset();  // asked again by a call, which connects anew
    return revision.status();
  };
  const auto is_ours = [&]() -> absl::StatusOr<bool> {
    const auto now = node_.records().service(request_.name());
    if (absl::IsNotFound(now.status())) return false;
    GW_RETURN_IF_ERROR(now.status());
    return now->record.owner() == node_.config().name &&
           now->record.last_migration().id() == migration_id();
  };
  GW_RETURN_IF_ERROR(commit_owner(swap, is_ours, node_.ask_again()));
  GW_RETURN_IF_ERROR(fault_after_commit());
  if (request_.post_copy()) return let_run();
  return request_.stopped() ? absl::OkStatus() : hypervisor_->resume(request_.uuid());
}

absl::Status VmReplica::let_run() {
  relay_->order(migration::VM_RELEASE);
  const Deadline deadline = Deadline::in(kRunWait);
  std::unique_lock lock(mutex_);
  while (!runs_) {
    if (aborted_) {
      // libvirt's word that it ended before it ran: then the source has all of it yet.
      VmRelay::remove_sockets(node_.config(), migration_id());
      return absl::AbortedError("the hypervisor could not let it run");
    }
    if (deadline.passed())
      return make_error(absl::StatusCode::kDeadlineExceeded, "the hypervisor did not let {} run",
                        request_.name());
    changed_.wait_for(lock, kLook);
  }
  lead_frames_here();
  return absl::OkStatus();
}

absl::Status VmReplica::follow_pages() {
  for (;;) {
    const auto follows = hypervisor_->in_post_copy(request_.uuid());
    if (absl::IsNotFound(follows.status())) return absl::OkStatus();  // it has ended
    if (follows.ok() && !*follows) return absl::OkStatus();
    std::unique_lock lock(mutex_);
    if (node_.stopping()) {
      relay_->leave();
      return absl::CancelledError("the daemon stops");
    }
    changed_.wait_for(lock, kLook);
  }
}

void VmReplica::run() {
  absl::Status done = wait_until_complete();
  if (done.ok()) done = commit();
  {
    std::lock_guard lock(mutex_);
    committed_ = done.ok();
    why_not_ = done;
  }
  if (done.ok()) changed_.notify_all();  // it runs: the source need not wait for the rest
  if (!done.ok())
    log_warning("migration {} of {}: {}", migration_id(), request_.name(), message_of(done));
  watch_.reset();
  if (done.ok() && pages_follow_ && !follow_pages().ok()) return;
  if (!done.ok()) relay_->order(migration::VM_CUT);
  const absl::Status settled =
      node_.keep_trying(fmt::format("settling migration {} of {}", migration_id(), request_.name()),
                        [&] { return node_.vms().settle_destination(entry_); });
  if (!settled.ok())
    log_error("settling migration {} of {}: {}", migration_id(), request_.name(),
              message_of(settled));
  relay_.reset();
  node_.vms().drop_session(migration_id());
  hold_.release();
  {
    std::lock_guard lock(mutex_);
    // A commit whose answer was lost is found out by settling; the store tells the source, too.
    ended_ = true;
  }
  changed_.notify_all();
}

void VmReplica::prepare_network() {
  const auto look = [&]() -> absl::StatusOr<vm::DomainSpec> {
    GW_ASSIGN_OR_RETURN(const std::string xml, hypervisor_->xml(request_.uuid(), false));
    return vm::parse_domain(xml);
  };
  auto domain = look();
  if (!domain.ok()) {
    log_warning("the network of {}: {}", request_.name(), message_of(domain.status()));
    return;
  }
  const absl::Status closed = connect_vm(*domain, false);
  if (!closed.ok()) log_warning("the network of {}: {}", request_.name(), message_of(closed));
  auto giver = std::make_unique<VmFrameGiver>(*domain);
  std::lock_guard lock(mutex_);
  here_ = *std::move(domain);
  giver_ = std::move(giver);
}

absl::Status VmReplica::switch_over(const api::SwitchVmOverRequest& request) {
  std::unique_lock lock(mutex_);
  asked_ = true;
  pages_follow_ = request.pages_follow();
  announce_ = request.announce();
  keep_frames(request);
  changed_.notify_all();
  while (!committed_ && !ended_) changed_.wait_for(lock, kLook);
  return committed_ ? absl::OkStatus() : why_not_;
}

void VmReplica::give(const api::SwitchVmOverRequest& request) {
  std::lock_guard lock(mutex_);
  keep_frames(request);
  if (complete_ && giver_ && (runs_ || !request_.post_copy())) give_kept();
}

void VmReplica::keep_frames(const api::SwitchVmOverRequest& request) {
  kept_.push_back(request);
  if (kept_.size() > kMostKept) kept_.pop_front();
}

void VmReplica::give_kept() {
  for (const api::SwitchVmOverRequest& each : kept_) giver_->give(each);
  kept_.clear();
}

// All is loaded. Until here they went to the source, which hands on what it has seen.
void VmReplica::lead_frames_here() {
  if (here_) {
    const absl::Status connected = connect_vm(*here_, true);
    if (!connected.ok())
      log_warning("the network of {}: {}", request_.name(), message_of(connected));
  }
  if (giver_) give_kept();
  if (!announce_ || !here_) return;
  const absl::Status told = announce_vm(*here_);
  if (!told.ok()) log_warning("announcing {}: {}", request_.name(), message_of(told));
}

absl::Status VmReplica::abort() {
  std::unique_lock lock(mutex_);
  aborted_ = true;
  changed_.notify_all();
  while (!ended_) changed_.wait_for(lock, kLook);
  if (committed_)
    return make_error(absl::StatusCode::kFailedPrecondition, "{} runs on {} already",
                      request_.name(), node_.config().name);
  return absl::OkStatus();
}

}  // namespace godwit::node
