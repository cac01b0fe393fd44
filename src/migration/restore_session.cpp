// Restore: the stream from a file. Lazily, the replica is activated when all but its memory is
// there, and that follows, first what it waits for: post-copy whose source is the file.
#include <fcntl.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <memory>
#include <thread>

#include "base/fault_point.h"
#include "base/status.h"
#include "migration/session.h"
#include "stream/sealed.h"

namespace godwit::migration {
namespace {

constexpr absl::Duration kCommitTimeout = absl::Seconds(10);

class RestoreSession {
 public:
  RestoreSession(const MoverStart& start, ReplicaWorkload& workload, DaemonLink& daemon,
                 LaterPages* later)
      : start_(start), workload_(workload), daemon_(daemon), later_(later) {}
  ~RestoreSession() {
    if (!server_.joinable()) return;
    if (faults_) ::shutdown(faults_->fd(), SHUT_RDWR);
    server_.join();
  }

  Finished run() {
    const int64_t begin = monotonic_ns();
    const absl::Status restored = restore();
    if (!restored.ok()) {
      if (undecided_ || committed_) return failed(OUTCOME_UNKNOWN, restored);
      workload_.discard();
      Finished finished = failed(OUTCOME_ROLLED_BACK, annotate(restored, start_.file()));
      for (const Reason& reason : workload_.refusals()) *finished.add_reasons() = reason;
      if (finished.reasons_size() > 0) finished.set_outcome(OUTCOME_REFUSED);
      return finished;
    }
    // It runs: the daemon need not wait for the last page to believe it.
    const absl::Status served = serve_to_the_end();
    Finished finished = failed(served.ok() ? OUTCOME_MOVED : OUTCOME_PAGES_HERE, served);
    Statistics& statistics = *finished.mutable_statistics();
    statistics.set_strategy("restore");
    statistics.set_total_ns(monotonic_ns() - begin);
    statistics.set_bytes_wire(bytes_);
    workload_.describe(statistics);
    return finished;
  }

 private:
  absl::Status restore() {
    GW_RETURN_IF_ERROR(read());
    pages_missing_ = workload_.pages_missing();
    if (later_ == nullptr && pages_missing_ > 0)
      return make_error(absl::StatusCode::kDataLoss, "{} pages are missing in the image",
                        pages_missing_);
    if (pages_missing_ > 0) GW_RETURN_IF_ERROR(connect_pages());
    GW_RETURN_IF_ERROR(workload_.announce());
    GW_RETURN_IF_ERROR(workload_.make_ready());
    FAULT_POINT("restore.ready");
    GW_RETURN_IF_ERROR(commit());
    FAULT_POINT("restore.committed");
    if (faults_) start_server();
    GW_RETURN_IF_ERROR(workload_.activate());
    GW_RETURN_IF_ERROR(workload_.open({}).status());
    return workload_.settle();
  }

  absl::Status read() {
    UniqueFd fd(::open(start_.file().c_str(), O_RDONLY | O_CLOEXEC));
    if (!fd) return errno_status(errno, fmt::format("open({})", start_.file()));
    GW_ASSIGN_OR_RETURN(const auto feed, stream::image_feed(fd.get(), start_.key_file()));
    stream::Reader reader(
        *feed, later_ == nullptr ? stream::PageData::kBuffered : stream::PageData::kSkipped);
    for (bool final = false;;) {
      GW_ASSIGN_OR_RETURN(stream::Frame frame, reader.next());
      if (const auto* begin = std::get_if<stream::EpochBegin>(&frame)) final = begin->final;
      const bool last = final && std::holds_alternative<stream::EpochEnd>(frame);
      if (later_ == nullptr)
        GW_RETURN_IF_ERROR(workload_.apply(frame));
      else
        GW_RETURN_IF_ERROR(apply_lazily(frame, last));
      if (!last) continue;
      bytes_ = reader.bytes_read();
      return absl::OkStatus();
    }
  }

  absl::Status apply_lazily(const stream::Frame& frame, bool last) {
    if (std::holds_alternative<stream::PageHashes>(frame))
      return make_error(absl::StatusCode::kFailedPrecondition,
                        "the file has hashes to compare all pages with before the service runs; "
                        "restore it without --lazy");
    later_->see(frame);
    if (last) GW_RETURN_IF_ERROR(apply_needed());
    const auto* pages = std::get_if<stream::Pages>(&frame);
    if (pages == nullptr) return workload_.apply(frame);
    const bool shared = (pages->space & stream::kSharedSpace) != 0;
    // Until the epoch's sections have been applied nothing is known of its processes.
    GW_RETURN_IF_ERROR(workload_.apply(stream::Frame(stream::StateEnd{})));
    if (!shared && workload_.may_miss(pages->space))
      return workload_.apply(stream::Frame(stream::PagesMissing{pages->space, pages->runs}));
    stream::Pages whole = *pages;
    GW_ASSIGN_OR_RETURN(whole.data, later_->contents(*pages));
    return workload_.apply(stream::Frame(std::move(whole)));
  }

  // What cannot come later.
  absl::Status apply_needed() {
    GW_ASSIGN_OR_RETURN(const std::vector<ReplicaWorkload::Needed> all, workload_.needed_first());
    std::vector<std::byte> data(stream::kMaxPagesPerFrame * stream::kPageSize);
    for (const ReplicaWorkload::Needed& needed : all) {
      for (stream::PageRun run : needed.runs) {
        while (run.count > 0) {
          const auto count = std::min(run.count, static_cast<uint32_t>(stream::kMaxPagesPerFrame));
          const stream::PageRun some{run.address, count};
          const std::span<std::byte> to(data.data(), count * stream::kPageSize);
          GW_RETURN_IF_ERROR(later_->read(needed.space, {&some, 1}, to));
          stream::Pages pages;
          pages.space = needed.space;
          pages.runs = {some};
          pages.data = to;
          GW_RETURN_IF_ERROR(workload_.apply(stream::Frame(std::move(pages))));
          run.address += uint64_t{count} * stream::kPageSize;
          run.count -= count;
        }
      }
    }
    return absl::OkStatus();
  }

  absl::Status connect_pages() {
    std::array<ChannelPtr, 2> far;
    for (size_t i = 0; i < far.size(); ++i) {
      int ends[2];
      if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0)
        return errno_status(errno, "socketpair(AF_UNIX, SOCK_STREAM)");
      // Within the machine: plain.
      (i == 0 ? faults_ : push_) = std::make_unique<tls::Channel>(UniqueFd(ends[0]));
      far.at(i) = std::make_unique<tls::Channel>(UniqueFd(ends[1]));
    }
    return workload_.fetch_pages(std::move(far[0]), std::move(far[1]), stall_timeout_of(start_));
  }

  absl::Status commit() {
    MoverToDaemon request;
    request.set_commit_request(true);
    request.set_pages_missing(pages_missing_);
    if (later_ != nullptr) request.set_file_identity(later_->identity());
    GW_RETURN_IF_ERROR(daemon_.send(request));
    undecided_ = true;
    const Deadline deadline = Deadline::in(kCommitTimeout);
    for (;;) {
      GW_ASSIGN_OR_RETURN(const DaemonToMover answer, daemon_.receive(deadline));
      if (answer.message_case() != DaemonToMover::kCommitAnswer) continue;
      undecided_ = false;
      if (!answer.commit_answer().committed())
        return absl::AbortedError("not committed: " + answer.commit_answer().error());
      committed_ = true;
      return absl::OkStatus();
    }
  }

  // The first thread that runs may need it at once.
  void start_server() {
    server_ = std::thread([this] {
      served_ = later_->serve(*faults_, *push_, [this](const PageFigures& now) {
        if (!runs_) return;
        Progress progress;
        progress.set_phase("post-copy");
        progress.set_pages_left(now.left);
        progress.set_reason(now.error);
        daemon_.progress(progress);
      });
    });
  }

  absl::Status serve_to_the_end() {
    if (!server_.joinable()) return absl::OkStatus();
    Progress progress;
    progress.set_phase("post-copy");
    progress.set_pages_left(pages_missing_);
    daemon_.progress(progress);
    runs_ = true;
    server_.join();
    return served_;
  }

  const MoverStart& start_;
  ReplicaWorkload& workload_;
  DaemonLink& daemon_;
  LaterPages* later_;
  ChannelPtr faults_, push_;
  std::thread server_;
  absl::Status served_;
  std::atomic<bool> runs_ = false;
  bool undecided_ = false;
  bool committed_ = false;
  uint64_t pages_missing_ = 0;
  uint64_t bytes_ = 0;
};

}  // namespace

Finished run_restore(const MoverStart& start, ReplicaWorkload& workload, DaemonLink& daemon,
                     LaterPages* later) {
  return RestoreSession(start, workload, daemon, later).run();
}

}  // namespace godwit::migration
