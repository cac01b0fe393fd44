// The movers' connections: TLS 1.3 with the nodes' certificates unless the administrator has it
// otherwise (tls/), in it a handshake that binds it to the migration by its token, then a stream or
// messages.
//
//   source  -> "GWPEER1\0" purpose(1) nonce_s(32)
//   dest    -> nonce_d(32) HMAC-SHA256(token, "destination" purpose nonce_s nonce_d)
//   source  -> HMAC-SHA256(token, "source" purpose nonce_s nonce_d)
//
// The token is 32 random bytes, made by the destination's daemon for this migration and told to
// the source's over the nodes' mutually authenticated API. Nobody without it gets further, and a
// recorded conversation is of no use for another one.
#ifndef GODWIT_MIGRATION_PEER_H_
#define GODWIT_MIGRATION_PEER_H_

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/clock.h"
#include "base/unique_fd.h"
#include "migration/mover.pb.h"
#include "migration/peer.pb.h"
#include "tls/channel.h"
#include "tls/context.h"

namespace godwit::migration {

enum class Purpose : uint8_t {
  kInvalid = 0,
  kStream = 1,
  kMessages = 2,
  kFaults = 3,  // post-copy: pages that are waited for
  kPush = 4,    // the others
  // Connections of a virtual machine's migration, to be handed on (vm/pump.h).
  kVmControl = 5,  // to the destination's libvirt
  kVmMemory = 6,
  kVmDisks = 7,
};

struct Listener {
  UniqueFd fd;
  uint16_t port = 0;
};
absl::StatusOr<Listener> listen_on(const std::string& host);

// What OpenSSL does once, its configuration and its tables, some ms of CPU time; for a process that
// has time to do it ahead.
void prepare_proofs();

// A connection on which nothing is acknowledged for so long is broken, unless the user says
// otherwise.
inline constexpr absl::Duration kStallTimeout = absl::Seconds(2);
// Below it a machine that is busy would be taken for one that has gone.
inline constexpr absl::Duration kLeastStallTimeout = absl::Seconds(1);
absl::Duration stall_timeout_of(const MoverStart& start);

// What the two ends of a migration have agreed on: how they prove themselves to each other, and how
// long a link may carry nothing.
struct Terms {
  std::string token;
  std::string node;  // whose certificate the other end has to show
  // Null: plain TCP.
  std::shared_ptr<const tls::Context> tls;
  absl::Duration stall = kStallTimeout;
};
// As the daemon said.
absl::StatusOr<Terms> terms_of(const MoverStart& start);

using ChannelPtr = std::unique_ptr<tls::Channel>;

absl::StatusOr<ChannelPtr> connect_to_peer(const std::string& host, uint16_t port,
                                           const Terms& terms, Purpose purpose, Deadline deadline);
struct Accepted {
  ChannelPtr channel;
  Purpose purpose = Purpose::kInvalid;
};
// Takes connections and lets in those that are of the right node and know the token; others are
// closed without a word. All hands are shaken at the same time, so that strangers, however slow,
// keep nobody waiting.
class Acceptor {
 public:
  Acceptor(int listener, Terms terms) : listener_(listener), terms_(std::move(terms)) {}
  absl::StatusOr<Accepted> next(Deadline deadline);

 private:
  // Strangers get this long.
  static constexpr absl::Duration kStrangerPatience = absl::Seconds(2);
  struct Pending {
    ChannelPtr channel;                         // plain until its handshake is done
    std::unique_ptr<tls::Handshake> handshake;  // null: done, or there is none
    Deadline patience = Deadline::in(kStrangerPatience);
    size_t wanted = 0;  // bytes that its next step needs
    std::string got;    // of these
    char purpose = 0;   // 0: its first message has not come
    std::string nonces;
  };
  void take_in();
  // True: authenticated. An error: it is to be closed.
  absl::StatusOr<bool> step(Pending& one) const;
  absl::StatusOr<bool> fill(Pending& one) const;

  int listener_;
  Terms terms_;
  std::vector<Pending> pending_;
};

// A connection on which nothing is acknowledged for this long is broken.
void set_patience(int fd, absl::Duration patience);

// Messages both ways. Any thread may send while one receives.
class PeerMessages {
 public:
  explicit PeerMessages(ChannelPtr channel) : channel_(std::move(channel)) {}
  absl::Status send(const PeerMessage& message);
  // kDeadlineExceeded; kUnavailable when the peer has gone.
  absl::StatusOr<PeerMessage> receive(Deadline deadline);
  // Whether the peer's kernel has acknowledged all that was sent, which ours does at once: the
  // first 16, and again after a silence of its retransmission time (TCP_MAX_QUICKACKS,
  // net/ipv4/tcp_input.c).
  bool acknowledged() const;
  bool readable() const;
  int fd() const { return channel_->fd(); }
  uint64_t wire_sent() const { return channel_->wire_sent(); }

 private:
  ChannelPtr channel_;
  std::mutex sending_;
};

}  // namespace godwit::migration

#endif  // GODWIT_MIGRATION_PEER_H_
