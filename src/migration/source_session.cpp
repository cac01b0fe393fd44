#include <poll.h>
#include <sys/resource.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <memory>
#include <optional>

#include "base/fault_point.h"
#include "base/status.h"
#include "base/utf8.h"
#include "migration/decider.h"
#include "migration/session.h"
#include "migration/source_peer.h"

namespace godwit::migration {
namespace {

// After the end mark: no answer for this long and the store has to say who owns the workload.
constexpr absl::Duration kAnswerTimeout = absl::Seconds(5);
constexpr int kLookAgainMs = 20;
// After the move nothing has come for so long, or whatever came meanwhile.
constexpr int kQuietMs = 2;
constexpr absl::Duration kStragglersFor = absl::Milliseconds(20);
constexpr int kFreezeAttempts = 20;

int64_t cpu_ns() { return clock_ns(CLOCK_PROCESS_CPUTIME_ID); }

class SourceSession {
 public:
  SourceSession(const MoverStart& start, SourceWorkload& workload, DaemonLink& daemon)
      : start_(start),
        workload_(workload),
        daemon_(daemon),
        peer_(start, [this] { return check_cancel(); }) {}

  Finished run() {
    begin_ns_ = monotonic_ns();
    std::vector<Reason> reasons;
    const absl::Status checked = workload_.precheck(reasons);
    if (!checked.ok()) return failed(OUTCOME_ROLLED_BACK, checked);
    if (!reasons.empty()) return refused(reasons);
    const DaemonLink::Watch watch = daemon_.watch_for_cancel([this] { workload_.interrupt(); });
    const absl::Status moved = peer_.explain(move());
    if (moved.ok() && start_.clone()) return cloned();
    if (moved.ok()) return moved_away();
    if (committed_) return pages_here(moved);
    if (end_mark_sent_ && !peer_.told_failed()) {
      workload_.leave_frozen();
      Finished finished = failed(OUTCOME_UNKNOWN, moved);
      fill(*finished.mutable_statistics());
      return finished;
    }
    peer_.tell_failed(message_of(moved));
    absl::Status undone = workload_.thaw();
    if (undone.ok() && end_mark_sent_) say_that_it_runs_on();
    if (last_round_) report("round", *last_round_);
    undone.Update(workload_.withdraw());
    if (undone.ok()) return failed(OUTCOME_ROLLED_BACK, moved);
    // The daemon, which does it with us dead, has another way.
    workload_.leave_frozen();
    return failed(OUTCOME_UNKNOWN, undone);
  }

 private:
  absl::Status move() {
    GW_RETURN_IF_ERROR(connect());
    FAULT_POINT("source.connected");
    report("prepare", {});
    GW_RETURN_IF_ERROR(workload_.prepare());
    setup_ns_ = monotonic_ns() - begin_ns_;
    FAULT_POINT("source.prepared");
    GW_RETURN_IF_ERROR(rounds());
    GW_RETURN_IF_ERROR(check_cancel());
    GW_RETURN_IF_ERROR(freeze());
    GW_RETURN_IF_ERROR(send_last_epoch());
    if (start_.clone()) return let_clone_go();
    GW_RETURN_IF_ERROR(wait_for_active());
    return serve_pages();
  }

  absl::Status connect() {
    workload_.on_question([this]() -> absl::StatusOr<WantedFiles> {
      GW_ASSIGN_OR_RETURN(const PeerMessage answer,
                          peer_.wait_for_answer(PeerMessage::kWantedFiles));
      return answer.wanted_files();
    });
    return peer_.connect(may_leave_pages());
  }

  absl::Status rounds() {
    Decider decider(limits_of(start_));
    GW_ASSIGN_OR_RETURN(const Estimate estimate, workload_.estimate());
    const Decision first = decider.before(estimate, monotonic_ns() - begin_ns_);
    note(first, decider);
    if (post_copy_) return leave_behind();
    if (first.verdict != Verdict::kAnotherRound) return absl::OkStatus();
    for (;;) {
      GW_RETURN_IF_ERROR(check_cancel());
      const int64_t begin = monotonic_ns();
      auto round = workload_.round(peer_.writer());
      GW_RETURN_IF_ERROR(check_cancel());
      GW_RETURN_IF_ERROR(round.status());
      GW_RETURN_IF_ERROR(peer_.wait_for_applied());
      round->duration_ns = monotonic_ns() - begin;
      wire_share_ = static_cast<double>(round->wire_bytes) /
                    static_cast<double>(std::max<uint64_t>(1, round->bytes));
      ++rounds_;
      FAULT_POINT("source.round_done");
      const Decision decision = decider.after_round(*round);
      note(decision, decider);
      GW_RETURN_IF_ERROR(throttle(decision));
      if (decision.verdict == Verdict::kSwitchOver || decision.verdict == Verdict::kPostCopy) {
        // Told afterwards: what the daemon does with it would go on beside the freeze.
        last_round_ = decision;
        return post_copy_ ? leave_behind() : absl::OkStatus();
      }
      report("round", decision);
      if (decision.verdict == Verdict::kGiveUp)
        return make_error(absl::StatusCode::kFailedPrecondition, "does not converge: {}",
                          decision.reason);
    }
  }

  absl::Status throttle(const Decision& decision) {
    const bool goes_on = decision.verdict == Verdict::kAnotherRound;
    const uint32_t percent = goes_on ? decision.throttle_percent : 0;
    if (percent == throttle_percent_) return absl::OkStatus();
    // The freeze lifts it, in which nothing of it runs.
    if (goes_on) GW_RETURN_IF_ERROR(workload_.throttle(percent));
    if (throttle_percent_ == 0) throttled_since_ns_ = monotonic_ns();
    if (percent == 0) throttled_ns_ = monotonic_ns() - throttled_since_ns_;
    throttle_percent_ = percent;
    if (percent != 0) least_percent_ = percent;
    FAULT_POINT("source.throttled");
    return absl::OkStatus();
  }

  // A program that runs before its pages are there cannot be compared with what it was.
  bool may_leave_pages() const {
    return !start_.verify() &&
           (start_.strategy() == STRATEGY_POSTCOPY || start_.strategy() == STRATEGY_HYBRID ||
            start_.strategy() == STRATEGY_AUTO);
  }

  // The last round of a post-copy: the destination learns what it will have to wait for, and so the
  // freeze has to tell only of what changed since.
  absl::Status leave_behind() {
    GW_RETURN_IF_ERROR(check_cancel());
    const auto round = workload_.leave_behind(peer_.writer());
    GW_RETURN_IF_ERROR(check_cancel());
    GW_RETURN_IF_ERROR(round.status());
    GW_RETURN_IF_ERROR(peer_.wait_for_applied());
    ++rounds_;
    FAULT_POINT("source.left_behind");
    return absl::OkStatus();
  }

  void note(const Decision& decision, const Decider& decider) {
    post_copy_ = decision.verdict == Verdict::kPostCopy;
    followed_ = decision.strategy;
    describe(decision, decider.prediction(), decided_);
  }

  absl::Status freeze() {
    GW_RETURN_IF_ERROR(workload_.begin_last_epoch(peer_.writer()));
    for (int attempt = 1;; ++attempt) {
      // A write that is stuck now keeps the service standing still. Not so in a cold move or one
      // that is verified, whose destination may well be busy for longer with what it has.
      peer_.begin_freeze(followed_ == STRATEGY_COLD || start_.verify());
      freeze_begin_ns_ = monotonic_ns();
      const absl::Status frozen = workload_.freeze();
      if (frozen.ok()) {
        FAULT_POINT("source.frozen");
        GW_RETURN_IF_ERROR(peer_.ask_whether_there());
        return workload_.final_state(peer_.writer());
      }
      if (!absl::IsUnavailable(frozen)) return frozen;
      // Of the service: the link, which is asked for what is of its kind, has nothing to do with
      // it.
      if (attempt == kFreezeAttempts)
        return make_error(absl::StatusCode::kFailedPrecondition, "{}", message_of(frozen));
      // Something passing: let it pass.
      GW_RETURN_IF_ERROR(workload_.thaw());
      ::poll(nullptr, 0, attempt);
    }
  }

  absl::Status send_last_epoch() {
    const auto pages = workload_.final_pages(peer_.writer());
    GW_RETURN_IF_ERROR(check_cancel());
    GW_RETURN_IF_ERROR(pages.status());
    if (start_.verify()) {
      report("verify", {});
      GW_RETURN_IF_ERROR(peer_.wait_for_answer(PeerMessage::kCompared).status());
    }
    GW_RETURN_IF_ERROR(peer_.hear_that_it_is_there());
    FAULT_POINT("source.before_end_mark");
    // The daemon must know before the destination can: from here on the store decides. Of a clone
    // it decides nothing for the original.
    if (!start_.clone()) {
      GW_RETURN_IF_ERROR(daemon_.end_mark_sent());
      end_mark_sent_ = true;
    }
    GW_RETURN_IF_ERROR(peer_.writer().end_epoch());
    GW_RETURN_IF_ERROR(peer_.writer().flush());
    FAULT_POINT("source.after_end_mark");
    return absl::OkStatus();
  }

  // The original runs on as soon as all of it is on its way, whatever becomes of the clone.
  absl::Status let_clone_go() {
    freeze_ns_ = monotonic_ns() - freeze_begin_ns_;
    GW_RETURN_IF_ERROR(workload_.thaw());
    FAULT_POINT("source.clone_sent");
    GW_ASSIGN_OR_RETURN(const PeerMessage message, peer_.wait_for_answer(PeerMessage::kActive));
    active_ = message.active();
    PeerMessage end;
    end.set_held_end(true);  // there is nothing for it here
    (void)peer_.messages().send(end);
    return absl::OkStatus();
  }

  absl::Status wait_for_active() {
    const Deadline deadline = Deadline::in(kAnswerTimeout);
    Deadline silence = Deadline::in(SourcePeer::kSilence);
    Deadline ping = Deadline::in(SourcePeer::kPing);
    for (;;) {
      GW_RETURN_IF_ERROR(forward_held());
      if (ping.passed()) {
        ping = Deadline::in(SourcePeer::kPing);
        GW_RETURN_IF_ERROR(peer_.ask_whether_there());
      }
      std::array<pollfd, 2> both{pollfd{peer_.messages().fd(), POLLIN, 0},
                                 pollfd{workload_.held_frames_fd(), POLLIN, 0}};
      const int ready = ::poll(both.data(), both.size(), kLookAgainMs);
      // Only now: on one machine the destination may be waiting for our CPU.
      workload_.rest();
      if (ready < 0 && errno != EINTR) return errno_status(errno, "poll(peer)");
      if ((both[0].revents & (POLLIN | POLLHUP | POLLERR)) == 0) {
        if (deadline.passed() || silence.passed())
          return absl::DeadlineExceededError("the destination gave no answer after the end mark");
        continue;
      }
      GW_ASSIGN_OR_RETURN(const PeerMessage message, peer_.messages().receive(silence));
      silence = Deadline::in(SourcePeer::kSilence);
      if (message.message_case() == PeerMessage::kFailed) {
        return peer_.failed(message);
      }
      if (message.message_case() != PeerMessage::kActive) continue;
      freeze_ns_ = monotonic_ns() - freeze_begin_ns_;
      active_ = message.active();
      forward_stragglers();
      GW_RETURN_IF_ERROR(workload_.commit());
      (void)forward_held();
      PeerMessage end;
      end.set_held_end(true);
      (void)peer_.messages().send(end);
      workload_.finish();
      committed_ = true;
      return absl::OkStatus();
    }
  }

  // It runs there, and this is not the freeze any more: what goes wrong from here on keeps the
  // pages here, for the next connection.
  absl::Status serve_pages() {
    if (active_.pages_missing() == 0) return absl::OkStatus();
    FAULT_POINT("source.serve_pages");
    const int64_t begin = monotonic_ns();
    const absl::Status served = workload_.serve_pages(
        peer_.faults(), peer_.push(), [this](const PageFigures& now) { report_pages(now); });
    post_copy_ns_ = monotonic_ns() - begin;
    return served;
  }

  void report_pages(const PageFigures& now) {
    page_figures_ = now;
    Progress progress;
    progress.set_phase("post-copy");
    progress.set_round(rounds_);
    progress.set_pages_left(now.left);
    daemon_.progress(progress);
  }

  // Neighbours learned the new place only just now: what was on its way here follows.
  void forward_stragglers() {
    const Deadline deadline = Deadline::in(kStragglersFor);
    while (!deadline.passed() && forward_held().ok()) {
      pollfd one{workload_.held_frames_fd(), POLLIN, 0};
      if (::poll(&one, 1, kQuietMs) <= 0) return;
    }
  }

  absl::Status forward_held() {
    GW_ASSIGN_OR_RETURN(const std::vector<std::string> frames, workload_.take_held_frames());
    return peer_.send_held(frames);
  }

  // Frames went to the destination if it announced itself; the daemons bring them back. Before
  // withdraw(), which takes its time with a big program.
  void say_that_it_runs_on() {
    MoverToDaemon told;
    told.set_runs_on(true);
    (void)daemon_.send(told);  // one that has gone finds out when it is there again
  }

  absl::Status check_cancel() const {
    if (daemon_.cancelled()) return absl::CancelledError("cancelled; the service runs on here");
    return absl::OkStatus();
  }

  void report(const char* phase, const Decision& decision) {
    Progress progress;
    progress.set_phase(phase);
    progress.set_round(rounds_);
    progress.set_pages_left(decision.expected_pages);
    progress.set_bytes_per_s(static_cast<uint64_t>(decision.bytes_per_s * wire_share_));
    progress.set_dirty_pages_per_s(static_cast<uint64_t>(decision.dirty_pages_per_s));
    progress.set_time_left_ns(decision.expected_downtime_ns);
    progress.set_strategy(strategy_name(followed_));
    progress.set_reason(decision.reason);
    progress.set_throttle_percent(throttle_percent_);
    daemon_.progress(progress);
  }

  void fill(Statistics& statistics) {
    statistics.MergeFrom(decided_);
    statistics.set_bandwidth_limited(start_.bandwidth_bytes_per_s() > 0);
    statistics.set_fixed_downtime_ns(start_.fixed_downtime_ns());
    statistics.set_pages_left_behind(active_.pages_missing());
    statistics.set_page_faults(page_figures_.faults);
    statistics.set_post_copy_ns(post_copy_ns_);
    statistics.set_throttled_ns(throttled_ns_);
    statistics.set_throttle_percent(least_percent_);
    statistics.set_rounds(rounds_);
    statistics.set_freeze_ns(freeze_ns_);
    statistics.set_setup_ns(setup_ns_);
    statistics.set_total_ns(monotonic_ns() - begin_ns_);
    statistics.set_bytes_wire(peer_.wire_bytes() + page_figures_.bytes);
    statistics.set_cpu_ns(cpu_ns());
    statistics.set_frames_replayed(active_.frames_replayed());
    workload_.describe(statistics);
    statistics.set_pages_sent(statistics.pages_sent() + page_figures_.given);
    for (const Span& span : active_.spans()) *statistics.add_spans() = span;
  }

  Finished moved_away() {
    if (last_round_) report("round", *last_round_);
    Finished finished;
    finished.set_outcome(OUTCOME_MOVED);
    fill(*finished.mutable_statistics());
    return finished;
  }

  Finished cloned() {
    const absl::Status undone = workload_.withdraw();
    if (!undone.ok()) {
      // The daemon, which does it with us dead, has another way.
      workload_.leave_frozen();
      return failed(OUTCOME_UNKNOWN, undone);
    }
    Finished finished;
    finished.set_outcome(OUTCOME_SAVED);
    fill(*finished.mutable_statistics());
    return finished;
  }

  Finished pages_here(const absl::Status& why) {
    Finished finished = failed(OUTCOME_PAGES_HERE, why);
    fill(*finished.mutable_statistics());
    return finished;
  }

  static Finished refused(const std::vector<Reason>& reasons) {
    Finished finished;
    finished.set_outcome(OUTCOME_REFUSED);
    for (const Reason& reason : reasons) *finished.add_reasons() = reason;
    finished.set_error(
        fmt::format("{}: {}; {}", reasons[0].object(), reasons[0].reason(), reasons[0].way_out()));
    return finished;
  }

  const MoverStart& start_;
  SourceWorkload& workload_;
  DaemonLink& daemon_;
  SourcePeer peer_;
  Active active_;
  std::optional<Decision> last_round_;  // not reported yet
  Strategy followed_ = STRATEGY_INVALID;
  bool post_copy_ = false;  // the freeze leaves what is outstanding for later
  Statistics decided_;      // what was chosen, and why
  uint32_t rounds_ = 0;
  double wire_share_ = 1;  // of the last round's bytes
  bool end_mark_sent_ = false;
  bool committed_ = false;  // it runs there
  PageFigures page_figures_;
  int64_t post_copy_ns_ = 0;
  uint32_t throttle_percent_ = 0;  // in effect; 0: none
  uint32_t least_percent_ = 0;
  int64_t throttled_since_ns_ = 0;
  int64_t throttled_ns_ = 0;
  int64_t begin_ns_ = 0;
  int64_t setup_ns_ = 0;
  int64_t freeze_begin_ns_ = 0;
  int64_t freeze_ns_ = 0;
};

}  // namespace

Finished failed(Outcome outcome, const absl::Status& status) {
  Finished finished;
  finished.set_outcome(outcome);
  finished.set_error(escape_non_utf8(message_of(status)));
  return finished;
}

Finished run_source(const MoverStart& start, SourceWorkload& workload, DaemonLink& daemon) {
  return SourceSession(start, workload, daemon).run();
}

}  // namespace godwit::migration
