// What a source asks its destination on the message connection, and how long it waits for an
// answer.
#ifndef GODWIT_MIGRATION_SOURCE_PEER_H_
#define GODWIT_MIGRATION_SOURCE_PEER_H_

#include <atomic>
#include <memory>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "migration/peer.h"

namespace godwit::migration {

// One that is there says so at once, whatever it is doing: without a word for this long it cannot
// be reached, and the service must not stand still any longer.
inline constexpr absl::Duration kSilence = absl::Milliseconds(700);
inline constexpr absl::Duration kPing = absl::Milliseconds(100);

class SourcePeer {
 public:
  explicit SourcePeer(const std::atomic<bool>& cancelled) : cancelled_(cancelled) {}
  void connected(ChannelPtr channel) {
    messages_ = std::make_unique<PeerMessages>(std::move(channel));
  }
  PeerMessages& messages() { return *messages_; }
  // From here on the service stands still: patience is short, and what was heard before is old.
  void freeze() {
    frozen_ = true;
    heard_it_ = false;
  }

  absl::Status ask_whether_there();
  // Asked at the beginning of the freeze and answered while pages were sent. A destination that is
  // out of reach is noticed here, where going back takes nobody's leave; after the end mark only
  // the store could tell, and it may be as far away. Its kernel's word is enough: a mover that has
  // ended would have closed the connection, or said why before.
  absl::Status hear_that_it_is_there();
  // The destination may have to read gigabytes, perhaps from its disk: it only has to be there.
  absl::StatusOr<PeerMessage> wait_for_answer(PeerMessage::MessageCase wanted);
  absl::Status wait_for_applied();
  // A broken connection is often the second sign of a failure that the peer has put into words.
  absl::Status explain(const absl::Status& status);
  void tell(std::string_view why);

  // Its word that it has not committed and will not.
  bool has_failed() const { return has_failed_; }
  void note_failed() { has_failed_ = true; }

 private:
  absl::Status check_cancel() const;
  const std::atomic<bool>& cancelled_;
  std::unique_ptr<PeerMessages> messages_;
  bool frozen_ = false;
  bool heard_it_ = false;  // in the freeze: it has answered already
  bool has_failed_ = false;
};

}  // namespace godwit::migration

#endif  // GODWIT_MIGRATION_SOURCE_PEER_H_
