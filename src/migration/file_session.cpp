// Checkpoint: the stream with a file at its other end.
#include <unistd.h>

#include <memory>

#include "absl/cleanup/cleanup.h"
#include "base/fault_point.h"
#include "base/status.h"
#include "migration/image_file.h"
#include "migration/session.h"
#include "stream/sealed.h"

namespace godwit::migration {
namespace {

constexpr int kFreezeAttempts = 20;

absl::Status freeze(SourceWorkload& workload) {
  for (int attempt = 1;; ++attempt) {
    const absl::Status frozen = workload.freeze();
    if (frozen.ok() || !absl::IsUnavailable(frozen) || attempt == kFreezeAttempts) return frozen;
    GW_RETURN_IF_ERROR(workload.thaw());
    ::usleep(static_cast<useconds_t>(attempt) * 1000);
  }
}

absl::Status write_image(const MoverStart& start, SourceWorkload& workload,
                         const DaemonLink& daemon, const std::string& partial,
                         Statistics& statistics) {
  GW_ASSIGN_OR_RETURN(const UniqueFd fd, create_image(partial));
  GW_ASSIGN_OR_RETURN(const auto sink, stream::image_sink(fd.get(), start.key_file()));
  stream::Writer writer(*sink);
  GW_RETURN_IF_ERROR(writer.preamble(preamble_of(start)));
  GW_RETURN_IF_ERROR(workload.prepare());
  // One round while it runs, so that the freeze has little to write.
  GW_RETURN_IF_ERROR(workload.round(writer).status());
  if (daemon.cancelled()) return absl::CancelledError("cancelled; the service runs on");
  const int64_t begin = monotonic_ns();
  GW_RETURN_IF_ERROR(workload.begin_last_epoch(writer));
  GW_RETURN_IF_ERROR(freeze(workload));
  FAULT_POINT("checkpoint.frozen");
  GW_RETURN_IF_ERROR(workload.final_state(writer));
  GW_RETURN_IF_ERROR(workload.final_pages(writer).status());
  GW_RETURN_IF_ERROR(writer.end_epoch());
  GW_RETURN_IF_ERROR(writer.flush());
  statistics.set_freeze_ns(monotonic_ns() - begin);
  statistics.set_bytes_wire(writer.bytes_written());
  statistics.set_rounds(1);
  // With --leave-running it runs on before the disk is done with the last bytes.
  if (start.leave_running()) GW_RETURN_IF_ERROR(workload.thaw());
  FAULT_POINT("checkpoint.written");
  GW_RETURN_IF_ERROR(sync_image(fd.get(), partial));
  return publish_image(partial, start.file());
}

}  // namespace

stream::Preamble preamble_of(const MoverStart& start) {
  const bool compressed = !start.compress().empty() && start.compress() != "none";
  stream::Preamble preamble;
  preamble.version = compressed ? stream::kVersionCompressed : stream::kVersion;
  // Its capsule's name may have more.
  preamble.workload = start.service().substr(0, start.service().find('~'));
  preamble.created_unix_ns = clock_ns(CLOCK_REALTIME);
  return preamble;
}

Finished run_checkpoint(const MoverStart& start, SourceWorkload& workload, DaemonLink& daemon) {
  const int64_t begin = monotonic_ns();
  Finished finished;
  std::vector<Reason> reasons;
  const absl::Status checked = workload.precheck(reasons);
  if (!checked.ok()) return failed(OUTCOME_ROLLED_BACK, checked);
  if (!reasons.empty()) {
    finished.set_outcome(OUTCOME_REFUSED);
    for (const Reason& reason : reasons) *finished.add_reasons() = reason;
    finished.set_error(
        fmt::format("{}: {}; {}", reasons[0].object(), reasons[0].reason(), reasons[0].way_out()));
    return finished;
  }
  const DaemonLink::Watch watch = daemon.watch_for_cancel([&workload] { workload.interrupt(); });
  const std::string partial = partial_image(start.file());
  const absl::Status written =
      write_image(start, workload, daemon, partial, *finished.mutable_statistics());
  if (!written.ok()) {
    ::unlink(partial.c_str());
    absl::Status undone = workload.thaw();
    undone.Update(workload.withdraw());
    if (undone.ok()) return failed(OUTCOME_ROLLED_BACK, annotate(written, start.file()));
    // The daemon, which does it with us dead, has another way.
    workload.leave_frozen();
    return failed(OUTCOME_UNKNOWN, undone);
  }
  const absl::Status ended = start.leave_running() ? workload.withdraw() : workload.commit();
  if (!start.leave_running()) workload.finish();
  if (!ended.ok()) return failed(OUTCOME_ROLLED_BACK, ended);
  finished.set_outcome(OUTCOME_SAVED);
  finished.mutable_statistics()->set_strategy("checkpoint");
  finished.mutable_statistics()->set_total_ns(monotonic_ns() - begin);
  workload.describe(*finished.mutable_statistics());
  return finished;
}

}  // namespace godwit::migration
