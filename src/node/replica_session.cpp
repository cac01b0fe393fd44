#include "node/replica_session.h"

#include <fcntl.h>
#include <openssl/rand.h>
#include <poll.h>

#include "absl/cleanup/cleanup.h"
#include "base/fault_point.h"
#include "base/log.h"
#include "base/status.h"
#include "capsule/root_fs.h"
#include "network/hold.h"
#include "node/clone.h"
#include "node/node.h"
#include "stream/stream.h"

namespace godwit::node {
namespace {

// A move back right after a move: the first one's source is still being taken down.
constexpr absl::Duration kHoldWait = absl::Seconds(20);
constexpr absl::Duration kListenWait = absl::Seconds(20);
// Nobody waits for a mover longer than for its own deadlines, which are shorter.
constexpr absl::Duration kForever = absl::Hours(24);
constexpr size_t kTokenBytes = 32;
// The source's daemon asks within milliseconds, unless it is out of reach or dead.
constexpr absl::Duration kAskedWithin = absl::Seconds(1);

// Whether the owner was changed is not known.
absl::Status unsure_because(const absl::Status& status) {
  return make_error(absl::StatusCode::kUnknown, "{}", message_of(status));
}

UniqueFd copy_of(const UniqueFd& fd) {
  return UniqueFd(fd ? ::fcntl(fd.get(), F_DUPFD_CLOEXEC, 0) : -1);
}

absl::Status fault_after_commit() {
  FAULT_POINT("node.after_commit");
  return absl::OkStatus();
}

}  // namespace

absl::Status check_destination(const Node& node, const capsule::CapsuleSpec& spec) {
  const absl::Status root = capsule::check_root(spec);
  if (!root.ok()) return annotate(root, fmt::format("on node {}", node.config().name));
  return absl::OkStatus();
}

absl::StatusOr<std::shared_ptr<ReplicaSession>> ReplicaSession::begin(
    Node& node, const api::PrepareReplicaRequest& request) {
  std::shared_ptr<ReplicaSession> session(new ReplicaSession(node, request));
  // In place the source has the service.
  capsule::CapsuleSpec spec;
  const bool in_place = spec.ParseFromString(request.spec()) && spec.name() != request.service();
  GW_ASSIGN_OR_RETURN(session->hold_,
                      node.busy().hold(in_place ? spec.name() : request.service(),
                                       fmt::format("being moved here from {}", request.source()),
                                       Deadline::in(kHoldWait)));
  GW_RETURN_IF_ERROR(node.post_copy().wait_until_gone(request.service(), Deadline::in(kHoldWait)));
  session->pause_ = SpareMover::Pause(node.spare_mover());
  GW_RETURN_IF_ERROR(session->prepare());
  node.add_session(session);
  node.tasks().run([session] { session->run(); });
  return session;
}

absl::Status ReplicaSession::prepare() {
  capsule::CapsuleSpec spec;
  if (!spec.ParseFromString(request_.spec()) ||
      capsule::service_of(spec.name()) != request_.service())
    return make_error(absl::StatusCode::kInvalidArgument, "the service's spec does not parse");
  const bool clone = !request_.clone_of().empty();
  GW_RETURN_IF_ERROR(check_destination(node_, spec));
  entry_.set_id(request_.migration_id());
  entry_.set_side(api::MigrationJournal::DESTINATION);
  entry_.set_service(request_.service());
  entry_.set_peer(request_.source());
  entry_.set_main_image_pid(request_.main_image_pid());
  entry_.set_clone(clone);
  if (spec.name() != request_.service()) entry_.set_capsule(spec.name());
  if (!clone) GW_RETURN_IF_ERROR(expect_record());
  GW_RETURN_IF_ERROR(node_.journal().write(entry_));
  auto undo = absl::MakeCleanup([this, clone] {
    if (mover_ != nullptr) mover_->kill();
    capsule_.reset();
    const absl::Status gone = clone ? remove_clone(node_, request_.service())
                                    : node_.services().destroy_capsule(capsule_name());
    if (!gone.ok())
      log_error("taking down the replica of {}: {}", request_.service(), message_of(gone));
    else
      node_.journal().remove(entry_).IgnoreError();
  });
  if (clone) GW_RETURN_IF_ERROR(claim_record(spec));
  swaps_ = node_.open_swaps();
  GW_ASSIGN_OR_RETURN(capsule_, node_.services().create(spec, true));
  GW_RETURN_IF_ERROR(start_mover());
  // From the commit on the replica must outlive this daemon. One that dies before has a journal,
  // by which the next one removes it.
  GW_RETURN_IF_ERROR(capsule_->keep());
  std::move(undo).Cancel();
  return absl::OkStatus();
}

// The service's record, which says that it is on its way here.
absl::Status ReplicaSession::expect_record() {
  GW_ASSIGN_OR_RETURN(VersionedService current, node_.records().service(request_.service()));
  api::ServiceRecord& record = current.record;
  if (current.revision != request_.record_revision() ||
      record.migration_id() != request_.migration_id() ||
      record.destination() != node_.config().name)
    return make_error(absl::StatusCode::kAborted,
                      "the store does not say that {} is on its way here as migration {}",
                      request_.service(), request_.migration_id());
  entry_.set_generation(record.generation());
  if (!entry_.capsule().empty() && record.owner() != node_.config().name)
    return make_error(absl::StatusCode::kAborted, "{} is not on {}", request_.service(),
                      node_.config().name);
  const std::string source = record.owner();
  if (request_.source() != source)
    return make_error(absl::StatusCode::kPermissionDenied, "{} is {}'s to give away, not {}'s",
                      request_.service(), source, request_.source());
  record.set_owner(node_.config().name);
  record.set_generation(record.generation() + 1);
  record.set_spec(request_.spec());  // with the offsets of its clocks on this machine
  record.clear_migration_id();
  record.clear_destination();
  describe_commit(record, source, "moved");
  record.set_pages_at(source);
  lacking_record_ = record.SerializeAsString();
  return absl::OkStatus();
}

// A clone's record, which is made for it; and its spec in the place of the original's.
absl::Status ReplicaSession::claim_record(capsule::CapsuleSpec& spec) {
  GW_ASSIGN_OR_RETURN(CloneClaim claim, claim_clone(node_, request_, spec));
  spec = claim.spec;
  address_changes_ = std::move(claim.changes);
  request_.set_record_revision(claim.record.revision);
  api::ServiceRecord& record = claim.record.record;
  record.set_generation(record.generation() + 1);
  record.set_started_unix_ns(clock_ns(CLOCK_REALTIME));
  describe_commit(record, request_.source(), "cloned");
  return absl::OkStatus();
}

void ReplicaSession::describe_commit(api::ServiceRecord& record, const std::string& source,
                                     const char* outcome) {
  record.set_state(api::SERVICE_RUNNING);
  api::MigrationStatistics* last = record.mutable_last_migration();
  last->Clear();
  last->set_id(request_.migration_id());
  last->set_source(source);
  last->set_destination(node_.config().name);
  last->set_outcome(outcome);
  last->set_stall_timeout_ns(request_.stall_timeout_ns());
  committed_record_ = record.SerializeAsString();
}

absl::Status ReplicaSession::start_mover() {
  std::string token(kTokenBytes, '\0');
  if (RAND_bytes(reinterpret_cast<unsigned char*>(token.data()), kTokenBytes) != 1)
    return make_error(absl::StatusCode::kInternal, "RAND_bytes failed");
  migration::MoverStart start;
  start.set_role(migration::ROLE_DESTINATION);
  start.set_migration_id(request_.migration_id());
  start.set_service(capsule_name());
  start.set_node(node_.config().local());
  start.set_state_dir(node_.config().state_dir);
  start.set_listen_host(node_.config().listen_host);
  node_.set_proof(start, token, request_.source());
  start.set_verbose(request_.verbose());
  start.set_clone(!request_.clone_of().empty());
  for (const auto& change : address_changes_) *start.add_address_changes() = change;
  start.set_stall_timeout_ns(request_.stall_timeout_ns());
  GW_ASSIGN_OR_RETURN(mover_, node_.spare_mover().take_or_start(start));
  entry_.set_mover_pid(mover_->pid());
  entry_.set_mover_start_ticks(mover_->start_ticks());
  GW_RETURN_IF_ERROR(node_.journal().write(entry_));
  auto first = mover_->receive(Deadline::in(kListenWait));
  if (first.ok() && first->message_case() == migration::MoverToDaemon::kHoldFd) {
    keep_hold(first->hold_fd());
    entry_.set_mover_hold_fd(static_cast<int32_t>(first->hold_fd()));
    GW_RETURN_IF_ERROR(node_.journal().write(entry_));
    first = mover_->receive(Deadline::in(kListenWait));
  }
  if (!first.ok()) return annotate(first.status(), "the destination's mover");
  if (first->has_finished())
    return make_error(absl::StatusCode::kFailedPrecondition, "{}", first->finished().error());
  if (!first->has_listening())
    return make_error(absl::StatusCode::kInternal, "the destination's mover does not listen");
  reply_.set_host(node_.config().listen_host);
  reply_.set_port(first->listening());
  reply_.set_token(token);
  reply_.set_stream_version(stream::kReadsPrograms);
  return absl::OkStatus();
}

void ReplicaSession::run() {
  listen();
  // From here on nothing of the mover runs: what it left is settled by what the store says.
  mover_->kill();
  hold_.ends_soon();
  bool committed = false, well = false;
  {
    std::lock_guard lock(mutex_);
    committed = committed_;
    well = finished_well_;
  }
  absl::Status settled = absl::OkStatus();
  if (committed && well) {
    settled = node_.journal().remove(entry_);
    node_.supervise(request_.service());
    if (pages_missing_) node_.post_copy().fetch(request_.service());
  } else {
    if (!committed && !undecided_) keep_until_asked();
    settled = node_.keep_trying(
        fmt::format("settling migration {} of {}", entry_.id(), request_.service()),
        [&] { return node_.settle_destination(entry_, copy_of(held_)); });
  }
  if (!settled.ok())
    log_error("settling migration {} of {}: {}", entry_.id(), request_.service(),
              message_of(settled));
  node_.drop_session(migration_id());
  hold_.release();
  pause_.end();
  {
    std::lock_guard lock(mutex_);
    has_ended_ = true;
  }
  ended_.notify_all();
}

void ReplicaSession::listen() {
  while (true) {
    const auto message = mover_->receive(Deadline::in(kForever));
    if (!message.ok()) {
      if (!absl::IsCancelled(message.status()))
        log_warning("migration {} of {}: {}", migration_id(), request_.service(),
                    message_of(message.status()));
      return;
    }
    // A round has begun, maybe the last.
    if (message->has_progress()) warm_up();
    if (message->commit_request()) {
      migration::DaemonToMover answer;
      pages_missing_ = message->pages_missing() > 0;
      *answer.mutable_commit_answer() = commit(pages_missing_);
      if (absl::Status sent = mover_->send(answer); !sent.ok())
        log_warning("answering the mover of {}: {}", request_.service(), message_of(sent));
    }
    if (message->has_finished()) {
      std::lock_guard lock(mutex_);
      finished_well_ = message->finished().outcome() == migration::OUTCOME_MOVED;
      if (!finished_well_ && !message->finished().error().empty())
        log_warning("migration {} of {}: {}", migration_id(), request_.service(),
                    message->finished().error());
      return;
    }
  }
}

migration::CommitAnswer ReplicaSession::commit(bool pages_missing) {
  migration::CommitAnswer answer;
  {
    std::lock_guard lock(mutex_);
    if (aborted_) {
      answer.set_error("the source took the migration back");
      return answer;
    }
  }
  const absl::Status done = swap_owner(pages_missing ? lacking_record_ : committed_record_);
  if (!done.ok()) {
    undecided_ = absl::IsUnknown(done);
    answer.set_undecided(undecided_);
    answer.set_error(std::string(message_of(done)));
    return answer;
  }
  if (!entry_.capsule().empty()) node_.replace_capsule(request_.service(), entry_.capsule());
  hold_.ends_soon();
  std::lock_guard lock(mutex_);
  committed_ = true;
  answer.set_committed(true);
  return answer;
}

// The way that the commit will take, walked once with a revision that nothing has: threads, caches
// and statements on it have slept since the migration began, which costs it 0.5 ms.
void ReplicaSession::warm_up() {
  constexpr store::Revision kNone = -1;
  const std::string key = service_key(request_.service());
  const auto refused = swaps_ ? swaps_->compare_and_swap(key, kNone, "")
                              : node_.records().store()->compare_and_swap(key, kNone, "");
  if (!absl::IsAborted(refused.status())) swaps_.reset();
}

absl::Status ReplicaSession::swap_owner(const std::string& record) {
  FAULT_POINT("node.before_commit");
  const std::string key = service_key(request_.service());
  const auto swap = [&]() -> absl::Status {
    const store::Revision expected = request_.record_revision();
    const auto revision = swaps_ ? swaps_->compare_and_swap(key, expected, record)
                                 : node_.records().store()->compare_and_swap(key, expected, record);
    if (!revision.ok()) swaps_.reset();  // asked again by a call, which connects anew
    return revision.status();
  };
  const auto is_ours = [&]() -> absl::StatusOr<bool> {
    const auto now = node_.records().service(request_.service());
    if (absl::IsNotFound(now.status())) return false;
    GW_RETURN_IF_ERROR(now.status());
    return now->record.owner() == node_.config().name &&
           now->record.last_migration().id() == migration_id();
  };
  GW_RETURN_IF_ERROR(commit_owner(swap, is_ours, node_.ask_again()));
  const absl::Status fault = fault_after_commit();
  return fault.ok() ? fault : unsure_because(fault);
}

void ReplicaSession::keep_hold(uint32_t fd) {
  auto copy = mover_->copy_fd(fd);
  if (copy.ok())
    held_ = *std::move(copy);
  else
    log_warning("copying the hold of {}: {}", request_.service(), message_of(copy.status()));
}

// Frames went here since the replica was announced; the source's daemon asks for them as soon as
// the service runs there again. A source that is not there any more does not.
void ReplicaSession::keep_until_asked() {
  const absl::Status silent = node_.services().silence(capsule_name());
  if (!silent.ok()) log_warning("{}: {}", request_.service(), message_of(silent));
  pollfd waiting{held_.get(), POLLIN, 0};
  if (!held_ || ::poll(&waiting, 1, 0) <= 0) return;
  std::unique_lock lock(mutex_);
  ended_.wait_for(lock, absl::ToChronoMilliseconds(kAskedWithin),
                  [this] { return asked_back_ || node_.stopping(); });
}

absl::Status ReplicaSession::give_back(const std::function<void(const network::Frames&)>& give) {
  {
    std::lock_guard lock(mutex_);
    if (committed_)
      return make_error(absl::StatusCode::kFailedPrecondition, "{} runs on {} already",
                        request_.service(), node_.config().name);
    if (!aborted_) {
      aborted_ = true;
      mover_->interrupt();
    }
  }
  const auto given = absl::MakeCleanup([this] {
    std::lock_guard lock(mutex_);
    asked_back_ = true;
    ended_.notify_all();
  });
  if (!held_) return absl::OkStatus();
  // Once more for those that were on their way when the source announced itself.
  for (const int wait_ms : {0, 2}) {
    pollfd waiting{held_.get(), POLLIN, 0};
    if (::poll(&waiting, 1, wait_ms) <= 0) continue;
    network::Frames frames;
    GW_RETURN_IF_ERROR(network::drain_hold(held_.get(), frames).status());
    give(frames);
  }
  return absl::OkStatus();
}

absl::Status ReplicaSession::abort() {
  std::unique_lock lock(mutex_);
  if (!aborted_) {
    aborted_ = true;
    mover_->interrupt();
  }
  asked_back_ = true;
  ended_.notify_all();
  ended_.wait(lock, [this] { return has_ended_; });
  if (committed_)
    return make_error(absl::StatusCode::kFailedPrecondition, "{} runs on {} already",
                      request_.service(), node_.config().name);
  return absl::OkStatus();
}

}  // namespace godwit::node
