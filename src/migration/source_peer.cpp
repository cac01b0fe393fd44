#include "migration/source_peer.h"

#include <poll.h>

#include <cerrno>

#include "base/status.h"
#include "base/utf8.h"

namespace godwit::migration {
namespace {

// The replica applies a round in about the time that its sending takes; silence for this long
// means that it is gone.
constexpr absl::Duration kPeerTimeout = absl::Seconds(10);
constexpr absl::Duration kMoment = absl::Milliseconds(50);

// As stream/fd_sink.cpp fails when its peer does, and not for a reason of ours.
bool of_the_stream(const absl::Status& status) {
  const int error = errno_of(status);
  return error == EPIPE || error == ECONNRESET || error == ETIMEDOUT ||
         absl::IsDeadlineExceeded(status) || absl::IsUnavailable(status);
}

absl::Status said_it_failed(const PeerMessage& message) {
  return absl::AbortedError("the destination: " + message.failed());
}

}  // namespace

absl::Status SourcePeer::check_cancel() const {
  if (cancelled_) return absl::CancelledError("cancelled; the service runs on here");
  return absl::OkStatus();
}

absl::Status SourcePeer::ask_whether_there() {
  PeerMessage question;
  question.set_are_you_there(true);
  return messages_->send(question);
}

absl::Status SourcePeer::hear_that_it_is_there() {
  if (heard_it_) return absl::OkStatus();
  const Deadline deadline = Deadline::in(kSilence);
  for (;;) {
    if (!messages_->readable() && messages_->acknowledged()) return absl::OkStatus();
    GW_ASSIGN_OR_RETURN(const PeerMessage message, messages_->receive(deadline));
    if (message.message_case() == PeerMessage::kFailed) return said_it_failed(message);
    if (message.still_here()) return absl::OkStatus();
  }
}

absl::StatusOr<PeerMessage> SourcePeer::wait_for_answer(PeerMessage::MessageCase wanted) {
  const absl::Duration patience = frozen_ ? kSilence : kPeerTimeout;
  Deadline silence = Deadline::in(patience);
  for (;;) {
    GW_RETURN_IF_ERROR(check_cancel());
    pollfd one{messages_->fd(), POLLIN, 0};
    const int ready = ::poll(&one, 1, static_cast<int>(absl::ToInt64Milliseconds(kPing)));
    if (ready < 0 && errno != EINTR) return errno_status(errno, "poll(peer)");
    if (ready <= 0 && !silence.passed()) {
      GW_RETURN_IF_ERROR(ask_whether_there());
      continue;
    }
    GW_ASSIGN_OR_RETURN(const PeerMessage message, messages_->receive(silence));
    silence = Deadline::in(patience);
    if (message.message_case() == PeerMessage::kFailed) return said_it_failed(message);
    if (message.still_here()) heard_it_ = frozen_;
    if (message.message_case() == wanted) return message;
  }
}

absl::Status SourcePeer::wait_for_applied() {
  for (;;) {
    GW_ASSIGN_OR_RETURN(const PeerMessage message, messages_->receive(Deadline::in(kPeerTimeout)));
    if (message.message_case() == PeerMessage::kFailed) return said_it_failed(message);
    if (message.applied()) return absl::OkStatus();
  }
}

absl::Status SourcePeer::explain(const absl::Status& status) {
  if (status.ok() || !messages_ || has_failed_ || !of_the_stream(status)) return status;
  // Closed by the peer: its words came before, or there are none and that connection is closed as
  // well. Otherwise the service, which may stand still, waits no longer than it must.
  const int error = errno_of(status);
  const bool closed = error == EPIPE || error == ECONNRESET;
  const Deadline deadline = Deadline::in(closed ? kSilence : kMoment);
  for (;;) {
    const auto message = messages_->receive(deadline);
    if (absl::IsUnavailable(message.status()))
      return annotate(status,
                      "the destination's mover has ended without a word, perhaps for want of "
                      "memory there (see its node's log and its kernel's)");
    if (!message.ok()) return status;
    if (message->message_case() != PeerMessage::kFailed) continue;
    has_failed_ = true;
    return said_it_failed(*message);
  }
}

void SourcePeer::tell(std::string_view why) {
  if (!messages_) return;
  PeerMessage message;
  message.set_failed(escape_non_utf8(why));
  (void)messages_->send(message);
}

}  // namespace godwit::migration
