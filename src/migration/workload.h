// What a migration needs of a workload, whatever it is. migration/ knows no process and no VM.
#ifndef GODWIT_MIGRATION_WORKLOAD_H_
#define GODWIT_MIGRATION_WORKLOAD_H_

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "migration/mover.pb.h"
#include "migration/peer.h"
#include "stream/stream.h"

namespace godwit::migration {

struct RoundFigures {
  uint64_t pages = 0;  // with contents
  uint64_t zero_pages = 0;
  uint64_t bytes = 0;       // as they would be on the wire without compression
  int64_t duration_ns = 0;  // all of the round
  // Of it, before the first page was on its way: what the link has no part in.
  int64_t lead_ns = 0;
  uint64_t wire_bytes = 0;
  // Of its private memory: pages that were written in both of the last two windows between scans,
  // in one, in none; and in the last one.
  uint64_t hot_pages = 0;
  uint64_t warm_pages = 0;
  uint64_t cold_pages = 0;
  uint64_t written_pages = 0;
};

struct PageFigures {
  uint64_t left = 0;  // pages that the other end lacks
  uint64_t given = 0;
  uint64_t faults = 0;  // of them, that it was stopped for
  uint64_t bytes = 0;
  std::string error;  // what keeps some of them from being given
};
using PagesTold = std::function<void(const PageFigures&)>;

// Before anything is tracked.
struct Estimate {
  uint64_t resident_pages = 0;  // that would have to be carried
  uint64_t zero_pages = 0;      // of them, without contents
};

class SourceWorkload {
 public:
  virtual ~SourceWorkload() = default;
  virtual absl::Status precheck(std::vector<Reason>& reasons) = 0;
  virtual absl::StatusOr<Estimate> estimate() = 0;
  // In rounds: it gets only so much of the CPU time that it used before; 0: all of it again. It is
  // lifted by freeze(), thaw() and withdraw(), too.
  virtual absl::Status throttle(uint32_t percent) = 0;
  // Called in a round or in final_state(), after a question in the stream: waits for what
  // ReplicaWorkload::wanted_files() says there. Without it nothing is asked.
  virtual void on_question(std::function<absl::StatusOr<WantedFiles>()> answer) = 0;
  // Dirty tracking on; the workload runs on, but for stops of microseconds.
  virtual absl::Status prepare() = 0;
  // One epoch while it runs.
  virtual absl::StatusOr<RoundFigures> round(stream::Writer& writer) = 0;
  // The same, but what the workload can run without is named and stays: post-copy. From here on.
  virtual absl::StatusOr<RoundFigures> leave_behind(stream::Writer& writer) = 0;
  // Once, before freeze().
  virtual absl::Status begin_last_epoch(stream::Writer& writer) = 0;
  // Stands still, cannot be reached, and says nothing to the network from here on. kUnavailable:
  // not now, try again after thaw().
  virtual absl::Status freeze() = 0;
  virtual absl::Status final_state(stream::Writer& writer) = 0;
  virtual absl::StatusOr<RoundFigures> final_pages(stream::Writer& writer) = 0;
  // Frames that arrived for it since freeze() and were not given yet.
  virtual absl::StatusOr<std::vector<std::string>> take_held_frames() = 0;
  // The freeze is the destination's now.
  virtual void rest() = 0;
  // Readable when there are some; -1: it holds none.
  virtual int held_frames_fd() const = 0;
  // Runs on; idempotent, also when freeze() never ran or failed half-way.
  virtual absl::Status thaw() = 0;
  // Rollback, after thaw(): nothing of ours stays in it.
  virtual absl::Status withdraw() = 0;
  // Committed elsewhere: never runs here again. Its clients are waiting for the frames that
  // take_held_frames() has yet.
  virtual absl::Status commit() = 0;
  // After commit(), when nobody waits any more: lets go of it; the caller removes it.
  virtual void finish() = 0;
  // After finish(): gives the other end what stayed. Blocks until it has all; kUnavailable: the
  // connection broke, and another one may follow.
  virtual absl::Status serve_pages(tls::Channel& faults, tls::Channel& push,
                                   const PagesTold& told) = 0;
  // Who owns it is not known here: it stays frozen behind its gate, whatever becomes of us.
  virtual void leave_frozen() = 0;
  // A round or final_pages() under way returns soon, with kCancelled. From any thread.
  virtual void interrupt() = 0;
  virtual void describe(Statistics& statistics) = 0;
};

// A file whose pages may be read when the replica runs already.
class LaterPages {
 public:
  virtual ~LaterPages() = default;
  // Each frame in its order; the data of page frames was skipped.
  virtual void see(const stream::Frame& frame) = 0;
  // The data of one, checked, until the next call.
  virtual absl::StatusOr<std::span<const std::byte>> contents(const stream::Pages& frame) = 0;
  // Of one process, as the last epoch that has them left them; runs of at most
  // stream::kMaxPagesPerFrame together.
  virtual absl::Status read(uint64_t space, std::span<const stream::PageRun> runs,
                            std::span<std::byte> to) = 0;
  // Another file has another one.
  virtual uint64_t identity() const = 0;
  // As SourceWorkload::serve_pages().
  virtual absl::Status serve(tls::Channel& faults, tls::Channel& push, const PagesTold& told) = 0;
};

class ReplicaWorkload {
 public:
  virtual ~ReplicaWorkload() = default;
  virtual absl::Status apply(const stream::Frame& frame) = 0;
  // The answer, if the last frame was a question for it.
  virtual std::optional<WantedFiles> wanted_files() = 0;
  // Why apply() failed, where what is refused has a name and a way out.
  virtual std::vector<Reason> refusals() const = 0;
  // Early: that there will be some, which come encrypted.
  virtual void expect_pages() = 0;
  // After the final epoch: what stayed at the source.
  virtual uint64_t pages_missing() const = 0;
  // Whether a process may begin without pages that the stream has now (PagesMissing in their
  // place), and, before the end of the final epoch, which of these it has to get after all.
  virtual bool may_miss(uint64_t space) const = 0;
  struct Needed {
    uint64_t space = 0;
    std::vector<stream::PageRun> runs;
  };
  virtual absl::StatusOr<std::vector<Needed>> needed_first() = 0;
  // From here on it comes by these, whatever becomes of us. Broken after `patience` of silence.
  virtual absl::Status fetch_pages(ChannelPtr faults, ChannelPtr push, absl::Duration patience) = 0;
  // Everything but letting it run; held so that our death changes nothing.
  virtual absl::Status make_ready() = 0;
  // Ready: whether it has lost a process since. In the freeze.
  virtual absl::Status check_whole() = 0;
  // Ready: neighbours learn the new place; frames are held here.
  virtual absl::Status announce() = 0;
  // Runs, gate still holding.
  virtual absl::Status activate() = 0;
  // Gives it `from_source`, then what was held here, and opens the gate. Returns their number.
  virtual absl::StatusOr<uint32_t> open(const std::vector<std::string>& from_source) = 0;
  // It runs and can be reached: what could wait until now.
  virtual absl::Status settle() = 0;
  // Frames of the source that come after open().
  virtual absl::Status deliver(const std::vector<std::string>& frames) = 0;
  virtual void discard() = 0;
  // After make_ready(): it stays as it is, whatever becomes of us; the daemon goes on with it.
  virtual void leave() = 0;
  virtual void describe(Statistics& statistics) = 0;
};

}  // namespace godwit::migration

#endif  // GODWIT_MIGRATION_WORKLOAD_H_
