#include <poll.h>
#include <sys/socket.h>

#include <atomic>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>

#include "base/fault_point.h"
#include "base/log.h"
#include "base/status.h"
#include "base/utf8.h"
#include "migration/peer.h"
#include "migration/session.h"

namespace godwit::migration {
namespace {

constexpr absl::Duration kAcceptTimeout = absl::Seconds(30);
constexpr absl::Duration kCommitTimeout = absl::Seconds(10);
constexpr absl::Duration kMoment = absl::Milliseconds(200);
// A daemon is started again within that long, or nobody waits for what is held any more.
constexpr absl::Duration kNextDaemon = absl::Seconds(30);
// The source closes its port right after it hears that the replica is active; what it holds then is
// on its way.
constexpr absl::Duration kStragglersFor = absl::Seconds(1);
// Encrypted bytes that are read at once.
constexpr size_t kReadAhead = size_t{256} << 10;

// What was held at the source: collected until the gate opens, delivered at once afterwards.
class HeldFromSource {
 public:
  explicit HeldFromSource(ReplicaWorkload& workload) : workload_(workload) {}

  void add(const HeldFrames& frames) {
    std::lock_guard lock(mutex_);
    std::vector<std::string> list(frames.frame().begin(), frames.frame().end());
    if (open_) {
      (void)workload_.deliver(list);
      return;
    }
    for (std::string& frame : list) waiting_.push_back(std::move(frame));
  }
  absl::StatusOr<uint32_t> open() {
    std::lock_guard lock(mutex_);
    open_ = true;
    return workload_.open(waiting_);
  }

 private:
  ReplicaWorkload& workload_;
  std::mutex mutex_;
  std::vector<std::string> waiting_;
  bool open_ = false;
};

class DestinationSession {
 public:
  DestinationSession(const MoverStart& start, ReplicaWorkload& workload, DaemonLink& daemon)
      : start_(start), workload_(workload), daemon_(daemon), held_(workload) {}

  ~DestinationSession() {
    if (!listener_thread_.joinable()) return;
    ::shutdown(messages_->fd(), SHUT_RD);  // ends its wait
    listener_thread_.join();
  }

  Finished run() {
    const absl::Status taken = take();
    if (taken.ok()) {
      // Stragglers of the source come until it says that there are no more, or closes, or has been
      // silent for too long.
      wait_for_stragglers();
      Finished finished;
      finished.set_outcome(OUTCOME_MOVED);
      fill(*finished.mutable_statistics());
      return finished;
    }
    // Committed, or perhaps: nothing of the replica may go, and the source must not be told that
    // it can go on. The daemon finishes or removes it by what the store says.
    if (decided_elsewhere_) {
      workload_.leave();
      if (absl::IsUnavailable(taken)) wait_for_the_next_daemon();
      return failed(OUTCOME_UNKNOWN, taken);
    }
    // The source first: it may stand still, and taking down gigabytes takes a while.
    PeerMessage message;
    message.set_failed(escape_non_utf8(message_of(taken)));
    if (messages_) (void)messages_->send(message);
    stream_.reset();
    workload_.discard();
    if (messages_) ::shutdown(messages_->fd(), SHUT_RD);
    return failed(OUTCOME_ROLLED_BACK, taken);
  }

 private:
  absl::Status take() {
    GW_RETURN_IF_ERROR(meet());
    FAULT_POINT("destination.connected");
    stream_->read_ahead(kReadAhead);
    auto feed = stream::channel_feed(*stream_);
    stream::Reader reader(*feed);
    for (bool final = false;;) {
      GW_ASSIGN_OR_RETURN(const stream::Frame frame, reader.next());
      if (const auto* preamble = std::get_if<stream::Preamble>(&frame))
        GW_RETURN_IF_ERROR(check(*preamble));
      if (const auto* begin = std::get_if<stream::EpochBegin>(&frame)) {
        final = begin->final;
        if (!final) report_round();
      }
      if (start_.has_tls() && !pages_expected_ &&
          std::holds_alternative<stream::PagesMissing>(frame)) {
        pages_expected_ = true;
        workload_.expect_pages();
      }
      GW_RETURN_IF_ERROR(workload_.apply(frame));
      if (const auto wanted = workload_.wanted_files()) {
        PeerMessage answer;
        *answer.mutable_wanted_files() = *wanted;
        GW_RETURN_IF_ERROR(messages_->send(answer));
      }
      if (std::holds_alternative<stream::HashesEnd>(frame)) {
        PeerMessage answer;
        answer.set_compared(true);
        GW_RETURN_IF_ERROR(messages_->send(answer));
      }
      if (!std::holds_alternative<stream::EpochEnd>(frame)) continue;
      if (final) break;
      FAULT_POINT("destination.round_done");
      PeerMessage applied;
      applied.set_applied(true);
      GW_RETURN_IF_ERROR(messages_->send(applied));
    }
    bytes_ = reader.bytes_read();
    FAULT_POINT("destination.received");
    pages_missing_ = workload_.pages_missing();
    if (pages_missing_ > 0) GW_RETURN_IF_ERROR(fetch_pages());
    GW_RETURN_IF_ERROR(workload_.make_ready());
    FAULT_POINT("destination.ready");
    GW_RETURN_IF_ERROR(commit());
    // From here on it is ours: nothing below may lead back.
    FAULT_POINT("destination.committed");
    GW_RETURN_IF_ERROR(workload_.activate());
    GW_ASSIGN_OR_RETURN(const uint32_t frames, held_.open());
    PeerMessage message;
    Active& active = *message.mutable_active();
    Statistics statistics;
    workload_.describe(statistics);
    for (const Span& span : statistics.spans()) *active.add_spans() = span;
    active.set_frames_replayed(frames);
    active.set_pages_missing(pages_missing_);
    active.set_cpu_ns(clock_ns(CLOCK_PROCESS_CPUTIME_ID));
    (void)messages_->send(message);  // a source that has gone asks the store
    GW_RETURN_IF_ERROR(workload_.settle());
    FAULT_POINT("destination.settled");
    return absl::OkStatus();
  }

  // At its beginning: after its end the freeze may come, when every CPU has better things to do.
  void report_round() {
    Progress progress;
    progress.set_phase("round");
    daemon_.progress(progress);
  }

  absl::Status meet() {
    GW_ASSIGN_OR_RETURN(listener_, listen_on(start_.listen_host()));
    MoverToDaemon told;
    told.set_listening(listener_.port);
    GW_RETURN_IF_ERROR(daemon_.send(told));
    const Deadline deadline = Deadline::in(kAcceptTimeout);
    GW_ASSIGN_OR_RETURN(Terms terms, terms_of(start_));
    acceptor_.emplace(listener_.fd.get(), std::move(terms));
    while (!stream_ || !messages_) GW_RETURN_IF_ERROR(accept_one(deadline));
    listener_thread_ = std::thread([this] { listen(); });
    return absl::OkStatus();
  }

  absl::Status accept_one(Deadline deadline) {
    GW_ASSIGN_OR_RETURN(Accepted accepted, acceptor_->next(deadline));
    if (accepted.purpose == Purpose::kStream) stream_ = std::move(accepted.channel);
    if (accepted.purpose == Purpose::kMessages)
      messages_ = std::make_unique<PeerMessages>(std::move(accepted.channel));
    if (accepted.purpose == Purpose::kFaults) faults_ = std::move(accepted.channel);
    if (accepted.purpose == Purpose::kPush) push_ = std::move(accepted.channel);
    return absl::OkStatus();
  }

  // They were connected at the beginning, and have waited here since.
  absl::Status fetch_pages() {
    const Deadline deadline = Deadline::in(kMoment);
    while (!faults_ || !push_)
      GW_RETURN_IF_ERROR(annotate(accept_one(deadline), "connections for pages"));
    return workload_.fetch_pages(std::move(faults_), std::move(push_), stall_timeout_of(start_));
  }

  void listen() {
    for (;;) {
      const auto message = messages_->receive(Deadline::in(absl::Hours(24)));
      if (!message.ok() || message->held_end() || message->message_case() == PeerMessage::kFailed) {
        listener_ended_ = true;
        return;
      }
      if (message->message_case() == PeerMessage::kHeld) held_.add(message->held());
      if (message->are_you_there()) {
        PeerMessage answer;
        answer.set_still_here(true);
        (void)messages_->send(answer);
      }
    }
  }

  absl::Status check(const stream::Preamble& preamble) const {
    if (preamble.migration_id != start_.migration_id())
      return make_error(absl::StatusCode::kPermissionDenied,
                        "the stream belongs to migration \"{}\", not to this one",
                        preamble.migration_id);
    return absl::OkStatus();
  }

  absl::Status commit() {
    GW_RETURN_IF_ERROR(workload_.check_whole());
    MoverToDaemon request;
    request.set_commit_request(true);
    request.set_pages_missing(pages_missing_);
    GW_RETURN_IF_ERROR(daemon_.send(request));
    // While the daemon and the store are busy with it: neighbours have learned the new place before
    // the source closes its own. Should it fail, the source announces itself again.
    const absl::Status announced = workload_.announce();
    if (!announced.ok()) log_warning("announce: {}", message_of(announced));
    const Deadline deadline = Deadline::in(kCommitTimeout);
    for (;;) {
      const auto answer = daemon_.receive(deadline);
      if (!answer.ok()) {
        // Whether it was committed is not known here: it stays frozen, and whoever reads the store
        // decides.
        decided_elsewhere_ = true;
        return answer.status();
      }
      if (answer->message_case() != DaemonToMover::kCommitAnswer) continue;
      decided_elsewhere_ =
          answer->commit_answer().committed() || answer->commit_answer().undecided();
      if (!answer->commit_answer().committed())
        return absl::AbortedError("not committed: " + answer->commit_answer().error());
      return absl::OkStatus();
    }
  }

  // Our daemon died over the commit. The next one reads in the store what became of it, takes what
  // is held out of our hands, and ends us. The source is to ask the store, too.
  void wait_for_the_next_daemon() {
    ::shutdown(messages_->fd(), SHUT_RDWR);
    const Deadline deadline = Deadline::in(kNextDaemon);
    while (!deadline.passed()) ::poll(nullptr, 0, deadline.remaining_ms());
  }

  void wait_for_stragglers() {
    const Deadline deadline = Deadline::in(kStragglersFor);
    while (!listener_ended_ && !deadline.passed()) ::poll(nullptr, 0, 1);
  }

  void fill(Statistics& statistics) {
    statistics.set_bytes_wire(bytes_);
    statistics.set_cpu_ns(clock_ns(CLOCK_PROCESS_CPUTIME_ID));
    workload_.describe(statistics);
  }

  const MoverStart& start_;
  ReplicaWorkload& workload_;
  DaemonLink& daemon_;
  Listener listener_;
  std::optional<Acceptor> acceptor_;
  ChannelPtr stream_;
  ChannelPtr faults_;
  ChannelPtr push_;
  uint64_t pages_missing_ = 0;
  bool pages_expected_ = false;
  std::unique_ptr<PeerMessages> messages_;
  HeldFromSource held_;
  std::thread listener_thread_;
  std::atomic<bool> listener_ended_ = false;
  bool decided_elsewhere_ = false;
  uint64_t bytes_ = 0;
};

}  // namespace

Finished run_destination(const MoverStart& start, ReplicaWorkload& workload, DaemonLink& daemon) {
  return DestinationSession(start, workload, daemon).run();
}

}  // namespace godwit::migration
