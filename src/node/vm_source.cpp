#include "node/vm_source.h"

#include <grpcpp/client_context.h>

#include <algorithm>

#include "absl/cleanup/cleanup.h"
#include "api/rpc_status.h"
#include "base/fault_point.h"
#include "base/log.h"
#include "base/status.h"
#include "node/machine.h"
#include "node/node.h"
#include "node/vm_forecast.h"
#include "node/vm_relay.h"
#include "node/vms.h"

namespace godwit::node {
namespace {

constexpr absl::Duration kHoldWait = absl::Seconds(1);
constexpr absl::Duration kPrepareTimeout = absl::Seconds(60);
constexpr int64_t kDefaultDowntimeNs = 50'000'000;
constexpr std::chrono::milliseconds kLook{100};
constexpr std::chrono::milliseconds kLookForFrames{3};
// After the connection has broken.
constexpr absl::Duration kAnswerWait = absl::Seconds(5);
constexpr absl::Duration kGiveTimeout = absl::Milliseconds(200);
constexpr uint64_t kPageSize = 4096;

absl::StatusOr<migration::Strategy> asked_strategy(const api::MigrateRequest& request) {
  if (request.in_place())
    return make_error(absl::StatusCode::kInvalidArgument,
                      "{} is a virtual machine: it cannot be moved in place", request.name());
  if (request.verify() || request.throttle())
    return make_error(absl::StatusCode::kInvalidArgument,
                      "{} is a virtual machine: --verify and --throttle are for services",
                      request.name());
  const migration::Strategy asked = migration::strategy_of(request.strategy());
  if (asked == migration::STRATEGY_INVALID)
    return make_error(absl::StatusCode::kInvalidArgument,
                      "--strategy {}: use auto, precopy, postcopy, hybrid or cold",
                      request.strategy());
  return asked;
}

}  // namespace

absl::StatusOr<api::MigrateResult> VmMigration::migrate(const api::MigrateRequest& request) {
  auto result = move(request);
  // It was not to be expected that rounds would not do.
  if (!result.ok() || !does_not_converge_ || result->outcome() != "rolled_back" ||
      strategy_ != migration::STRATEGY_AUTO || !hypervisor_->post_copy_possible().ok())
    return result;
  log_info("migration {} of {}: {}; again, by post-copy", entry_.id(), request.name(),
           result->error());
  hold_.release();
  VmMigration again(node_, on_progress_, user_cancelled_);
  again.because_ = result->error();
  api::MigrateRequest hybrid = request;
  hybrid.set_strategy("hybrid");
  return again.move(hybrid);
}

absl::StatusOr<api::MigrateResult> VmMigration::move(const api::MigrateRequest& request) {
  begun_ns_ = monotonic_ns();
  GW_RETURN_IF_ERROR(check(request));
  GW_RETURN_IF_ERROR(look_at_domain());
  GW_RETURN_IF_ERROR(choose_strategy(request.strategy()));
  marks_ = std::make_unique<SharedMarks>(entry_.id(), domain_);
  if (request.dry_run()) return dry_run(request);
  if (!reasons_.empty()) return result("refused", node_.config().name);
  forecast_strategy(request);

  const auto outgoing = node_.begin_outgoing(request.name());
  const auto ended = absl::MakeCleanup([&] { node_.end_outgoing(request.name()); });
  user_cancelled_ = [outgoing, before = std::move(user_cancelled_)] {
    return outgoing->cancelled || before();
  };
  GW_RETURN_IF_ERROR(mark_migrating());
  api::MigrateProgress preparing;
  preparing.set_phase("prepare");
  on_progress_(preparing);
  absl::Status moved = ask_destination(false, request.stall_timeout_ns());
  if (moved.ok() && reasons_.empty()) moved = open_relay(request);
  if (moved.ok() && reasons_.empty()) {
    statistics_.set_setup_ns(monotonic_ns() - begun_ns_);
    if (runs_) moved = start_libvirt(request);
    if (moved.ok()) moved = follow(request);
    if (moved.ok() && post_copy_) follow_pages();
  }
  return conclude(moved);
}

absl::Status VmMigration::check(const api::MigrateRequest& request) {
  GW_ASSIGN_OR_RETURN(strategy_, asked_strategy(request));
  cold_ = strategy_ == migration::STRATEGY_COLD;
  const std::string& self = node_.config().name;
  if (request.node() == self)
    return make_error(absl::StatusCode::kInvalidArgument, "{} is on {} already", request.name(),
                      self);
  if (request.node().empty())
    return make_error(absl::StatusCode::kInvalidArgument, "NODE is needed: where it goes");
  GW_RETURN_IF_ERROR(node_.records().node(request.node()).status());
  GW_ASSIGN_OR_RETURN(hypervisor_, node_.vms().hypervisor());
  GW_ASSIGN_OR_RETURN(
      hold_, node_.busy().hold(request.name(), fmt::format("being moved to {}", request.node()),
                               Deadline::in(kHoldWait)));
  GW_ASSIGN_OR_RETURN(current_, node_.records().service(request.name()));
  if (current_.record.owner() != self)
    return make_error(absl::StatusCode::kAborted, "{} has just gone to {}; ask again",
                      request.name(), current_.record.owner());
  if (current_.record.state() == api::SERVICE_MIGRATING)
    return make_error(absl::StatusCode::kFailedPrecondition,
                      "an earlier move of {} is not settled yet", request.name());
  entry_.set_id(random_id());
  entry_.set_side(api::MigrationJournal::SOURCE);
  entry_.set_service(request.name());
  entry_.set_peer(request.node());
  entry_.set_vm_uuid(current_.record.vm().uuid());
  return absl::OkStatus();
}

absl::Status VmMigration::look_at_domain() {
  GW_ASSIGN_OR_RETURN(const vm::DomainState state, hypervisor_->state(entry_.vm_uuid()));
  runs_ = state != vm::DomainState::kStopped;
  GW_ASSIGN_OR_RETURN(xml_, hypervisor_->xml(entry_.vm_uuid(), true));
  GW_ASSIGN_OR_RETURN(domain_, vm::parse_domain(xml_));
  GW_ASSIGN_OR_RETURN(reasons_, unmovable_parts(*hypervisor_, domain_, runs_));
  if (state == vm::DomainState::kPaused)
    reasons_.push_back(vm_reason("vm.paused", domain_.name, "it is paused",
                                 "let it run (virsh resume), or stop it, and move it then"));
  return absl::OkStatus();
}

absl::StatusOr<api::MigrateResult> VmMigration::dry_run(const api::MigrateRequest& request) {
  GW_RETURN_IF_ERROR(ask_destination(true, request.stall_timeout_ns()));
  api::MigrateResult found = result(reasons_.empty() ? "movable" : "refused", node_.config().name);
  if (!runs_ || !reasons_.empty()) return found;
  for (const api::VmDisk& each : copied_)
    *found.add_warnings() = to_refusal(
        vm_reason("vm.disk_copied", fmt::format("disk {}", each.target()),
                  fmt::format("{} does not see it: it is copied there ({} MiB), and {} is removed "
                              "here when the machine runs there",
                              entry_.peer(), each.allocated() >> 20, each.path()),
                  "nothing, or put it on storage that both nodes have mounted at the same place"));
  GW_ASSIGN_OR_RETURN(const std::shared_ptr<Peer> peer, node_.peers().find(entry_.peer()));
  const bool chosen = cold_ || strategy_ != migration::STRATEGY_AUTO;
  predict_vm(node_, *hypervisor_, domain_, request,
             chosen ? migration::strategy_of(statistics_.strategy()) : migration::STRATEGY_AUTO,
             *peer, found);
  return found;
}

absl::Status VmMigration::mark_migrating() {
  entry_.set_generation(current_.record.generation() + 1);
  // Before the record: one that says "migrating" always has its note.
  GW_RETURN_IF_ERROR(node_.journal().write(entry_));
  current_.record.set_generation(current_.record.generation() + 1);
  current_.record.set_state(api::SERVICE_MIGRATING);
  current_.record.set_migration_id(entry_.id());
  current_.record.set_destination(entry_.peer());
  const absl::Status marked = node_.records().put(current_);
  if (marked.ok()) return marked;
  if (store::nothing_changed(marked)) {
    node_.journal().remove(entry_).IgnoreError();
    return marked;
  }
  // It may say so by now, or yet; nobody else has been told.
  api::MigrationJournal entry = entry_;
  entry.clear_peer();
  const absl::Status settled = node_.vms().settle_source(entry).status();
  if (!settled.ok() && !node_.stopping())
    node_.settle_later(entry.service(), {entry}, std::move(hold_));
  return marked;
}

absl::Status VmMigration::ask_destination(bool dry_run, int64_t stall_timeout_ns) {
  GW_ASSIGN_OR_RETURN(const std::shared_ptr<Peer> peer, node_.peers().find(entry_.peer()));
  api::PrepareVmRequest request;
  request.set_migration_id(entry_.id());
  request.set_name(entry_.service());
  request.set_source(node_.config().name);
  request.set_record_revision(current_.revision);
  request.set_uuid(entry_.vm_uuid());
  request.set_xml(xml_);
  request.set_stopped(!runs_);
  request.set_dry_run(dry_run);
  request.set_data_tls(node_.data_tls());
  request.set_post_copy(may_post_copy_);
  request.set_stall_timeout_ns(stall_timeout_ns);
  for (const vm::Disk& each : written_disks(domain_)) {
    api::VmDisk* disk = request.add_disks();
    disk->set_target(each.target);
    disk->set_path(each.source);
    disk->set_format(each.format);
    disk->set_mark(marks_->beside(each));
    if (!runs_) continue;
    GW_ASSIGN_OR_RETURN(const vm::DiskSize size,
                        hypervisor_->disk_size(entry_.vm_uuid(), each.target));
    disk->set_bytes(size.bytes);
    disk->set_allocated(size.allocated);
  }
  grpc::ClientContext context;
  set_timeout(context, kPrepareTimeout);
  const absl::Status asked = api::from_grpc(peer->peer->PrepareVm(&context, request, &prepared_));
  if (!asked.ok()) return annotate(asked, fmt::format("preparing on {}", entry_.peer()));
  for (const api::Refusal& each : prepared_.refusals())
    reasons_.push_back(
        vm_reason(each.code().c_str(), each.object(), each.reason(), each.way_out()));
  const auto& copied = prepared_.copied_disks();
  for (const api::VmDisk& each : request.disks())
    if (std::find(copied.begin(), copied.end(), each.target()) != copied.end())
      copied_.push_back(each);
  if (dry_run || !reasons_.empty() || copied_.empty()) return absl::OkStatus();
  // Once the machine is there they are old copies.
  for (const api::VmDisk& each : copied_) entry_.add_vm_disks(each.path());
  return node_.journal().write(entry_);
}

absl::Status VmMigration::open_relay(const api::MigrateRequest& request) {
  if (!runs_) return absl::OkStatus();
  FAULT_POINT("node.before_mover");
  migration::MoverStart proof;
  node_.set_proof(proof, prepared_.token(), entry_.peer());
  proof.set_stall_timeout_ns(request.stall_timeout_ns());
  node_.set_bandwidth(proof, request.bandwidth_bytes_per_s());
  bytes_per_s_ = static_cast<uint64_t>(proof.bandwidth_bytes_per_s());
  proof.set_role(migration::ROLE_VM_SOURCE);
  proof.set_peer_host(prepared_.host());
  proof.set_peer_port(prepared_.port());
  proof.set_vm_post_copy(may_post_copy_);
  GW_ASSIGN_OR_RETURN(
      relay_, VmRelayProcess::start(node_.spare_mover(), node_.config(),
                                    node_.vms().libvirt_socket(), entry_.id(), std::move(proof)));
  relay_->note(entry_);
  GW_RETURN_IF_ERROR(node_.journal().write(entry_));
  // The taps are in the XML of the domain that runs only.
  GW_ASSIGN_OR_RETURN(const std::string live, hypervisor_->xml(entry_.vm_uuid(), false));
  GW_ASSIGN_OR_RETURN(const vm::DomainSpec running, vm::parse_domain(live));
  if (!cold_) recorder_ = std::make_unique<VmFrameRecorder>(running);
  GW_ASSIGN_OR_RETURN(watch_, hypervisor_->watch(entry_.vm_uuid(), [this](vm::Happened what) {
    const int64_t now = monotonic_ns();
    std::lock_guard lock(mutex_);
    if (what == vm::Happened::kStoppedForSwitchover && stopped_ns_ == 0) {
      stopped_ns_ = now;
      stopped_real_ns_ = clock_ns(CLOCK_REALTIME);
      // At once: what comes after libvirt's "perform" must not pass.
      relay_->order(migration::VM_HOLD_OWN);
    }
    if (what == vm::Happened::kResumed && stopped_ns_ != 0) resumed_ = true;
    changed_.notify_all();
  }));
  return absl::OkStatus();
}

absl::Status VmMigration::start_libvirt(const api::MigrateRequest& request) {
  // QEMU keeps it, and libvirt's job begins with it. The hard limit is for what does not converge.
  migration::ConvergenceLimits limits;
  limits.strategy = may_post_copy_ && strategy_ != migration::STRATEGY_POSTCOPY
                        ? migration::STRATEGY_HYBRID
                        : strategy_;
  limits.post_copy_possible = may_post_copy_;
  limits.most_downtime_ns =
      request.max_downtime_ns() > 0 ? request.max_downtime_ns() : kDefaultDowntimeNs;
  limits.downtime_ns = std::min(kDefaultDowntimeNs, limits.most_downtime_ns);
  convergence_.emplace(limits);
  if (!cold_)
    GW_RETURN_IF_ERROR(hypervisor_->set_most_downtime(entry_.vm_uuid(), limits.downtime_ns));
  vm::MigrationParameters parameters;
  parameters.control_uri = vm::Hypervisor::uri_of(relay_->path('c'));
  parameters.memory_uri = "unix://" + VmRelay::shared_path(entry_.id(), 'm');
  parameters.disks_uri = "unix://" + VmRelay::shared_path(entry_.id(), 'd');
  parameters.live = !cold_;
  parameters.post_copy = may_post_copy_;
  parameters.post_copy_bytes_per_s = bytes_per_s_;
  // All others are shared: that was seen.
  for (const api::VmDisk& each : copied_) parameters.copied_disks.push_back(each.target());
  const auto persistent = hypervisor_->persistent(entry_.vm_uuid());
  parameters.persistent = persistent.ok() && *persistent;
  libvirt_call_ = std::make_shared<LibvirtCall>();
  libvirt_call_->whose = this;
  libvirt_ = std::thread([call = libvirt_call_, hypervisor = hypervisor_,
                          socket = relay_->path('s'), uuid = entry_.vm_uuid(), parameters] {
    const absl::Status said = hypervisor->migrate(socket, uuid, parameters);
    std::lock_guard held(call->mutex);
    if (call->whose == nullptr) return;
    std::lock_guard lock(call->whose->mutex_);
    call->whose->libvirt_said_ = said;
    call->whose->changed_.notify_all();
  });
  return absl::OkStatus();
}

absl::Status VmMigration::follow(const api::MigrateRequest& request) {
  bool cancelling = false;
  std::optional<Deadline> given_up;
  std::unique_lock lock(mutex_);
  for (;;) {
    if (switched_) return *switched_;
    bool broken = false;
    if (relay_ != nullptr) {
      lock.unlock();
      broken = relay_->look().broken();
      lock.lock();
    }
    if (!runs_ && !switching_) {
      lock.unlock();
      begin_switchover();
      lock.lock();
      continue;
    }
    // All the same if libvirt was done before its event was seen: then the one copy is there.
    if (!switching_ && !resumed_ && (libvirt_said_ ? libvirt_said_->ok() : stopped_ns_ != 0)) {
      lock.unlock();
      FAULT_POINT("node.switch_vm");
      if (!cold_) relay_->order(migration::VM_LIFT_LIMIT);
      // libvirt's client cannot make it run again any more; if it has before, it runs.
      relay_->order(migration::VM_HOLD_OWN);
      // From here on the destination may have made it its own.
      if (may_post_copy_) relay_->order(migration::VM_KEEP);
      const auto state = hypervisor_->state(entry_.vm_uuid());
      const bool still = !state.ok() || *state != vm::DomainState::kRunning;
      if (still) begin_switchover();
      lock.lock();
      if (!still) resumed_ = true;
      continue;
    }
    // libvirt gave up by itself and let it run on; the destination cannot have had all of it.
    if (resumed_) return absl::AbortedError("the hypervisor could not complete it");
    if (libvirt_said_ && !libvirt_said_->ok() && !switching_) return *libvirt_said_;
    if (broken && !switching_)
      return make_error(absl::StatusCode::kUnavailable, "the connection to {} broke",
                        entry_.peer());
    lock.unlock();
    if (switching_) {
      give_stragglers();
      // Nobody may be there any more to answer: then the store says what became of it.
      if (broken) {
        if (!given_up) given_up = Deadline::in(kAnswerWait);
        if (given_up->passed()) switch_call_->TryCancel();
      }
    }
    const bool cancelled = user_cancelled_() || node_.stopping();
    absl::Status going = absl::OkStatus();
    if (!cancelled && runs_ && !switching_) going = look_at_job(request);
    lock.lock();
    if (cancelled && !cancelling) {
      cancelling = true;
      if (!switching_) return absl::CancelledError("cancelled");
      // The destination decides which of the two was first.
      lock.unlock();
      node_.vms().call_off(entry_);
      lock.lock();
    }
    if (!going.ok() && !switching_ && stopped_ns_ == 0) return going;
    changed_.wait_for(lock, switching_ ? kLookForFrames : kLook);
  }
}

// Until all bridges have learned, some come here yet.
void VmMigration::give_stragglers() {
  if (recorder_ == nullptr) return;
  api::SwitchVmOverRequest request;
  request.set_migration_id(entry_.id());
  recorder_->add_missed(stopped_real_ns_, request);
  const bool none = std::all_of(request.frames().begin(), request.frames().end(),
                                [](const api::VmFrames& each) { return each.frames_size() == 0; });
  const auto peer = node_.peers().find(entry_.peer());
  if (none || !peer.ok()) return;
  grpc::ClientContext context;
  set_timeout(context, kGiveTimeout);
  api::Empty reply;
  // A client sends again what is lost here.
  const grpc::Status given = (*peer)->peer->GiveVmFrames(&context, request, &reply);
  if (!given.ok()) log_warning("frames for {}: {}", entry_.service(), given.error_message());
}

void VmMigration::begin_switchover() {
  {
    std::lock_guard lock(mutex_);
    switching_ = true;
  }
  switch_call_ = std::make_shared<grpc::ClientContext>();
  switchover_ = std::thread([this] {
    api::SwitchVmOverRequest request;
    request.set_migration_id(entry_.id());
    request.set_announce(runs_);
    request.set_pages_follow(post_copy_);
    if (recorder_ != nullptr) recorder_->add_missed(stopped_real_ns_, request);
    api::SwitchVmOverReply reply;
    const auto peer = node_.peers().find(entry_.peer());
    absl::Status told = peer.status();
    if (peer.ok())
      told = api::from_grpc((*peer)->peer->SwitchVmOver(switch_call_.get(), request, &reply));
    if (told.ok() && !reply.committed())
      told = make_error(absl::StatusCode::kAborted, "{}: {}", entry_.peer(), reply.error());
    std::lock_guard lock(mutex_);
    switched_ns_ = monotonic_ns();
    switched_ = told;
    changed_.notify_all();
  });
}

}  // namespace godwit::node
