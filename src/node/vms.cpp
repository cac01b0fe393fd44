#include "node/vms.h"

#include <ctime>

#include "absl/cleanup/cleanup.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/status.h"
#include "capsule/capsule.h"
#include "node/launch.h"
#include "node/new_service.h"
#include "node/node.h"
#include "node/vm_replica.h"

namespace godwit::node {
namespace {

constexpr absl::Duration kRefreshWait = absl::Seconds(60);
constexpr absl::Duration kLook = absl::Milliseconds(200);

void nap(absl::Duration duration) {
  const timespec pause = absl::ToTimespec(duration);
  ::nanosleep(&pause, nullptr);
}

const char* state_name(vm::DomainState state) {
  switch (state) {
    case vm::DomainState::kRunning:
      return "running";
    case vm::DomainState::kPaused:
      return "paused";
    default:
      return "stopped";
  }
}

}  // namespace

absl::StatusOr<std::shared_ptr<vm::Hypervisor>> Vms::hypervisor() {
  std::lock_guard lock(mutex_);
  if (hypervisor_ == nullptr) {
    GW_ASSIGN_OR_RETURN(hypervisor_, vm::Hypervisor::open(libvirt_socket()));
  }
  return hypervisor_;
}

std::string Vms::libvirt_socket() const {
  const std::string& set = node_.config().libvirt_socket;
  return set.empty() ? vm::Hypervisor::default_socket() : set;
}

absl::StatusOr<api::Service> Vms::add(const api::AddVmRequest& request) {
  GW_ASSIGN_OR_RETURN(const auto hypervisor, hypervisor());
  std::string name = request.name();
  if (!request.xml().empty()) {
    GW_ASSIGN_OR_RETURN(const vm::DomainSpec spec, vm::parse_domain(request.xml()));
    name = spec.name;
  }
  // The name is the domain's, and both must be able to have it.
  GW_RETURN_IF_ERROR(capsule::check_name(name));
  GW_RETURN_IF_ERROR(check_ip(node_.config(), request.ip()));
  GW_ASSIGN_OR_RETURN(const Busy::Hold hold, hold_new_name(node_, name, "being taken on"));
  auto uuid = hypervisor->uuid_of(name);
  if (request.xml().empty()) {
    if (absl::IsNotFound(uuid.status()))
      return make_error(absl::StatusCode::kNotFound,
                        "libvirt of node {} has no domain \"{}\" (virsh list --all shows those "
                        "there are)",
                        node_.config().name, name);
    GW_RETURN_IF_ERROR(uuid.status());
  } else {
    if (uuid.ok())
      return make_error(absl::StatusCode::kAlreadyExists,
                        "libvirt of node {} has a domain \"{}\" already: take it on with godwit vm "
                        "adopt {}, or give the new one another <name>",
                        node_.config().name, name, name);
    if (!absl::IsNotFound(uuid.status())) return uuid.status();
  }
  VersionedService versioned;
  versioned.record.mutable_vm();
  if (uuid.ok()) versioned.record.mutable_vm()->set_uuid(*uuid);
  GW_RETURN_IF_ERROR(claim_new_name(node_, name, versioned));
  bool defined = false;
  auto undo = absl::MakeCleanup([&] {
    if (defined) hypervisor->undefine(versioned.record.vm().uuid()).IgnoreError();
    node_.records().release_address(request.ip(), name).IgnoreError();
    node_.records().remove(versioned).IgnoreError();
  });
  if (!request.ip().empty()) {
    GW_RETURN_IF_ERROR(node_.records().claim_address(request.ip(), name));
    versioned.record.set_address(request.ip());
  }
  if (!uuid.ok()) {
    GW_ASSIGN_OR_RETURN(uuid, hypervisor->define(request.xml()));
    defined = true;
    versioned.record.mutable_vm()->set_uuid(*uuid);
  }
  GW_ASSIGN_OR_RETURN(const vm::DomainState state, hypervisor->state(*uuid));
  const bool stopped = state == vm::DomainState::kStopped;
  versioned.record.set_state(stopped ? api::SERVICE_EXITED : api::SERVICE_RUNNING);
  if (!stopped) versioned.record.set_started_unix_ns(clock_ns(CLOCK_REALTIME));
  GW_RETURN_IF_ERROR(node_.records().put(versioned));
  std::move(undo).Cancel();
  GW_RETURN_IF_ERROR(take_on(name, *uuid));
  return node_.describe(versioned.record);
}

absl::StatusOr<api::Service> Vms::start(const std::string& name) {
  GW_ASSIGN_OR_RETURN(const auto hypervisor, hypervisor());
  GW_ASSIGN_OR_RETURN(const VersionedService found, node_.records().service(name));
  GW_RETURN_IF_ERROR(hypervisor->start(found.record.vm().uuid()));
  GW_RETURN_IF_ERROR(refresh(name));
  GW_ASSIGN_OR_RETURN(const VersionedService now, node_.records().service(name));
  return node_.describe(now.record);
}

absl::Status Vms::stop(const std::string& name, absl::Duration patience) {
  GW_ASSIGN_OR_RETURN(const auto hypervisor, hypervisor());
  GW_ASSIGN_OR_RETURN(const VersionedService found, node_.records().service(name));
  const std::string& uuid = found.record.vm().uuid();
  // A guest that is paused or does not listen to its button is unplugged.
  hypervisor->press_power(uuid).IgnoreError();
  const Deadline deadline = Deadline::in(patience);
  for (;;) {
    const auto now = hypervisor->state(uuid);
    if (absl::IsNotFound(now.status())) break;  // transient: it goes with its end
    GW_RETURN_IF_ERROR(now.status());
    if (*now == vm::DomainState::kStopped) break;
    if (deadline.passed()) {
      GW_RETURN_IF_ERROR(hypervisor->destroy(uuid));
      break;
    }
    nap(kLook);
  }
  return refresh(name);
}

absl::Status Vms::remove(const std::string& name, bool force) {
  GW_ASSIGN_OR_RETURN(const VersionedService found, node_.records().service(name));
  const std::string& uuid = found.record.vm().uuid();
  if (force) {
    GW_ASSIGN_OR_RETURN(const auto hypervisor, hypervisor());
    GW_RETURN_IF_ERROR(hypervisor->destroy(uuid));
    GW_RETURN_IF_ERROR(hypervisor->undefine(uuid));
  }
  let_go(name);
  return node_.until_answered([&]() -> absl::Status {
    for (;;) {
      const auto record = node_.records().service(name);
      if (absl::IsNotFound(record.status())) return absl::OkStatus();
      GW_RETURN_IF_ERROR(record.status());
      if (record->record.owner() != node_.config().name)
        return make_error(absl::StatusCode::kAborted, "{} is on {} now", name,
                          record->record.owner());
      GW_RETURN_IF_ERROR(node_.records().release_address(record->record.address(), name));
      const absl::Status removed = node_.records().remove(*record);
      if (!absl::IsAborted(removed)) return removed;
    }
  });
}

void Vms::describe(const api::ServiceRecord& record, api::Service& service) {
  api::Vm& shown = *service.mutable_vm();
  shown.set_uuid(record.vm().uuid());
  service.set_pages_at(record.pages_at());
  if (service.state() == "exited") service.set_state("stopped");
  if (record.owner() != node_.config().name) return;
  const auto ask = [&]() -> absl::Status {
    GW_ASSIGN_OR_RETURN(const auto hypervisor, hypervisor());
    GW_ASSIGN_OR_RETURN(const vm::DomainState state, hypervisor->state(record.vm().uuid()));
    shown.set_state(state_name(state));
    GW_ASSIGN_OR_RETURN(const std::string xml, hypervisor->xml(record.vm().uuid(), false));
    GW_ASSIGN_OR_RETURN(const vm::DomainSpec spec, vm::parse_domain(xml));
    shown.set_memory_bytes(spec.memory_bytes);
    shown.set_cpus(spec.cpus);
    shown.set_machine(spec.machine);
    for (const vm::Disk& each : spec.disks)
      if (!each.source.empty()) shown.add_disks(each.source);
    if (!spec.interfaces.empty()) service.set_mac(spec.interfaces[0].mac);
    return absl::OkStatus();
  };
  const absl::Status asked = ask();
  if (!asked.ok()) shown.set_error(std::string(message_of(asked)));
  if (shown.state() == "paused" && service.state() == "running") service.set_state("paused");
}

absl::StatusOr<api::MigrateResult> Vms::follow_pages(
    const std::string& name, const std::function<void(const api::MigrateProgress&)>& told,
    const std::function<bool()>& cancelled) {
  for (bool first = true;; first = false) {
    GW_ASSIGN_OR_RETURN(const VersionedService current, node_.records().service(name));
    const std::string& source = current.record.pages_at();
    if (source.empty() && first)
      return make_error(absl::StatusCode::kFailedPrecondition, "no memory of {} is missing", name);
    if (source.empty()) {
      api::MigrateResult result;
      result.set_name(name);
      result.set_node(current.record.owner());
      result.set_outcome("moved");
      *result.mutable_statistics() = current.record.last_migration();
      return result;
    }
    if (cancelled() || node_.stopping())
      return make_error(absl::StatusCode::kCancelled,
                        "memory of {} is at {} still; it comes by itself", name, source);
    api::MigrateProgress progress;
    progress.set_phase("post-copy");
    told(progress);
    nap(kLook);
  }
}

absl::Status Vms::take_on(const std::string& name, const std::string& uuid) {
  GW_ASSIGN_OR_RETURN(const auto hypervisor, hypervisor());
  // By libvirt's thread, which must not wait.
  GW_ASSIGN_OR_RETURN(auto watch, hypervisor->watch(uuid, [this, name](vm::Happened what) {
    if (what != vm::Happened::kStarted && what != vm::Happened::kStopped) return;
    if (node_.stopping()) return;
    node_.tasks().run([this, name] {
      // Whoever is at work on it makes the record right at its end.
      const auto hold = node_.busy().hold(name, "being recorded", Deadline::in(kRefreshWait));
      const absl::Status done = hold.ok() ? refresh(name) : hold.status();
      if (!done.ok()) log_warning("recording what {} does: {}", name, message_of(done));
    });
  }));
  {
    std::lock_guard lock(mutex_);
    watches_[name] = std::move(watch);
  }
  // What happened before.
  return refresh(name);
}

void Vms::let_go(const std::string& name) {
  std::unique_ptr<vm::Hypervisor::Subscription> ended;
  std::lock_guard lock(mutex_);
  const auto found = watches_.find(name);
  if (found == watches_.end()) return;
  ended = std::move(found->second);
  watches_.erase(found);
}

absl::Status Vms::refresh(const std::string& name) {
  GW_ASSIGN_OR_RETURN(const auto hypervisor, hypervisor());
  const absl::Status updated =
      node_.records()
          .update(name,
                  [&](api::ServiceRecord& record) -> absl::Status {
                    const bool ours = record.owner() == node_.config().name && record.has_vm() &&
                                      record.state() != api::SERVICE_MIGRATING;
                    if (!ours) return absl::CancelledError("not ours to change");
                    const auto state = hypervisor->state(record.vm().uuid());
                    const bool gone = absl::IsNotFound(state.status());
                    if (!gone) GW_RETURN_IF_ERROR(state.status());
                    const auto now = gone || *state == vm::DomainState::kStopped
                                         ? api::SERVICE_EXITED
                                         : api::SERVICE_RUNNING;
                    if (record.state() == now) return absl::CancelledError("as it was");
                    record.set_state(now);
                    if (now == api::SERVICE_RUNNING)
                      record.set_started_unix_ns(clock_ns(CLOCK_REALTIME));
                    return absl::OkStatus();
                  })
          .status();
  return absl::IsCancelled(updated) || absl::IsNotFound(updated) ? absl::OkStatus() : updated;
}

void Vms::add_session(const std::shared_ptr<VmReplica>& session) {
  std::lock_guard lock(mutex_);
  sessions_[session->migration_id()] = session;
}

void Vms::drop_session(const std::string& migration_id) {
  std::lock_guard lock(mutex_);
  sessions_.erase(migration_id);
}

std::shared_ptr<VmReplica> Vms::session(const std::string& migration_id) {
  std::lock_guard lock(mutex_);
  const auto found = sessions_.find(migration_id);
  return found == sessions_.end() ? nullptr : found->second;
}

void Vms::abort_sessions() {
  std::map<std::string, std::shared_ptr<VmReplica>> sessions;
  {
    std::lock_guard lock(mutex_);
    sessions = sessions_;
  }
  for (auto& [id, session] : sessions) session->abort().IgnoreError();
}

}  // namespace godwit::node
