#include "node/source_migration.h"

#include <grpcpp/client_context.h>
#include <openssl/rand.h>

#include <array>
#include <ctime>

#include "absl/cleanup/cleanup.h"
#include "api/rpc_status.h"
#include "base/fault_point.h"
#include "base/log.h"
#include "base/status.h"
#include "capsule/capsule.h"
#include "migration/forecast.h"
#include "migration/peer.h"
#include "node/compress_option.h"
#include "node/node.h"
#include "node/ownership.h"

namespace godwit::node {
namespace {

// The end of a move to here, whose answer came before its last steps.
constexpr absl::Duration kHoldWait = absl::Seconds(1);
constexpr absl::Duration kRecordWait = absl::Seconds(20);
constexpr absl::Duration kPrepareTimeout = absl::Seconds(60);
// How often a cancelled call is looked for while the mover says nothing.
constexpr absl::Duration kCancelSlice = absl::Milliseconds(100);
// A mover reports more often than this at any time; one that does not hangs, perhaps with a frozen
// service in its hands.
constexpr absl::Duration kSilence = absl::Seconds(30);

}  // namespace

std::string random_id() {
  std::array<unsigned char, 8> bytes{};
  RAND_bytes(bytes.data(), bytes.size());
  std::string id;
  for (const unsigned char each : bytes) id += fmt::format("{:02x}", each);
  return id;
}

namespace {

absl::StatusOr<migration::Strategy> strategy_asked_for(const api::MigrateRequest& request) {
  const migration::Strategy strategy = migration::strategy_of(request.strategy());
  if (strategy == migration::STRATEGY_INVALID)
    return make_error(absl::StatusCode::kInvalidArgument,
                      "--strategy {}: use auto, cold, precopy, postcopy or hybrid",
                      request.strategy());
  const bool post_copy =
      strategy == migration::STRATEGY_POSTCOPY || strategy == migration::STRATEGY_HYBRID;
  if (request.in_place() && (post_copy || strategy == migration::STRATEGY_AUTO))
    return post_copy ? make_error(absl::StatusCode::kInvalidArgument,
                                  "in place there is no link that memory could not follow: use "
                                  "--strategy precopy or cold")
                     : absl::StatusOr<migration::Strategy>(migration::STRATEGY_PRECOPY);
  if (post_copy && request.verify())
    return make_error(
        absl::StatusCode::kInvalidArgument,
        "--verify compares all pages before the service runs there, and --strategy {} "
        "lets it run before they are there: use precopy",
        request.strategy());
  if (request.throttle() && (post_copy || strategy == migration::STRATEGY_COLD))
    return make_error(absl::StatusCode::kInvalidArgument,
                      "--throttle is for rounds, and --strategy {} does not need them to converge",
                      request.strategy());
  return strategy;
}

absl::Status check_stall_timeout(int64_t timeout_ns) {
  if (timeout_ns == 0 || absl::Nanoseconds(timeout_ns) >= migration::kLeastStallTimeout)
    return absl::OkStatus();
  return make_error(absl::StatusCode::kInvalidArgument,
                    "--stall-timeout {}: a machine that is only busy would be taken for one that "
                    "has gone; use {} or more",
                    absl::FormatDuration(absl::Nanoseconds(timeout_ns)),
                    absl::FormatDuration(migration::kLeastStallTimeout));
}

// As an answer that is lost.
absl::Status fault_after_mark() {
  const auto fault = []() -> absl::Status {
    FAULT_POINT("node.marked");
    return absl::OkStatus();
  }();
  return fault.ok() ? fault : make_error(absl::StatusCode::kUnavailable, "{}", message_of(fault));
}

}  // namespace

absl::Status SourceMigration::check(const std::string& service, const std::string& doing) {
  GW_ASSIGN_OR_RETURN(hold_, node_.busy().hold(service, doing, Deadline::in(kHoldWait)));
  pause_ = SpareMover::Pause(node_.spare_mover());
  GW_ASSIGN_OR_RETURN(current_, node_.records().service(service));
  // Where the last page of a move to here has come the record is about to say so.
  const Deadline deadline = Deadline::in(kHoldWait), of_record = Deadline::in(kRecordWait);
  while (!current_.record.pages_at().empty() &&
         (!deadline.passed() || (!of_record.passed() && !lacks_pages(service)))) {
    const timespec moment{0, 20'000'000};
    ::nanosleep(&moment, nullptr);
    GW_ASSIGN_OR_RETURN(current_, node_.records().service(service));
  }
  return check_record(current_.record);
}

bool SourceMigration::lacks_pages(const std::string& service) const {
  const auto info = node_.services().info(service);
  return info.ok() && info->has_post_copy() && !info->post_copy().done();
}

absl::Status SourceMigration::check_record(const api::ServiceRecord& record) const {
  if (record.owner() != node_.config().name)
    return make_error(absl::StatusCode::kAborted, "service {} has just gone to {}; ask again",
                      record.name(), record.owner());
  if (record.state() != api::SERVICE_RUNNING)
    return make_error(absl::StatusCode::kFailedPrecondition, "service {} does not run",
                      record.name());
  if (!record.pages_at().empty())
    return make_error(
        absl::StatusCode::kFailedPrecondition,
        "pages of {} are at {} still; they come by themselves, godwit migrate --resume {} "
        "waits for the last one",
        record.name(), record.has_pages_file() ? record.pages_file().path() : record.pages_at(),
        record.name());
  return absl::OkStatus();
}

migration::MoverStart SourceMigration::describe(migration::Role role) const {
  migration::MoverStart start;
  start.set_role(role);
  start.set_migration_id(entry_.id());
  start.set_service(node_.services().capsule_of(current_.record.name()));
  start.set_node(node_.config().local());
  start.set_state_dir(node_.config().state_dir);
  return start;
}

absl::StatusOr<api::MigrateResult> SourceMigration::migrate(const api::MigrateRequest& request) {
  const std::string& self = node_.config().name;
  const std::string destination = request.in_place() ? self : request.node();
  if (destination == self && !request.in_place())
    return make_error(absl::StatusCode::kInvalidArgument,
                      "service {} is on {} already; godwit rejuvenate {} moves it there to a new "
                      "capsule",
                      request.name(), self, request.name());
  GW_ASSIGN_OR_RETURN(const migration::Strategy strategy, strategy_asked_for(request));
  GW_RETURN_IF_ERROR(check_compress(request.compress()));
  GW_RETURN_IF_ERROR(check_stall_timeout(request.stall_timeout_ns()));
  // A dry run that names no destination looks at the service alone.
  const bool alone = request.dry_run() && destination.empty();
  if (!alone) GW_RETURN_IF_ERROR(node_.records().node(destination).status());
  GW_RETURN_IF_ERROR(check(request.name(), request.in_place()
                                               ? std::string("being moved in place")
                                               : fmt::format("being moved to {}", destination)));
  entry_.set_id(random_id());
  entry_.set_peer(destination);
  if (request.in_place()) entry_.set_capsule(node_.services().capsule_of(request.name()));
  if (request.dry_run()) return dry_run(request, strategy);
  const std::vector<migration::Reason> missing = missing_here();
  if (!missing.empty()) return refused(missing);

  const auto outgoing = node_.begin_outgoing(request.name());
  const auto ended = absl::MakeCleanup([&] { node_.end_outgoing(request.name()); });
  user_cancelled_ = [outgoing, before = std::move(user_cancelled_)] {
    return outgoing->cancelled || before();
  };
  GW_RETURN_IF_ERROR(mark_migrating(destination));
  api::MigrateProgress preparing;
  preparing.set_phase("prepare");
  on_progress_(preparing);
  const absl::Status prepared = prepare_destination(request);
  if (!prepared.ok()) return rolled_back(std::string(message_of(prepared)), Node::Undone::kAll);
  if (replica_.refusals_size() > 0) return refused_there();
  const auto compress = compress_for(request.compress(), replica_, entry_.peer());
  if (!compress.ok())
    return rolled_back(std::string(message_of(compress.status())), Node::Undone::kAll);
  if (user_cancelled_()) return rolled_back("cancelled", Node::Undone::kAll);

  migration::MoverStart start = describe(request, strategy);
  add_earlier_figures(start, destination);
  start.set_peer_host(replica_.host());
  start.set_peer_port(replica_.port());
  node_.set_proof(start, replica_.token(), entry_.peer());
  start.set_verbose(request.verbose());
  start.set_verify(request.verify());
  entry_.set_bytes_per_s(request.bandwidth_bytes_per_s());
  start.set_compress(*compress);
  start.set_stream_version(replica_.stream_version());
  const absl::Status started = start_mover(std::move(start));
  if (!started.ok()) return rolled_back(std::string(message_of(started)), Node::Undone::kNothing);
  return conclude(follow());
}

migration::MoverStart SourceMigration::describe(const api::MigrateRequest& request,
                                                migration::Strategy strategy) const {
  migration::MoverStart start = describe(migration::ROLE_SOURCE);
  start.set_strategy(strategy);
  start.set_max_downtime_ns(request.max_downtime_ns());
  start.set_max_total_ns(request.max_total_ns());
  start.set_post_copy_possible(!request.verify() && !request.in_place());
  node_.set_bandwidth(start, request.bandwidth_bytes_per_s());
  start.set_throttle(request.throttle());
  start.set_stall_timeout_ns(request.stall_timeout_ns());
  return start;
}

absl::Status SourceMigration::mark_migrating(const std::string& destination) {
  entry_.set_side(api::MigrationJournal::SOURCE);
  entry_.set_service(current_.record.name());
  entry_.set_generation(current_.record.generation() + 1);
  // Before the record: one that says "migrating" always has its note.
  GW_RETURN_IF_ERROR(node_.journal().write(entry_));
  // The source of an earlier move may write its figures meanwhile.
  auto written =
      node_.records().update(entry_.service(), [&](api::ServiceRecord& record) -> absl::Status {
        GW_RETURN_IF_ERROR(check_record(record));
        record.set_generation(record.generation() + 1);
        record.set_state(api::SERVICE_MIGRATING);
        record.set_migration_id(entry_.id());
        record.set_destination(destination);
        return absl::OkStatus();
      });
  if (written.ok()) current_ = *std::move(written);
  const absl::Status marked = written.ok() ? fault_after_mark() : written.status();
  if (marked.ok()) return marked;
  if (store::nothing_changed(marked) || absl::IsNotFound(marked)) {
    node_.journal().remove(entry_).IgnoreError();
    return marked;
  }
  // It may say so by now, or yet. No other node has been told of this migration.
  api::MigrationJournal entry = entry_;
  entry.clear_peer();
  const absl::Status settled = node_.settle_source(entry, Node::Undone::kAll).status();
  if (!settled.ok() && !node_.stopping())
    node_.settle_later(entry.service(), {entry}, std::move(hold_));
  return marked;
}

// The capsule's clocks must not go back over the move: on another machine its offsets are chosen
// anew. The peer's clock was read before its answer arrived, so that the capsule's time there is
// ahead by at most the round trip.
absl::StatusOr<capsule::CapsuleSpec> SourceMigration::spec_for(Peer& peer) const {
  capsule::CapsuleSpec spec;
  if (!spec.ParseFromString(current_.record.spec()))
    return make_error(absl::StatusCode::kDataLoss, "the spec of {} does not parse",
                      entry_.service());
  grpc::ClientContext context;
  set_timeout(context, kPrepareTimeout);
  api::Node there;
  const absl::Status asked = api::from_grpc(peer.peer->Ping(&context, api::Empty(), &there));
  if (!asked.ok()) return annotate(asked, fmt::format("node {}", peer.name));
  const api::Node here = node_.describe_self();
  if (!here.boot_id().empty() && here.boot_id() == there.boot_id()) return spec;
  spec.set_monotonic_offset_ns(here.monotonic_ns() + spec.monotonic_offset_ns() -
                               there.monotonic_ns());
  spec.set_boottime_offset_ns(here.boottime_ns() + spec.boottime_offset_ns() - there.boottime_ns());
  return spec;
}

absl::Status SourceMigration::prepare_destination(const api::MigrateRequest& asked) {
  GW_ASSIGN_OR_RETURN(const std::shared_ptr<Peer> peer, node_.peers().find(entry_.peer()));
  api::PrepareReplicaRequest request;
  request.set_migration_id(entry_.id());
  request.set_service(entry_.service());
  request.set_source(node_.config().name);
  request.set_record_revision(current_.revision);
  GW_ASSIGN_OR_RETURN(capsule::CapsuleSpec spec, spec_for(*peer));
  // In place the two differ by name for as long as both are there.
  spec.set_name(entry_.capsule().empty()
                    ? entry_.service()
                    : fmt::format("{}~{}", entry_.service(), entry_.id().substr(0, 8)));
  request.set_spec(spec.SerializeAsString());
  request.set_verbose(asked.verbose());
  request.set_stall_timeout_ns(asked.stall_timeout_ns());
  GW_ASSIGN_OR_RETURN(const capsule::CapsuleInfo info, node_.services().info(entry_.service()));
  request.set_main_image_pid(info.main_pid() == 0 ? 0 : info.main_image_pid());
  const absl::Status prepared = call_prepare(*peer, request, replica_);
  if (!prepared.ok())
    return annotate(prepared, fmt::format("preparing {} on {}", entry_.service(), entry_.peer()));
  return absl::OkStatus();
}

absl::Status SourceMigration::start_mover(migration::MoverStart start) {
  FAULT_POINT("node.before_mover");
  GW_ASSIGN_OR_RETURN(mover_, node_.spare_mover().take_or_start(start));
  entry_.set_mover_pid(mover_->pid());
  entry_.set_mover_start_ticks(mover_->start_ticks());
  return node_.journal().write(entry_);
}

absl::StatusOr<migration::Finished> SourceMigration::follow() {
  bool asked_to_cancel = false;
  Deadline silence = Deadline::in(kSilence);
  while (true) {
    if (!asked_to_cancel && user_cancelled_()) {
      asked_to_cancel = true;
      migration::DaemonToMover message;
      message.set_cancel(true);
      // A mover that cannot be told has ended; receive() says so.
      mover_->send(message).IgnoreError();
    }
    UniqueFd attached;
    auto message = mover_->receive(Deadline::in(kCancelSlice), &attached);
    if (absl::IsDeadlineExceeded(message.status())) {
      if (!silence.passed()) continue;
      mover_->kill();
      return make_error(absl::StatusCode::kOutOfRange,
                        "the mover said nothing for {} s and was ended",
                        absl::ToInt64Seconds(kSilence));
    }
    if (!message.ok()) return message.status();
    silence = Deadline::in(kSilence);
    // Either it never sent its end mark or the destination's mover gave its word.
    if (message->runs_on()) node_.call_off(entry_);
    if (message->message_case() == migration::MoverToDaemon::kHoldFd) {
      // It may be dead already; then there is nothing in it.
      auto copy = mover_->copy_fd(message->hold_fd());
      if (copy.ok()) left_.hold = *std::move(copy);
      entry_.set_mover_hold_fd(static_cast<int32_t>(message->hold_fd()));
      GW_RETURN_IF_ERROR(node_.journal().write(entry_));
      continue;
    }
    if (message->message_case() == migration::MoverToDaemon::kUserfaultfdOf)
      left_.userfaultfds.push_back({HostPid{message->userfaultfd_of()}, std::move(attached)});
    if (message->has_finished()) return message->finished();
    if (!message->has_progress()) continue;
    const migration::Progress& from = message->progress();
    // It runs there: what is left may take long, and our successor goes on with it.
    if (from.phase() == "post-copy" && node_.stopping())
      return make_error(absl::StatusCode::kOutOfRange, "the daemon stops");
    api::MigrateProgress progress;
    progress.set_phase(from.phase());
    progress.set_round(from.round());
    progress.set_pages_left(from.pages_left());
    progress.set_pages_total(from.pages_total());
    progress.set_bytes_per_s(from.bytes_per_s());
    progress.set_dirty_pages_per_s(from.dirty_pages_per_s());
    progress.set_time_left_ns(from.time_left_ns());
    progress.set_strategy(from.strategy());
    progress.set_reason(from.reason());
    progress.set_throttle_percent(from.throttle_percent());
    if (const auto outgoing = node_.outgoing(entry_.service()))
      outgoing->throttle_percent = from.throttle_percent();
    on_progress_(progress);
  }
}

absl::Status SourceMigration::roll_back_at_once() {
  FAULT_POINT("node.rolling_back");
  return node_.services().roll_back(entry_.service(), std::move(left_.hold));
}

absl::StatusOr<api::MigrateResult> SourceMigration::conclude(
    absl::StatusOr<migration::Finished> finished) {
  mover_->kill();
  hold_.ends_soon();
  // Without the end mark the destination cannot have asked for the commit: go back at once, the
  // store may be slow.
  Node::Undone undone = Node::Undone::kNothing;
  if (finished.ok() && (finished->outcome() == migration::OUTCOME_ROLLED_BACK ||
                        finished->outcome() == migration::OUTCOME_REFUSED))
    undone = Node::Undone::kAll;
  if (!mover_->end_mark_sent() && undone == Node::Undone::kNothing &&
      (!finished.ok() || finished->outcome() == migration::OUTCOME_UNKNOWN)) {
    const absl::Status back = roll_back_at_once();
    if (!back.ok())
      log_error("rolling {} back: {}", entry_.service(), message_of(back));
    else
      undone = Node::Undone::kThawed;
    node_.call_off(entry_);
  }
  if (!finished.ok()) return rolled_back(std::string(message_of(finished.status())), undone);
  api::MigrationStatistics statistics = statistics_of(finished->statistics());
  statistics.set_id(entry_.id());
  statistics.set_source(node_.config().name);
  statistics.set_destination(entry_.peer());
  statistics.set_outcome(outcome_name(finished->outcome()));
  statistics.set_finished_unix_ns(clock_ns(CLOCK_REALTIME));
  api::MigrateResult result;
  if (finished->outcome() == migration::OUTCOME_MOVED) {
    record_statistics(statistics);
    // Of post-copy: whatever the record says yet.
    entry_.set_pages_given(true);
    take_down();
    result.set_name(entry_.service());
    result.set_node(entry_.peer());
    result.set_outcome("moved");
  } else {
    GW_ASSIGN_OR_RETURN(result, rolled_back(finished->error(), undone));
    if (finished->outcome() == migration::OUTCOME_REFUSED) result.set_outcome("refused");
    for (const migration::Reason& each : finished->reasons())
      *result.add_refusals() = to_refusal(each);
    statistics.set_outcome(result.outcome());
    if (result.outcome() == "moved") record_statistics(statistics);
  }
  *result.mutable_statistics() = std::move(statistics);
  for (const api::Refusal& each : warnings_) *result.add_warnings() = each;
  return result;
}

absl::StatusOr<api::MigrateResult> SourceMigration::rolled_back(const std::string& why,
                                                                Node::Undone undone) {
  const auto owner = node_.settle_source(entry_, undone, std::move(left_));
  if (!owner.ok()) {
    // Perhaps it is frozen still.
    if (!node_.stopping()) node_.settle_later(entry_.service(), {entry_}, std::move(hold_));
    return owner.status();
  }
  api::MigrateResult result;
  result.set_name(entry_.service());
  const bool replaced = *owner == kReplacedHere;
  result.set_node(replaced ? node_.config().name : *owner);
  result.set_outcome(*owner == node_.config().name ? "rolled_back" : "moved");
  result.set_error(why);
  result.mutable_statistics()->set_source(node_.config().name);
  result.mutable_statistics()->set_destination(entry_.peer());
  return result;
}

void SourceMigration::record_statistics(const api::MigrationStatistics& statistics) {
  const absl::Status recorded = record_figures(node_.records(), entry_.service(), statistics);
  if (!recorded.ok())
    log_warning("recording the figures of migration {}: {}", entry_.id(), message_of(recorded));
}

void SourceMigration::take_down() {
  // Ending gigabytes takes a while and nobody waits for it; the hold keeps a move back from meeting
  // what is left.
  auto hold = std::make_shared<Busy::Hold>(std::move(hold_));
  auto pause = std::make_shared<SpareMover::Pause>(std::move(pause_));
  // Closed after its program has gone: nobody waits while the kernel walks its memory.
  auto left = std::make_shared<LeftByMover>(std::move(left_));
  node_.tasks().run([&node = node_, entry = entry_, hold, pause, left]() mutable {
    node.keep_trying(fmt::format("taking {} down after migration {}", entry.service(), entry.id()),
                     [&] { return node.settle_source(entry, Node::Undone::kAll).status(); })
        .IgnoreError();
    hold->release();
    pause->end();
  });
}

absl::StatusOr<api::MigrateResult> SourceMigration::checkpoint(
    const api::CheckpointRequest& request) {
  GW_RETURN_IF_ERROR(check_compress(request.compress()));
  GW_RETURN_IF_ERROR(check(request.name(), "being saved to a file"));
  entry_.set_id(random_id());
  entry_.set_service(request.name());
  entry_.set_side(api::MigrationJournal::LOCAL);
  GW_RETURN_IF_ERROR(node_.journal().write(entry_));
  const auto outgoing = node_.begin_outgoing(request.name());
  const auto ended = absl::MakeCleanup([&] { node_.end_outgoing(request.name()); });
  user_cancelled_ = [outgoing, before = std::move(user_cancelled_)] {
    return outgoing->cancelled || before();
  };
  migration::MoverStart start = describe(migration::ROLE_CHECKPOINT);
  start.set_file(request.file());
  start.set_key_file(request.key_file());
  start.set_leave_running(request.leave_running());
  start.set_with_files(request.with_files());
  start.set_verify(request.verify());
  start.set_compress(request.compress());
  start.set_strategy(request.leave_running() ? migration::STRATEGY_PRECOPY
                                             : migration::STRATEGY_COLD);
  const absl::Status started = start_mover(std::move(start));
  if (!started.ok()) return rolled_back(std::string(message_of(started)), Node::Undone::kNothing);
  const auto finished = follow();
  mover_->kill();
  if (!finished.ok() || finished->outcome() != migration::OUTCOME_SAVED) return conclude(finished);

  api::MigrateResult result;
  result.set_name(request.name());
  result.set_node(node_.config().name);
  result.set_outcome("saved");
  *result.mutable_statistics() = statistics_of(finished->statistics());
  result.mutable_statistics()->set_id(entry_.id());
  result.mutable_statistics()->set_source(node_.config().name);
  result.mutable_statistics()->set_outcome("saved");
  if (!request.leave_running()) {
    // Its state is in the file from now on; the name and the address are free for a restore.
    GW_RETURN_IF_ERROR(node_.remove_service(request.name()));
  }
  GW_RETURN_IF_ERROR(node_.journal().remove(entry_));
  return result;
}

}  // namespace godwit::node
