// A clone as the original's node sees it: a checkpoint that leaves it running, to another node or
// this one. The original's record says nothing of it, and whatever fails, it runs on.
#include "absl/cleanup/cleanup.h"
#include "api/rpc_status.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/status.h"
#include "capsule/paths.h"
#include "node/compress_option.h"
#include "node/launch.h"
#include "node/ownership.h"
#include "node/source_migration.h"

namespace godwit::node {

absl::StatusOr<api::MigrateResult> SourceMigration::clone(const api::CloneRequest& request) {
  GW_RETURN_IF_ERROR(capsule::check_name(request.clone()));
  if (request.clone() == request.name())
    return make_error(absl::StatusCode::kInvalidArgument,
                      "--name {}: that is the original's; choose another one", request.name());
  GW_RETURN_IF_ERROR(check_ip(node_.config(), request.ip()));
  GW_RETURN_IF_ERROR(check_compress(request.compress()));
  const std::string destination = request.node().empty() ? node_.config().name : request.node();
  GW_RETURN_IF_ERROR(node_.records().node(destination).status());
  GW_RETURN_IF_ERROR(check(request.name(), fmt::format("being cloned to {}", destination)));
  const std::vector<migration::Reason> missing = missing_here();
  if (!missing.empty()) return refused(missing);
  entry_.set_id(random_id());
  entry_.set_service(request.name());
  entry_.set_side(api::MigrationJournal::LOCAL);
  entry_.set_peer(destination);
  GW_RETURN_IF_ERROR(node_.journal().write(entry_));
  const auto outgoing = node_.begin_outgoing(request.name());
  const auto ended = absl::MakeCleanup([&] { node_.end_outgoing(request.name()); });
  user_cancelled_ = [outgoing, before = std::move(user_cancelled_)] {
    return outgoing->cancelled || before();
  };
  api::MigrateProgress preparing;
  preparing.set_phase("prepare");
  on_progress_(preparing);
  const absl::Status prepared = prepare_clone(request);
  if (!prepared.ok()) return rolled_back(std::string(message_of(prepared)), Node::Undone::kAll);
  if (replica_.refusals_size() > 0) return refused_there();
  const auto compress = compress_for(request.compress(), replica_, entry_.peer());
  if (!compress.ok())
    return rolled_back(std::string(message_of(compress.status())), Node::Undone::kAll);
  if (user_cancelled_()) return rolled_back("cancelled", Node::Undone::kAll);

  api::MigrateRequest limits;
  limits.set_max_downtime_ns(request.max_downtime_ns());
  limits.set_bandwidth_bytes_per_s(request.bandwidth_bytes_per_s());
  migration::MoverStart start = describe(limits, migration::STRATEGY_PRECOPY);
  start.set_clone(true);
  start.set_post_copy_possible(false);
  start.set_peer_host(replica_.host());
  start.set_peer_port(replica_.port());
  node_.set_proof(start, replica_.token(), entry_.peer());
  start.set_verbose(request.verbose());
  start.set_compress(*compress);
  start.set_stream_version(replica_.stream_version());
  const absl::Status started = start_mover(std::move(start));
  if (!started.ok()) return rolled_back(std::string(message_of(started)), Node::Undone::kNothing);
  const auto finished = follow();
  mover_->kill();
  if (finished.ok() && finished->outcome() == migration::OUTCOME_SAVED) {
    GW_RETURN_IF_ERROR(node_.journal().remove(entry_));
    return cloned(request, finished->statistics());
  }
  // Or the answer was lost: then the clone's own record has it.
  GW_ASSIGN_OR_RETURN(api::MigrateResult result, conclude(finished));
  const auto record = node_.records().service(request.clone());
  if (record.ok() && record->record.last_migration().id() == entry_.id() &&
      record->record.state() != api::SERVICE_CREATING)
    return cloned(request, finished.ok() ? finished->statistics() : migration::Statistics());
  return result;
}

absl::Status SourceMigration::prepare_clone(const api::CloneRequest& request) {
  GW_ASSIGN_OR_RETURN(const std::shared_ptr<Peer> peer, node_.peers().find(entry_.peer()));
  api::PrepareReplicaRequest prepare;
  prepare.set_migration_id(entry_.id());
  prepare.set_service(request.clone());
  prepare.set_clone_of(request.name());
  prepare.set_ip(request.ip());
  prepare.set_source(node_.config().name);
  GW_ASSIGN_OR_RETURN(capsule::CapsuleSpec spec, spec_for(*peer));
  spec.set_name(request.clone());
  prepare.set_spec(spec.SerializeAsString());
  prepare.set_verbose(request.verbose());
  GW_ASSIGN_OR_RETURN(const capsule::CapsuleInfo info, node_.services().info(entry_.service()));
  prepare.set_main_image_pid(info.main_pid() == 0 ? 0 : info.main_image_pid());
  const absl::Status prepared = call_prepare(*peer, prepare, replica_);
  return annotate(prepared, fmt::format("preparing {} on {}", request.clone(), entry_.peer()));
}

absl::StatusOr<api::MigrateResult> SourceMigration::cloned(
    const api::CloneRequest& request, const migration::Statistics& statistics) {
  api::MigrateResult result;
  result.set_name(request.clone());
  result.set_node(entry_.peer());
  result.set_outcome("cloned");
  api::MigrationStatistics& figures = *result.mutable_statistics();
  figures = statistics_of(statistics);
  figures.set_id(entry_.id());
  figures.set_source(node_.config().name);
  figures.set_destination(entry_.peer());
  figures.set_outcome("cloned");
  figures.set_strategy("clone");
  figures.set_finished_unix_ns(clock_ns(CLOCK_REALTIME));
  const absl::Status recorded = record_figures(node_.records(), request.clone(), figures);
  if (!recorded.ok())
    log_warning("recording the figures of clone {}: {}", request.clone(), message_of(recorded));
  for (const api::Refusal& each : warnings_) *result.add_warnings() = each;
  return result;
}

}  // namespace godwit::node
