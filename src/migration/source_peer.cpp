#include "migration/source_peer.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>

#include "base/status.h"
#include "base/utf8.h"
#include "migration/session.h"

namespace godwit::migration {
namespace {

constexpr absl::Duration kConnectTimeout = absl::Seconds(5);
// A destination that is there may be busy; silence for this long means that its mover hangs.
constexpr absl::Duration kPeerTimeout = absl::Seconds(10);
// That takes nothing of the stream although it is there: its disk may be slow.
constexpr absl::Duration kBusy = absl::Seconds(60);
// At a link, within the stall timeout.
constexpr int kLooks = 8;
constexpr absl::Duration kMoment = absl::Milliseconds(50);
// Encrypted at once: a batch of pages is larger.
constexpr size_t kWriteAhead = size_t{256} << 10;

// As stream/fd_sink.cpp fails when its peer does, and not for a reason of ours.
bool of_the_stream(const absl::Status& status) {
  const int error = errno_of(status);
  return error == EPIPE || error == ECONNRESET || error == ETIMEDOUT ||
         absl::IsDeadlineExceeded(status) || absl::IsUnavailable(status);
}

}  // namespace

absl::Status SourcePeer::connect(bool pages) {
  const Deadline deadline = Deadline::in(kConnectTimeout);
  GW_ASSIGN_OR_RETURN(const Terms terms, terms_of(start_));
  const auto connected = [&](Purpose purpose) {
    return connect_to_peer(start_.peer_host(), static_cast<uint16_t>(start_.peer_port()), terms,
                           purpose, deadline);
  };
  // First: the other end waits only for the two that follow.
  if (pages) {
    GW_ASSIGN_OR_RETURN(faults_, connected(Purpose::kFaults));
    GW_ASSIGN_OR_RETURN(push_, connected(Purpose::kPush));
  }
  GW_ASSIGN_OR_RETURN(stream_, connected(Purpose::kStream));
  // TCP would take a destination that is busy for one that has gone (tcp_probe_timer(),
  // net/ipv4/tcp_timer.c: a window that stays closed for so long, acknowledged or not).
  set_patience(stream_->fd(), kBusy);
  stream_->write_ahead(kWriteAhead);
  GW_ASSIGN_OR_RETURN(ChannelPtr messages, connected(Purpose::kMessages));
  messages_ = std::make_unique<PeerMessages>(std::move(messages));
  set_patience(messages_->fd(), stall_ - stall_ / kLooks);
  sink_ = stream::channel_sink(*stream_, kBusy, stall_ / kLooks, [this] { return look_at_link(); });
  writer_ = std::make_unique<stream::Writer>(*sink_);
  stream::Preamble preamble = preamble_of(start_);
  preamble.migration_id = start_.migration_id();
  if (stream_->encrypted() && start_.stream_version() >= stream::kVersionProven)
    preamble.version = stream::kVersionProven;
  return writer_->preamble(preamble);
}

// While a write of the stream waits. The answers are read by whoever waits for one.
absl::Status SourcePeer::look_at_link() {
  // tcp(7). Where the other end takes nothing there is nothing on its way.
  tcp_info info{};
  socklen_t length = sizeof info;
  if (::getsockopt(stream_->fd(), IPPROTO_TCP, TCP_INFO, &info, &length) == 0 &&
      info.tcpi_unacked > 0 &&
      absl::Milliseconds(info.tcpi_last_ack_recv) >= stall_ - stall_ / kLooks)
    return make_error(absl::StatusCode::kDeadlineExceeded,
                      "nothing of the stream was acknowledged for {}",
                      absl::FormatDuration(stall_));
  pollfd one{messages_->fd(), 0, 0};
  if (::poll(&one, 1, 0) > 0 && (one.revents & POLLERR) != 0)
    return make_error(absl::StatusCode::kDeadlineExceeded, "no message was acknowledged for {}",
                      absl::FormatDuration(stall_));
  return ask_whether_there();
}

void SourcePeer::begin_freeze(bool busy) {
  const absl::Duration patience = std::min(kSilence, stall_);
  if (!busy) set_patience(stream_->fd(), patience);
  set_patience(messages_->fd(), patience);
  frozen_ = true;
}

absl::Status SourcePeer::ask_whether_there() {
  PeerMessage question;
  question.set_are_you_there(true);
  return messages_->send(question);
}

absl::Status SourcePeer::failed(const PeerMessage& message) {
  told_failed_ = true;
  return absl::AbortedError("the destination: " + message.failed());
}

// Its kernel's word is enough: a mover that has ended would have closed the connection, or said why
// before. A message may be the answer to an earlier question.
absl::Status SourcePeer::hear_that_it_is_there() {
  const Deadline deadline = Deadline::in(kSilence);
  for (;;) {
    if (!messages_->readable() && messages_->acknowledged()) return absl::OkStatus();
    GW_ASSIGN_OR_RETURN(const PeerMessage message, messages_->receive(deadline));
    if (message.message_case() == PeerMessage::kFailed) return failed(message);
  }
}

absl::StatusOr<PeerMessage> SourcePeer::wait_for_answer(PeerMessage::MessageCase wanted,
                                                        Deadline until) {
  const absl::Duration patience = frozen_ ? kSilence : kPeerTimeout;
  Deadline silence = Deadline::in(patience);
  for (;;) {
    GW_RETURN_IF_ERROR(go_on_());
    pollfd one{messages_->fd(), POLLIN, 0};
    const int ready = ::poll(&one, 1, static_cast<int>(absl::ToInt64Milliseconds(kPing)));
    if (ready < 0 && errno != EINTR) return errno_status(errno, "poll(peer)");
    if (until.passed())
      return absl::DeadlineExceededError("the destination's mover is there and does not answer");
    if (ready <= 0 && !silence.passed()) {
      GW_RETURN_IF_ERROR(ask_whether_there());
      continue;
    }
    GW_ASSIGN_OR_RETURN(const PeerMessage message, messages_->receive(silence));
    silence = Deadline::in(patience);
    if (message.message_case() == PeerMessage::kFailed) return failed(message);
    if (message.message_case() == wanted) return message;
  }
}

absl::Status SourcePeer::wait_for_applied() {
  return wait_for_answer(PeerMessage::kApplied, Deadline::in(kPeerTimeout)).status();
}

absl::Status SourcePeer::send_held(const std::vector<std::string>& frames) {
  if (frames.empty()) return absl::OkStatus();
  PeerMessage message;
  for (const std::string& frame : frames) message.mutable_held()->add_frame(frame);
  return messages_->send(message);
}

absl::Status SourcePeer::explain(const absl::Status& status) {
  if (status.ok() || !messages_ || told_failed_ || !of_the_stream(status)) return status;
  // Closed by the peer: its words came before, or there are none and that connection is closed as
  // well. Otherwise the service, which may stand still, waits no longer than it must.
  const int error = errno_of(status);
  const bool closed = error == EPIPE || error == ECONNRESET;
  const Deadline deadline = Deadline::in(closed ? kSilence : kMoment);
  for (;;) {
    const auto message = messages_->receive(deadline);
    if (absl::IsUnavailable(message.status()) && errno_of(message.status()) == 0)
      return annotate(status,
                      "the destination's mover has ended without a word, perhaps for want of "
                      "memory there (see its node's log and its kernel's)");
    if (!message.ok())
      return closed ? status
                    : annotate(status,
                               fmt::format("the link to {} carries nothing", start_.peer_node()));
    if (message->message_case() == PeerMessage::kFailed) return failed(*message);
  }
}

void SourcePeer::tell_failed(std::string_view why) {
  if (!messages_) return;
  PeerMessage message;
  message.set_failed(escape_non_utf8(why));
  (void)messages_->send(message);
}

}  // namespace godwit::migration
