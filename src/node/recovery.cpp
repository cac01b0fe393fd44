// What a daemon does first: settles the migrations of its predecessor, takes the services on that
// live (their shims outlive daemons), sweeps up what belongs to nobody.
#include <algorithm>

#include "base/log.h"
#include "base/status.h"
#include "node/node.h"

namespace godwit::node {
namespace {

// A service that was killed together with its shim, or by a restart of the machine.
constexpr int kLostExitCode = 255;

}  // namespace

absl::Status Node::recover() {
  absl::StatusOr<std::vector<VersionedService>> all = absl::UnknownError("");
  GW_RETURN_IF_ERROR(until_answered([&] {
    all = records_->services();
    return all.status();
  }));
  GW_ASSIGN_OR_RETURN(const std::vector<api::MigrationJournal> entries, journal_.all());
  for (const api::MigrationJournal& each : entries) {
    const absl::Status settled = each.side() == api::MigrationJournal::DESTINATION
                                     ? settle_destination(each)
                                     : settle_source(each, Undone::kNothing).status();
    if (!settled.ok())
      return annotate(settled,
                      fmt::format("settling migration {} of {}", each.id(), each.service()));
  }
  if (!entries.empty()) {
    GW_RETURN_IF_ERROR(until_answered([&] {
      all = records_->services();
      return all.status();
    }));
  }
  for (VersionedService& each : *all) {
    if (each.record.owner() != config_.name) continue;
    const std::string name = each.record.name();
    const absl::Status settled = settle_service(std::move(each));
    if (!settled.ok()) log_error("taking service {} on: {}", name, message_of(settled));
  }
  GW_RETURN_IF_ERROR(remove_strays());
  return until_answered([&] { return announce_self(); });
}

absl::Status Node::settle_service(VersionedService versioned) {
  api::ServiceRecord& record = versioned.record;
  const std::string name = record.name();
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
  // Notices an end that has come already, too.
  supervise(name);
  return absl::OkStatus();
}

absl::Status Node::remove_strays() {
  GW_ASSIGN_OR_RETURN(const std::vector<std::string> names,
                      capsule::list_services(services_.paths()));
  for (const std::string& name : names) {
    const auto record = records_->service(name);
    if (!record.ok() && !absl::IsNotFound(record.status())) return record.status();
    if (record.ok() && record->record.owner() == config_.name) continue;
    log_info("{} belongs to {}; removing what is left of it here", name,
             record.ok() ? record->record.owner() : "nobody");
    const absl::Status gone = services_.destroy(name);
    if (!gone.ok()) log_error("removing {}: {}", name, message_of(gone));
  }
  return absl::OkStatus();
}

}  // namespace godwit::node
