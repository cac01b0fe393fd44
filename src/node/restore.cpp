#include "node/restore.h"

#include <fcntl.h>

#include <optional>

#include "absl/cleanup/cleanup.h"
#include "base/log.h"
#include "base/status.h"
#include "capsule/capsule.h"
#include "kernel/syscalls.h"
#include "node/mover_process.h"
#include "node/new_service.h"
#include "node/node.h"
#include "node/replica_session.h"
#include "stream/sealed.h"
#include "stream/stream.h"

namespace godwit::node {
namespace {

constexpr absl::Duration kSlice = absl::Milliseconds(100);
constexpr absl::Duration kSilence = absl::Seconds(30);

using Commit = std::function<absl::Status(const migration::MoverToDaemon& request)>;

// What the mover says until it has finished, or only serves pages (then the result has no outcome);
// commits when it asks.
absl::StatusOr<migration::Finished> follow(MoverProcess& mover,
                                           const SourceMigration::OnProgress& on_progress,
                                           const SourceMigration::Cancelled& cancelled,
                                           const Commit& commit) {
  bool asked_to_cancel = false;
  Deadline silence = Deadline::in(kSilence);
  while (true) {
    if (!asked_to_cancel && cancelled()) {
      asked_to_cancel = true;
      migration::DaemonToMover message;
      message.set_cancel(true);
      mover.send(message).IgnoreError();  // one that has ended is noticed below
    }
    auto message = mover.receive(Deadline::in(kSlice));
    if (absl::IsDeadlineExceeded(message.status()) && !silence.passed()) continue;
    if (!message.ok()) return message.status();
    silence = Deadline::in(kSilence);
    if (message->commit_request()) {
      migration::DaemonToMover answer;
      const absl::Status committed = commit(*message);
      answer.mutable_commit_answer()->set_committed(committed.ok());
      answer.mutable_commit_answer()->set_error(std::string(message_of(committed)));
      GW_RETURN_IF_ERROR(mover.send(answer));
    }
    if (message->has_progress()) {
      if (message->progress().phase() == "post-copy") return migration::Finished();
      api::MigrateProgress progress;
      progress.set_phase(message->progress().phase());
      progress.set_pages_left(message->progress().pages_left());
      progress.set_pages_total(message->progress().pages_total());
      progress.set_bytes_per_s(message->progress().bytes_per_s());
      on_progress(progress);
    }
    if (message->has_finished()) return message->finished();
  }
}

absl::Status claim(Node& node, const capsule::CapsuleSpec& spec, VersionedService& versioned) {
  api::ServiceRecord& record = versioned.record;
  record.set_spec(spec.SerializeAsString());
  if (spec.addresses_size() > 0) record.set_address(spec.addresses(0).ip());
  return claim_new_name(node, spec.name(), versioned);
}

}  // namespace

capsule::CapsuleSpec portable_spec(capsule::CapsuleSpec spec) {
  const int64_t wall = clock_ns(CLOCK_REALTIME);
  spec.set_monotonic_offset_ns(spec.monotonic_offset_ns() + clock_ns(CLOCK_MONOTONIC) - wall);
  spec.set_boottime_offset_ns(spec.boottime_offset_ns() + clock_ns(CLOCK_BOOTTIME) - wall);
  return spec;
}

static absl::Status localise(capsule::CapsuleSpec& spec) {
  // The file may be anybody's: sums can overflow. The kernel checks what is left (timens, 5.6).
  const int64_t wall = clock_ns(CLOCK_REALTIME);
  int64_t monotonic = 0;
  int64_t boottime = 0;
  if (__builtin_add_overflow(spec.monotonic_offset_ns(), wall - clock_ns(CLOCK_MONOTONIC),
                             &monotonic) ||
      __builtin_add_overflow(spec.boottime_offset_ns(), wall - clock_ns(CLOCK_BOOTTIME), &boottime))
    return absl::DataLossError("the capsule's clocks in the file are out of range");
  spec.set_monotonic_offset_ns(monotonic);
  spec.set_boottime_offset_ns(boottime);
  return absl::OkStatus();
}

absl::StatusOr<capsule::CapsuleSpec> read_capsule_spec(const std::string& file,
                                                       const std::string& key_file) {
  GW_ASSIGN_OR_RETURN(const UniqueFd fd, kernel::open(file, O_RDONLY | O_CLOEXEC));
  auto opened = stream::image_feed(fd.get(), key_file);
  if (!opened.ok()) return annotate(opened.status(), file);
  const auto feed = *std::move(opened);
  stream::Reader reader(*feed);
  while (true) {
    auto frame = reader.next();
    if (!frame.ok()) return annotate(frame.status(), file);
    if (const auto* section = std::get_if<stream::Section>(&*frame);
        section != nullptr && section->key.kind == kCapsuleSection) {
      capsule::CapsuleSpec spec;
      if (!spec.ParseFromString(section->state))
        return make_error(absl::StatusCode::kDataLoss, "{}: section {} does not parse", file,
                          kCapsuleSection);
      return spec;
    }
    if (std::get_if<stream::EpochEnd>(&*frame) != nullptr)
      return make_error(absl::StatusCode::kDataLoss, "{} does not say what its capsule is", file);
  }
}

absl::StatusOr<api::MigrateResult> restore(Node& node, const api::RestoreRequest& request,
                                           const SourceMigration::OnProgress& on_progress,
                                           const SourceMigration::Cancelled& cancelled) {
  if (request.lazy() && !request.key_file().empty())
    return make_error(absl::StatusCode::kInvalidArgument,
                      "{}: an encrypted file is read in order; restore it without --lazy",
                      request.file());
  GW_ASSIGN_OR_RETURN(capsule::CapsuleSpec spec,
                      read_capsule_spec(request.file(), request.key_file()));
  GW_RETURN_IF_ERROR(localise(spec));
  if (!request.name().empty()) spec.set_name(request.name());
  GW_RETURN_IF_ERROR(capsule::check_name(spec.name()));
  GW_RETURN_IF_ERROR(check_destination(node, spec));
  GW_ASSIGN_OR_RETURN(Busy::Hold hold,
                      hold_new_name(node, spec.name(), "being restored from a file"));
  VersionedService versioned;
  GW_RETURN_IF_ERROR(claim(node, spec, versioned));
  const int64_t begin = monotonic_ns();
  std::optional<capsule::Capsule> capsule;
  std::shared_ptr<MoverProcess> mover;
  auto undo = absl::MakeCleanup([&] {
    mover.reset();
    capsule.reset();
    const absl::Status gone = node.remove_service(spec.name());
    if (!gone.ok()) log_error("undoing the restore of {}: {}", spec.name(), message_of(gone));
  });
  if (spec.addresses_size() > 0)
    GW_RETURN_IF_ERROR(node.records().claim_address(spec.addresses(0).ip(), spec.name()));
  GW_ASSIGN_OR_RETURN(capsule, node.services().create(spec, true));
  bool committed = false;
  uint64_t pages_missing = 0;
  const auto commit = [&](const migration::MoverToDaemon& asked) -> absl::Status {
    if (committed) return absl::OkStatus();
    pages_missing = asked.pages_missing();
    if (pages_missing > 0) {
      versioned.record.set_pages_at(node.config().name);
      api::PagesFile& file = *versioned.record.mutable_pages_file();
      file.set_path(request.file());
      file.set_identity(asked.file_identity());
      file.set_bytes_per_s(request.bandwidth_bytes_per_s());
    }
    versioned.record.set_state(api::SERVICE_RUNNING);
    versioned.record.set_started_unix_ns(clock_ns(CLOCK_REALTIME));
    GW_RETURN_IF_ERROR(node.records().put(versioned));
    committed = true;
    return absl::OkStatus();
  };
  migration::MoverStart start;
  start.set_role(migration::ROLE_RESTORE);
  start.set_service(spec.name());
  start.set_node(node.config().local());
  start.set_state_dir(node.config().state_dir);
  start.set_file(request.file());
  start.set_key_file(request.key_file());
  start.set_lazy(request.lazy());
  start.set_bandwidth_bytes_per_s(request.bandwidth_bytes_per_s());
  const SpareMover::Pause pause(node.spare_mover());
  GW_ASSIGN_OR_RETURN(std::unique_ptr<MoverProcess> started,
                      node.spare_mover().take_or_start(start));
  mover = std::move(started);
  GW_ASSIGN_OR_RETURN(const migration::Finished finished,
                      follow(*mover, on_progress, cancelled, commit));
  api::MigrateResult result;
  result.set_name(spec.name());
  *result.mutable_statistics() = statistics_of(finished.statistics());
  const bool lacks_pages = pages_missing > 0 && committed &&
                           (finished.outcome() == migration::OUTCOME_INVALID ||
                            finished.outcome() == migration::OUTCOME_PAGES_HERE);
  if (finished.outcome() != migration::OUTCOME_MOVED && !lacks_pages) {
    result.set_outcome(finished.outcome() == migration::OUTCOME_REFUSED ? "refused" : "failed");
    result.set_error(finished.error());
    for (const migration::Reason& each : finished.reasons()) {
      api::Refusal* refusal = result.add_refusals();
      refusal->set_code(each.code());
      refusal->set_object(each.object());
      refusal->set_reason(each.reason());
      refusal->set_way_out(each.way_out());
    }
    return result;
  }
  GW_RETURN_IF_ERROR(commit({}));
  // The mover has done so, where it could; a replica would end with our connection to it.
  GW_RETURN_IF_ERROR(capsule->adopt());
  std::move(undo).Cancel();
  node.supervise(spec.name());
  result.set_node(node.config().name);
  result.set_outcome("restored");
  if (!lacks_pages) return result;
  // It runs; from here on it is a service like any other whose memory is on its way.
  hold.release();
  const int64_t runs = monotonic_ns();
  node.post_copy().fetch_from_file(spec.name(), std::move(mover));
  auto followed = node.post_copy().resume(spec.name(), false, on_progress, cancelled);
  if (followed.ok())
    result.set_error(followed->error());
  else if (!absl::IsFailedPrecondition(followed.status()))  // all of them have come already
    result.set_error(std::string(message_of(followed.status())));
  api::MigrationStatistics& statistics = *result.mutable_statistics();
  statistics.set_strategy("restore");
  statistics.set_total_ns(monotonic_ns() - begin);
  statistics.set_post_copy_ns(monotonic_ns() - runs);
  statistics.set_pages_left_behind(pages_missing);
  const auto info = node.services().info(spec.name());
  if (info.ok()) statistics.set_page_faults(info->post_copy().faults());
  return result;
}

}  // namespace godwit::node
