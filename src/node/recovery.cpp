// What a daemon does first: settles the migrations of its predecessor, takes the services on that
// live (their shims outlive daemons), sweeps up what belongs to nobody.
#include <algorithm>
#include <chrono>
#include <ctime>

#include "base/fault_point.h"
#include "base/log.h"
#include "base/status.h"
#include "node/node.h"
#include "node/vms.h"

namespace godwit::node {
namespace {

// A service that was killed together with its shim, or by a restart of the machine.
constexpr int kLostExitCode = 255;
// How soon stop() is noticed.
constexpr std::chrono::milliseconds kStopSlice{100};
// What did not succeed is tried again, ever more rarely.
constexpr absl::Duration kFirstPause = absl::Milliseconds(100);
constexpr absl::Duration kLongestPause = absl::Seconds(5);

}  // namespace

absl::Status Node::recover() {
  FAULT_POINT("node.recover");
  absl::StatusOr<std::vector<VersionedService>> all = absl::UnknownError("");
  const auto read_all = [&] {
    all = records_->services();
    return all.status();
  };
  GW_RETURN_IF_ERROR(until_done(read_all));
  for (const VersionedService& each : *all)
    if (each.record.owner() == config_.name)
      services_.set_capsule(each.record.name(), capsule_in(each.record));
  GW_ASSIGN_OR_RETURN(const std::vector<api::MigrationJournal> entries, journal_.all());
  Unsettled unsettled;
  for (const api::MigrationJournal& each : entries) {
    const absl::Status settled = settle(each);
    if (stopping()) return absl::CancelledError("the daemon stops");
    if (settled.ok()) continue;
    log_error("settling migration {} of {}: {}", each.id(), each.service(), message_of(settled));
    unsettled[each.service()].push_back(each);
  }
  if (!entries.empty()) GW_RETURN_IF_ERROR(until_done(read_all));
  for (VersionedService& each : *all) {
    const std::string name = each.record.name();
    if (each.record.owner() != config_.name || unsettled.count(name) != 0) continue;
    const absl::Status settled = settle_service(std::move(each));
    if (settled.ok()) continue;
    log_error("taking service {} on: {}", name, message_of(settled));
    unsettled[name] = {};
  }
  GW_RETURN_IF_ERROR(remove_strays(unsettled));
  GW_RETURN_IF_ERROR(until_done([&] { return announce_self(); }));
  for (auto& [service, left] : unsettled) {
    GW_ASSIGN_OR_RETURN(Busy::Hold hold, busy_.try_hold(service, "being settled"));
    settle_later(service, std::move(left), std::move(hold));
  }
  {
    std::lock_guard lock(mutex_);
    recovered_ = true;
  }
  recovered_changed_.notify_all();
  return absl::OkStatus();
}

absl::Status Node::wait_recovered(Deadline deadline) const {
  std::unique_lock lock(mutex_);
  while (!recovered_) {
    if (stopping() || deadline.passed())
      return make_error(absl::StatusCode::kUnavailable,
                        "node {} has just started and settles what was under way; try again",
                        config_.name);
    recovered_changed_.wait_for(lock, kStopSlice);
  }
  return absl::OkStatus();
}

// The store may fail in any way: a daemon that ended for it would help nobody.
absl::Status Node::until_done(const std::function<absl::Status()>& ask) const {
  const AskAgain again = ask_again();
  while (true) {
    const absl::Status answer = ask();
    if (answer.ok() || absl::IsNotFound(answer)) return answer;
    if (!again(answer)) return absl::CancelledError("the daemon stops");
  }
}

absl::Status Node::settle(const api::MigrationJournal& entry) {
  return entry.side() == api::MigrationJournal::DESTINATION
             ? settle_destination(entry)
             : settle_source(entry, Undone::kNothing).status();
}

void Node::settle_later(const std::string& service, std::vector<api::MigrationJournal> entries,
                        Busy::Hold hold) {
  auto held = std::make_shared<Busy::Hold>(std::move(hold));
  tasks_.run([this, service, entries = std::move(entries), held] {
    for (const api::MigrationJournal& each : entries) {
      const std::string doing = fmt::format("settling migration {} of {}", each.id(), service);
      if (!keep_trying(doing, [&] { return settle(each); }).ok()) return;
    }
    keep_trying(fmt::format("taking service {} on", service), [&]() -> absl::Status {
      auto record = records_->service(service);
      if (absl::IsNotFound(record.status())) return absl::OkStatus();
      GW_RETURN_IF_ERROR(record.status());
      if (record->record.owner() != config_.name) return absl::OkStatus();
      return settle_service(*std::move(record));
    }).IgnoreError();
    held->release();
  });
}

absl::Status Node::keep_trying(const std::string& doing,
                               const std::function<absl::Status()>& act) const {
  absl::Duration pause = kFirstPause;
  while (true) {
    const absl::Status done = act();
    if (done.ok() || stopping()) return done;
    log_error("{}: {}; trying again", doing, message_of(done));
    const Deadline deadline = Deadline::in(pause);
    while (!deadline.passed() && !stopping()) {
      const timespec slice{0, 50'000'000};
      ::nanosleep(&slice, nullptr);
    }
    pause = std::min(2 * pause, kLongestPause);
  }
}

absl::Status Node::settle_service(VersionedService versioned) {
  api::ServiceRecord& record = versioned.record;
  const std::string name = record.name();
  if (record.has_vm()) return settle_vm(std::move(versioned));
  if (record.state() == api::SERVICE_CREATING) {
    log_info("service {}: its start was interrupted; removing it", name);
    return remove_service(name);
  }
  if (record.state() == api::SERVICE_EXITED) return absl::OkStatus();
  const auto info = services_.info(name);
  if (absl::IsNotFound(info.status())) {
    record.set_state(api::SERVICE_EXITED);
    record.set_exit_code(kLostExitCode);
    log_warning("service {} is not there any more", name);
    return records_->put(versioned);
  }
  GW_RETURN_IF_ERROR(info.status());
  // Its migration had not begun to touch anything, or was settled but for this.
  if (record.state() == api::SERVICE_MIGRATING) {
    GW_RETURN_IF_ERROR(services_.roll_back(name, UniqueFd()));
    record.set_state(api::SERVICE_RUNNING);
    record.set_generation(record.generation() + 1);
    record.clear_migration_id();
    record.clear_destination();
    GW_RETURN_IF_ERROR(records_->put(versioned));
  }
  log_info("service {} is taken on", name);
  if (!record.pages_at().empty()) post_copy_.fetch(name);
  // Notices an end that has come already, too.
  supervise(name);
  return absl::OkStatus();
}

absl::Status Node::settle_vm(VersionedService versioned) {
  api::ServiceRecord& record = versioned.record;
  if (record.state() == api::SERVICE_CREATING) {
    log_info("{}: taking it on was interrupted; forgetting it", record.name());
    return vms_->remove(record.name(), false);
  }
  // Its migration had not begun, or was settled but for this.
  if (record.state() == api::SERVICE_MIGRATING) {
    record.set_state(api::SERVICE_RUNNING);
    record.set_generation(record.generation() + 1);
    record.clear_migration_id();
    record.clear_destination();
    GW_RETURN_IF_ERROR(records_->put(versioned));
  }
  return vms_->take_on(record.name(), record.vm().uuid());
}

// No replica is made meanwhile: wait_recovered().
absl::Status Node::remove_strays(const Unsettled& unsettled) {
  GW_ASSIGN_OR_RETURN(const std::vector<std::string> names,
                      capsule::list_services(services_.paths()));
  for (const std::string& capsule : names) {
    const std::string name(capsule::service_of(capsule));
    if (unsettled.count(name) != 0) continue;
    absl::StatusOr<VersionedService> record = absl::UnknownError("");
    const absl::Status read = until_done([&] {
      record = records_->service(name);
      return record.status();
    });
    if (!read.ok() && !absl::IsNotFound(read)) return read;
    if (record.ok() && record->record.owner() == config_.name &&
        capsule_in(record->record) == capsule)
      continue;
    // The journal has it, and keeps it.
    if (record.ok() && record->record.pages_at() == config_.name &&
        record->record.owner() != config_.name)
      continue;
    log_info("{} belongs to {}; removing what is left of it here", capsule,
             record.ok() ? record->record.owner() : "nobody");
    const absl::Status gone = services_.destroy_capsule(capsule);
    if (!gone.ok()) log_error("removing {}: {}", capsule, message_of(gone));
  }
  return absl::OkStatus();
}

}  // namespace godwit::node
