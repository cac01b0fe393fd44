// The destination's mover as the source's has it: the connections to it, and what is said there
// beside the stream.
//
// A link that carries nothing any more is noticed within the stall timeout on each of them. What
// tells it from a destination that is busy is its kernel, which acknowledges at once. Whoever waits
// here asks whether the other one is there, and TCP ends a connection on which that is not
// acknowledged (set_patience() in peer.h); on the stream, where a window that stays closed would
// count as well, a write that waits looks at when the last acknowledgement came.
#ifndef GODWIT_MIGRATION_SOURCE_PEER_H_
#define GODWIT_MIGRATION_SOURCE_PEER_H_

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "base/clock.h"
#include "migration/mover.pb.h"
#include "migration/peer.h"
#include "stream/stream.h"

namespace godwit::migration {

class SourcePeer {
 public:
  // After the end mark: one that is there says so at once, whatever it is doing. Without a word for
  // this long it cannot be reached, and the service must not stand still any longer.
  static constexpr absl::Duration kSilence = absl::Milliseconds(700);
  static constexpr absl::Duration kPing = absl::Milliseconds(100);

  // `go_on`: asked while it waits; an error ends the wait.
  SourcePeer(const MoverStart& start, std::function<absl::Status()> go_on)
      : start_(start), go_on_(std::move(go_on)), stall_(stall_timeout_of(start)) {}

  // `pages`: with connections for pages that stay.
  absl::Status connect(bool pages);
  stream::Writer& writer() { return *writer_; }
  uint64_t wire_bytes() const { return stream_ ? stream_->wire_sent() : 0; }
  PeerMessages& messages() { return *messages_; }
  tls::Channel& faults() { return *faults_; }
  tls::Channel& push() { return *push_; }

  // The service stands still from here on. `busy`: a destination that takes nothing of the stream
  // for longer has its reasons.
  void begin_freeze(bool busy);
  absl::Status ask_whether_there();
  // Asked at the beginning of the freeze and answered while pages were sent. A destination that is
  // out of reach is noticed here, where going back takes nobody's leave; after the end mark only
  // the store could tell, and it may be as far away.
  absl::Status hear_that_it_is_there();
  // The destination may have to read gigabytes, perhaps from its disk: it only has to be there.
  absl::StatusOr<PeerMessage> wait_for_answer(PeerMessage::MessageCase wanted,
                                              Deadline until = Deadline::in(absl::Hours(24)));
  // That it has applied a round, which takes it about as long as the sending.
  absl::Status wait_for_applied();
  absl::Status send_held(const std::vector<std::string>& frames);

  // A broken connection is often the second sign of a failure that the peer has put into words.
  absl::Status explain(const absl::Status& status);
  void tell_failed(std::string_view why);
  // Its word that it has not committed and will not.
  bool told_failed() const { return told_failed_; }
  absl::Status failed(const PeerMessage& message);

 private:
  absl::Status look_at_link();

  const MoverStart& start_;
  std::function<absl::Status()> go_on_;
  absl::Duration stall_;
  ChannelPtr stream_;
  ChannelPtr faults_;
  ChannelPtr push_;
  std::unique_ptr<PeerMessages> messages_;
  std::unique_ptr<stream::Sink> sink_;
  std::unique_ptr<stream::Writer> writer_;
  bool frozen_ = false;
  bool told_failed_ = false;
};

}  // namespace godwit::migration

#endif  // GODWIT_MIGRATION_SOURCE_PEER_H_
