#include "node/post_copy.h"

#include <fcntl.h>
#include <grpcpp/client_context.h>
#include <openssl/rand.h>

#include <algorithm>
#include <ctime>

#include "api/rpc_status.h"
#include "base/fault_point.h"
#include "base/log.h"
#include "base/status.h"
#include "kernel/syscalls.h"
#include "migration/peer.h"
#include "node/node.h"

namespace godwit::node {
namespace {

constexpr absl::Duration kLook = absl::Milliseconds(100);
constexpr absl::Duration kLookAtRecord = absl::Milliseconds(500);
constexpr absl::Duration kTryAgain = absl::Milliseconds(500);
constexpr absl::Duration kAskTimeout = absl::Seconds(5);
// From the source's answer to its mover's connections: a process has to start.
constexpr absl::Duration kConnectWait = absl::Seconds(5);
// A mover that serves says something five times a second.
constexpr absl::Duration kSilence = absl::Seconds(30);
constexpr size_t kTokenBytes = 32;

}  // namespace

void PostCopy::pause(absl::Duration time) const {
  const Deadline deadline = Deadline::in(time);
  while (!deadline.passed() && !node_.stopping()) {
    const timespec slice{0, 20'000'000};
    ::nanosleep(&slice, nullptr);
  }
}

void PostCopy::fetch(const std::string& service) {
  {
    const std::lock_guard lock(mutex_);
    if (!fetching_.insert(service).second) return;
  }
  node_.tasks().run([this, service] {
    while (!node_.stopping()) {
      const auto over = fetch_step(service);
      if (over.ok() && *over) break;
      if (!over.ok()) {
        log_warning("pages of {}: {}", service, message_of(over.status()));
        note_error(service, std::string(message_of(over.status())));
      }
      pause(over.ok() ? kLook : kTryAgain);
    }
    const std::lock_guard lock(mutex_);
    fetching_.erase(service);
    errors_.erase(service);
  });
}

void PostCopy::fetch_from_file(const std::string& service, std::shared_ptr<MoverProcess> mover) {
  follow_file(service, std::move(mover));
  fetch(service);
}

std::string PostCopy::error_of(const std::string& service) const {
  const std::lock_guard lock(mutex_);
  const auto found = errors_.find(service);
  return found == errors_.end() ? "" : found->second;
}

void PostCopy::note_error(const std::string& service, const std::string& error) {
  const std::lock_guard lock(mutex_);
  if (error.empty())
    errors_.erase(service);
  else
    errors_[service] = error;
}

absl::StatusOr<bool> PostCopy::fetch_step(const std::string& service) {
  const auto info = node_.services().info(service);
  if (!info.ok() && !absl::IsNotFound(info.status())) return info.status();
  const bool ended = !info.ok() || info->state() == capsule::CAPSULE_EXITED;
  if (ended || !info->has_post_copy() || info->post_copy().done()) {
    GW_RETURN_IF_ERROR(forget_source(service));
    if (!ended) log_info("{}: all of its pages are here", service);
    return true;
  }
  if (info->post_copy().connected()) return false;
  auto record = node_.records().service(service);
  if (absl::IsNotFound(record.status())) return true;
  GW_RETURN_IF_ERROR(record.status());
  if (record->record.owner() != node_.config().name || record->record.pages_at().empty())
    return true;
  GW_RETURN_IF_ERROR(annotate(reconnect(record->record),
                              fmt::format("{} pages are at {} still", info->post_copy().missing(),
                                          record->record.pages_at())));
  return false;
}

absl::Status PostCopy::reconnect(const api::ServiceRecord& record) {
  GW_ASSIGN_OR_RETURN(const migration::Listener listener,
                      migration::listen_on(node_.config().listen_host));
  std::string token(kTokenBytes, '\0');
  if (RAND_bytes(reinterpret_cast<unsigned char*>(token.data()), kTokenBytes) != 1)
    return make_error(absl::StatusCode::kInternal, "RAND_bytes failed");
  GW_RETURN_IF_ERROR(ask_for_pages(record, listener.port, token));
  migration::MoverStart start;
  node_.set_proof(start, token, record.pages_at());
  start.set_stall_timeout_ns(record.last_migration().stall_timeout_ns());
  GW_ASSIGN_OR_RETURN(migration::Terms terms, migration::terms_of(start));
  migration::Acceptor acceptor(listener.fd.get(), std::move(terms));
  const Deadline deadline = Deadline::in(kConnectWait);
  migration::ChannelPtr faults, push;
  while (!faults || !push) {
    auto accepted = acceptor.next(deadline);
    // A mover that cannot begin has said why by then.
    const std::string why = error_of(record.name());
    if (!accepted.ok() && record.has_pages_file() && !why.empty())
      return make_error(accepted.status().code(), "{}", why);
    GW_RETURN_IF_ERROR(accepted.status());
    if (accepted->purpose == migration::Purpose::kFaults) faults = std::move(accepted->channel);
    if (accepted->purpose == migration::Purpose::kPush) push = std::move(accepted->channel);
  }
  GW_ASSIGN_OR_RETURN(capsule::Capsule capsule, node_.services().open(record.name()));
  note_error(record.name(), "");
  return capsule.connect_pages(std::move(faults), std::move(push),
                               migration::stall_timeout_of(start));
}

// Whoever has them connects to that port.
absl::Status PostCopy::ask_for_pages(const api::ServiceRecord& record, uint16_t port,
                                     const std::string& token) {
  if (record.has_pages_file()) {
    migration::MoverStart start;
    start.set_peer_host(node_.config().listen_host);
    start.set_peer_port(port);
    node_.set_proof(start, token, node_.config().name);
    return serve_file(record, std::move(start));
  }
  GW_ASSIGN_OR_RETURN(const std::shared_ptr<Peer> peer, node_.peers().find(record.pages_at()));
  api::ServePagesRequest request;
  request.set_service(record.name());
  request.set_migration_id(record.last_migration().id());
  request.set_host(node_.config().listen_host);
  request.set_port(port);
  request.set_token(token);
  request.set_data_tls(node_.data_tls());
  request.set_stall_timeout_ns(record.last_migration().stall_timeout_ns());
  grpc::ClientContext context;
  set_timeout(context, kAskTimeout);
  api::Empty reply;
  return api::from_grpc(peer->peer->ServePages(&context, request, &reply));
}

absl::Status PostCopy::serve_file(const api::ServiceRecord& record, migration::MoverStart start) {
  const api::PagesFile& file = record.pages_file();
  // A mover would say so too, but only after it was waited for.
  GW_RETURN_IF_ERROR(kernel::open(file.path(), O_RDONLY | O_CLOEXEC).status());
  start.set_role(migration::ROLE_SERVE_PAGES);
  start.set_service(node_.services().capsule_of(record.name()));
  start.set_node(node_.config().local());
  start.set_state_dir(node_.config().state_dir);
  start.set_file(file.path());
  start.set_file_identity(file.identity());
  start.set_bandwidth_bytes_per_s(file.bytes_per_s());
  GW_ASSIGN_OR_RETURN(std::unique_ptr<MoverProcess> mover,
                      node_.spare_mover().take_or_start(start));
  follow_file(record.name(), std::move(mover));
  return absl::OkStatus();
}

// In the background until it has ended. Of two for one service the earlier one has lost its
// connection.
void PostCopy::follow_file(const std::string& service, std::shared_ptr<MoverProcess> mover) {
  std::shared_ptr<MoverProcess> before;
  {
    const std::lock_guard lock(mutex_);
    before = std::exchange(from_files_[service], mover);
  }
  if (before != nullptr) before->interrupt();
  node_.tasks().run([this, service, mover = std::move(mover)] {
    absl::StatusOr<migration::MoverToDaemon> message = absl::UnknownError("");
    do {
      message = mover->receive(Deadline::in(kSilence));
      if (message.ok() && message->has_progress())
        note_error(service, message->progress().reason());
    } while (message.ok() && !message->has_finished() && !node_.stopping());
    if (message.ok() && message->has_finished() && !message->finished().error().empty())
      note_error(service, message->finished().error());
    mover->kill();
    const std::lock_guard lock(mutex_);
    const auto found = from_files_.find(service);
    if (found != from_files_.end() && found->second == mover) from_files_.erase(found);
  });
}

absl::Status PostCopy::forget_source(const std::string& service) {
  FAULT_POINT("node.pages_complete");
  bool nothing = false;
  const absl::Status done =
      node_.records()
          .update(service,
                  [&](api::ServiceRecord& record) -> absl::Status {
                    nothing = record.pages_at().empty() || record.owner() != node_.config().name;
                    if (nothing) return absl::CancelledError("nothing");
                    record.clear_pages_at();
                    record.clear_pages_file();
                    record.set_generation(record.generation() + 1);
                    return absl::OkStatus();
                  })
          .status();
  return nothing || absl::IsNotFound(done) ? absl::OkStatus() : done;
}

absl::StatusOr<api::MigrateResult> PostCopy::resume(const std::string& service, bool source_lost,
                                                    const OnProgress& told,
                                                    const std::function<bool()>& cancelled) {
  GW_ASSIGN_OR_RETURN(const VersionedService current, node_.records().service(service));
  const std::string source = current.record.has_pages_file() ? current.record.pages_file().path()
                                                             : current.record.pages_at();
  if (source.empty())
    return make_error(absl::StatusCode::kFailedPrecondition, "no pages of {} are missing", service);
  GW_ASSIGN_OR_RETURN(capsule::Capsule capsule, node_.services().open(service));
  if (source_lost) {
    log_warning("{}: {} counts as lost, and what it had of the memory", service, source);
    GW_RETURN_IF_ERROR(capsule.lose_source());
  }
  fetch(service);
  api::MigrateResult result;
  result.set_name(service);
  result.set_node(node_.config().name);
  for (;;) {
    GW_ASSIGN_OR_RETURN(const capsule::CapsuleInfo info, capsule.info());
    const capsule::PostCopy& state = info.post_copy();
    if (state.done() || info.state() == capsule::CAPSULE_EXITED) {
      if (state.poisoned() > 0)
        result.set_error(fmt::format("{} pages are lost with {}: a touch of one ends in SIGBUS",
                                     state.poisoned(), source));
      break;
    }
    if (cancelled() || node_.stopping())
      return make_error(absl::StatusCode::kCancelled,
                        "{} pages of {} are at {} still; it goes on by itself", state.missing(),
                        service, source);
    api::MigrateProgress progress;
    progress.set_phase(state.connected() ? "post-copy" : "disconnected");
    progress.set_pages_left(state.missing());
    progress.set_reason(error_of(service));
    told(progress);
    pause(kLook);
  }
  GW_RETURN_IF_ERROR(forget_source(service));
  result.set_outcome("moved");
  *result.mutable_statistics() = current.record.last_migration();
  return result;
}

absl::StatusOr<bool> PostCopy::is_needed(const api::MigrationJournal& entry) const {
  const auto current = node_.records().service(entry.service());
  if (absl::IsNotFound(current.status())) return false;
  GW_RETURN_IF_ERROR(current.status());
  const api::ServiceRecord& record = current->record;
  return !record.has_pages_file() && record.pages_at() == node_.config().name &&
         record.last_migration().id() == entry.id();
}

void PostCopy::keep(const api::MigrationJournal& entry) {
  {
    const std::lock_guard lock(mutex_);
    if (!kept_.try_emplace(entry.id(), Kept{entry, nullptr}).second) return;
  }
  log_info("migration {}: pages of {} that {} lacks are kept here", entry.id(), entry.service(),
           entry.peer());
  node_.tasks().run([this, id = entry.id()] { keep_until_not_needed(id); });
}

void PostCopy::keep_until_not_needed(const std::string& migration) {
  api::MigrationJournal entry;
  {
    const std::lock_guard lock(mutex_);
    entry = kept_.at(migration).entry;
  }
  while (!node_.stopping()) {
    pause(kLookAtRecord);
    const auto needed = is_needed(entry);
    if (!needed.ok() || *needed) continue;
    std::shared_ptr<MoverProcess> mover;
    {
      const std::lock_guard lock(mutex_);
      mover = std::move(kept_.at(migration).mover);
    }
    if (mover != nullptr) mover->kill();
    entry.set_pages_given(true);
    entry.clear_mover_pid();
    node_
        .keep_trying(fmt::format("taking {} down after migration {}", entry.service(), entry.id()),
                     [&] { return node_.settle_source(entry, Node::Undone::kAll).status(); })
        .IgnoreError();
    const std::lock_guard lock(mutex_);
    kept_.erase(migration);
    return;
  }
}

absl::Status PostCopy::wait_until_gone(const std::string& service, Deadline deadline) {
  const auto kept = [&] {
    const std::lock_guard lock(mutex_);
    return std::any_of(kept_.begin(), kept_.end(),
                       [&](const auto& each) { return each.second.entry.service() == service; });
  };
  while (kept()) {
    if (deadline.passed() || node_.stopping())
      return make_error(absl::StatusCode::kFailedPrecondition,
                        "{} still keeps a copy of {} whose pages are needed elsewhere",
                        node_.config().name, service);
    pause(kLook);
  }
  return absl::OkStatus();
}

absl::Status PostCopy::serve(const api::ServePagesRequest& request, const std::string& peer) {
  GW_ASSIGN_OR_RETURN(const VersionedService current, node_.records().service(request.service()));
  const api::ServiceRecord& record = current.record;
  if (record.pages_at() != node_.config().name ||
      record.last_migration().id() != request.migration_id())
    return make_error(absl::StatusCode::kFailedPrecondition,
                      "the store does not say that pages of {} are on {}", request.service(),
                      node_.config().name);
  if (record.owner() != peer)
    return make_error(absl::StatusCode::kPermissionDenied, "pages of {} are for {}, not for {}",
                      request.service(), record.owner(), peer);
  const auto differs =
      judge_data_tls(node_.config().name, node_.config().data_tls, peer, request.data_tls());
  if (differs)
    return make_error(absl::StatusCode::kFailedPrecondition, "{}: {}; {}", differs->object(),
                      differs->reason(), differs->way_out());
  std::shared_ptr<MoverProcess> before;
  api::MigrationJournal entry;
  {
    const std::lock_guard lock(mutex_);
    const auto kept = kept_.find(request.migration_id());
    if (kept == kept_.end())
      return make_error(absl::StatusCode::kUnavailable,
                        "the mover of {} has not noticed yet that its connection is gone",
                        request.service());
    before = std::exchange(kept->second.mover, nullptr);
    entry = kept->second.entry;
  }
  if (before != nullptr) before->kill();
  migration::MoverStart start;
  start.set_role(migration::ROLE_SERVE_PAGES);
  start.set_migration_id(request.migration_id());
  start.set_service(node_.services().capsule_of(request.service()));
  start.set_node(node_.config().local());
  start.set_state_dir(node_.config().state_dir);
  start.set_peer_host(request.host());
  start.set_peer_port(request.port());
  node_.set_proof(start, request.token(), peer);
  node_.set_bandwidth(start, entry.bytes_per_s());
  start.set_stall_timeout_ns(request.stall_timeout_ns());
  GW_ASSIGN_OR_RETURN(std::unique_ptr<MoverProcess> started,
                      node_.spare_mover().take_or_start(start));
  const std::shared_ptr<MoverProcess> mover = std::move(started);
  entry.set_mover_pid(mover->pid());
  entry.set_mover_start_ticks(mover->start_ticks());
  entry.clear_mover_hold_fd();
  GW_RETURN_IF_ERROR(node_.journal().write(entry));
  {
    const std::lock_guard lock(mutex_);
    const auto kept = kept_.find(request.migration_id());
    if (kept == kept_.end() || kept->second.mover != nullptr)
      return make_error(absl::StatusCode::kUnavailable, "asked twice at once");
    kept->second.mover = mover;
    kept->second.entry = entry;
  }
  node_.tasks().run([this, id = request.migration_id(), mover] { follow(id, mover); });
  return absl::OkStatus();
}

void PostCopy::follow(const std::string& migration, const std::shared_ptr<MoverProcess>& mover) {
  absl::StatusOr<migration::MoverToDaemon> message = absl::UnknownError("");
  do {
    message = mover->receive(Deadline::in(kSilence));
    // It says something five times a second; a daemon's end is not to wait for gigabytes.
  } while (message.ok() && !message->has_finished() && !node_.stopping());
  if (message.ok() && !message->finished().error().empty())
    log_warning("migration {}: {}", migration, message->finished().error());
  mover->kill();
  // Whether it is needed yet the record says.
  const std::lock_guard lock(mutex_);
  const auto kept = kept_.find(migration);
  if (kept != kept_.end() && kept->second.mover == mover) kept->second.mover = nullptr;
}

}  // namespace godwit::node
