// What a source asks before it moves a service, and the dry run, which is no more than that.
#include <grpcpp/client_context.h>

#include "api/rpc_status.h"
#include "base/status.h"
#include "migration/decider.h"
#include "migration/precheck.h"
#include "node/machine.h"
#include "node/node.h"
#include "node/source_migration.h"

namespace godwit::node {
namespace {

constexpr absl::Duration kPrepareTimeout = absl::Seconds(60);
// From the call to the first round, where it has not been measured.
constexpr int64_t kUsualSetupNs = 50'000'000;

}  // namespace

// A move goes as well without them.
EarlierFigures SourceMigration::add_earlier_figures(migration::MoverStart& start,
                                                    const std::string& destination) const {
  EarlierFigures figures;
  start.set_fixed_downtime_ns(figures.fixed_downtime_ns);
  const auto services = node_.records().services();
  if (!services.ok()) return figures;
  std::vector<api::ServiceRecord> records;
  for (const VersionedService& each : *services) records.push_back(each.record);
  figures = earlier_figures(records, current_.record.name(), node_.config().name, destination);
  start.set_link_bytes_per_s(static_cast<uint64_t>(figures.link_bytes_per_s));
  start.set_dirty_pages_per_s(static_cast<uint64_t>(figures.dirty_pages_per_s));
  start.set_fixed_downtime_ns(figures.fixed_downtime_ns);
  return figures;
}

absl::Status SourceMigration::call_prepare(Peer& peer, api::PrepareReplicaRequest& request,
                                           api::PrepareReplicaReply& reply) {
  GW_ASSIGN_OR_RETURN(const MachineFacts* facts, node_.machine_facts());
  GW_ASSIGN_OR_RETURN(const migration::Needs needs,
                      needs_of(*facts, node_.services(), current_.record));
  layer_bytes_ = needs.disk_bytes();
  request.set_needs(needs.SerializeAsString());
  request.set_data_tls(node_.data_tls());
  grpc::ClientContext context;
  set_timeout(context, kPrepareTimeout);
  const int64_t asked_ns = clock_ns(CLOCK_REALTIME);
  GW_RETURN_IF_ERROR(api::from_grpc(peer.peer->PrepareReplica(&context, request, &reply)));
  migration::Machine machine;
  if (!machine.ParseFromString(reply.machine()))
    return make_error(absl::StatusCode::kDataLoss, "node {} does not say what it is", peer.name);
  for (const migration::Reason& each :
       migration::judge_clock(asked_ns, clock_ns(CLOCK_REALTIME), machine.realtime_ns(), peer.name))
    warnings_.push_back(to_refusal(each));
  return absl::OkStatus();
}

std::vector<migration::Reason> SourceMigration::missing_here() const {
  const auto facts = node_.machine_facts();
  if (!facts.ok()) return {};
  return missing_at_source(**facts, node_.config().name);
}

api::MigrateResult SourceMigration::refused(const std::vector<migration::Reason>& reasons) const {
  api::MigrateResult result;
  result.set_name(current_.record.name());
  result.set_node(node_.config().name);
  result.set_outcome("refused");
  for (const migration::Reason& each : reasons) *result.add_refusals() = to_refusal(each);
  result.set_error(
      fmt::format("{}: {}; {}", reasons[0].object(), reasons[0].reason(), reasons[0].way_out()));
  return result;
}

absl::StatusOr<api::MigrateResult> SourceMigration::refused_there() {
  const api::Refusal& first = replica_.refusals(0);
  GW_ASSIGN_OR_RETURN(
      api::MigrateResult result,
      rolled_back(fmt::format("{}: {}; {}", first.object(), first.reason(), first.way_out()),
                  Node::Undone::kAll));
  if (result.outcome() == "rolled_back") result.set_outcome("refused");
  *result.mutable_refusals() = replica_.refusals();
  return result;
}

absl::StatusOr<api::MigrateResult> SourceMigration::dry_run(const api::MigrateRequest& request,
                                                            migration::Strategy strategy) {
  migration::MoverStart start = describe(migration::ROLE_PRECHECK);
  start.set_throttle(request.throttle());
  GW_ASSIGN_OR_RETURN(mover_, node_.spare_mover().take_or_start(start));
  GW_ASSIGN_OR_RETURN(const migration::Finished finished, follow());
  api::MigrateResult result = found_here(request.name(), finished);
  if (request.node().empty()) return result;
  GW_ASSIGN_OR_RETURN(const std::shared_ptr<Peer> peer, node_.peers().find(request.node()));
  api::PrepareReplicaRequest question;
  question.set_migration_id(entry_.id());
  question.set_service(request.name());
  question.set_source(node_.config().name);
  question.set_spec(current_.record.spec());
  question.set_dry_run(true);
  for (const std::string& each : finished.used_files()) question.add_used_files(each);
  api::PrepareReplicaReply answer;
  const absl::Status there = call_prepare(*peer, question, answer);

  if (!there.ok()) {
    api::Refusal* refusal = result.add_refusals();
    refusal->set_code("destination.unfit");
    refusal->set_object(request.node());
    refusal->set_reason(std::string(message_of(there)));
    refusal->set_way_out("mend that on the node, or choose another one");
  }
  for (const api::Refusal& each : answer.refusals()) *result.add_refusals() = each;
  *result.mutable_differences() = answer.differences();
  migration::Statistics statistics = finished.statistics();
  predict(describe(request, strategy), *peer, statistics, result);
  *result.mutable_statistics() = statistics_of(statistics);
  result.mutable_statistics()->set_source(node_.config().name);
  result.mutable_statistics()->set_destination(request.node());
  result.set_layer_bytes(layer_bytes_);
  for (const api::Refusal& each : warnings_) *result.add_warnings() = each;
  if (result.refusals_size() > 0) result.set_outcome("refused");
  return result;
}

// What is known without another node.
api::MigrateResult SourceMigration::found_here(const std::string& service,
                                               const migration::Finished& finished) const {
  api::MigrateResult result;
  result.set_name(service);
  result.set_node(node_.config().name);
  for (const migration::Reason& each : missing_here()) *result.add_refusals() = to_refusal(each);
  for (const migration::Reason& each : finished.reasons())
    *result.add_refusals() = to_refusal(each);
  *result.mutable_statistics() = statistics_of(finished.statistics());
  const bool refused = finished.outcome() == migration::OUTCOME_REFUSED ||
                       result.refusals_size() > 0 || !finished.error().empty();
  result.set_outcome(refused ? "refused" : "movable");
  result.set_error(finished.error());
  return result;
}

// Nothing is tracked for it: that would touch the program.
void SourceMigration::predict(migration::MoverStart start, Peer& peer,
                              migration::Statistics& statistics, api::MigrateResult& result) {
  const EarlierFigures figures = add_earlier_figures(start, peer.name);
  std::string based_on = fmt::format("the link's rate in {}", figures.link_from);
  if (figures.link_bytes_per_s == 0) {
    const auto probed = probe_link(peer);
    if (probed.ok()) start.set_link_bytes_per_s(static_cast<uint64_t>(*probed));
    based_on = probed.ok()
                   ? "a short probe of the link over the nodes' API, which is slower than a "
                     "move"
                   : "nothing: the link's rate is not known";
  }
  based_on += figures.dirty_known ? "; what it wrote in its own last move"
                                  : "; how fast it writes is not known before its first move";
  result.set_based_on(based_on);
  migration::Decider decider(migration::limits_of(start));
  const migration::Estimate estimate{statistics.memory_bytes() / stream::kPageSize,
                                     statistics.pages_zero()};
  const migration::Decision decision = decider.before(estimate, kUsualSetupNs);
  migration::Statistics decided;
  migration::describe(decision, decider.prediction(), decided);
  statistics.MergeFrom(decided);
}

}  // namespace godwit::node
