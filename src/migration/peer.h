// The movers' connections: authenticated by the migration's token, then a stream or messages.
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
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/clock.h"
#include "base/unique_fd.h"
#include "migration/peer.pb.h"

namespace godwit::migration {

enum class Purpose : uint8_t {
  kInvalid = 0,
  kStream = 1,
  kMessages = 2,
  kFaults = 3,  // post-copy: pages that are waited for
  kPush = 4,    // the others
};

struct Listener {
  UniqueFd fd;
  uint16_t port = 0;
};
absl::StatusOr<Listener> listen_on(const std::string& host);

// What OpenSSL does at its first proof and its first nonce, its configuration and its tables, 2 ms
// of CPU time; for a process that has time to do it ahead.
void prepare_proofs();

absl::StatusOr<UniqueFd> connect_to_peer(const std::string& host, uint16_t port,
                                         std::string_view token, Purpose purpose,
                                         Deadline deadline);
struct Accepted {
  UniqueFd fd;
  Purpose purpose = Purpose::kInvalid;
};
// Takes connections and lets in those that know the token; others are closed without a word. All
// hands are shaken at the same time, so that strangers, however slow, keep nobody waiting.
class Acceptor {
 public:
  Acceptor(int listener, std::string_view token) : listener_(listener), token_(token) {}
  absl::StatusOr<Accepted> next(Deadline deadline);

 private:
  struct Pending {
    UniqueFd fd;
    Deadline patience;
    size_t wanted = 0;  // bytes that its next step needs
    char purpose = 0;   // 0: its first message has not come
    std::string nonces;
  };
  void take_in();
  // True: authenticated. An error: it is to be closed.
  absl::StatusOr<bool> step(Pending& one) const;

  int listener_;
  std::string token_;
  std::vector<Pending> pending_;
};

// In post-copy: the destination's shim lets go as early (pages/fault_service.cpp).
inline constexpr absl::Duration kPageSilence = absl::Seconds(2);

// A connection on which nothing is acknowledged for this long is broken.
void set_patience(int fd, absl::Duration patience);

// Messages both ways. Any thread may send while one receives.
class PeerMessages {
 public:
  explicit PeerMessages(UniqueFd fd) : fd_(std::move(fd)) {}
  absl::Status send(const PeerMessage& message);
  // kDeadlineExceeded; kUnavailable when the peer has gone.
  absl::StatusOr<PeerMessage> receive(Deadline deadline);
  // Whether the peer's kernel has acknowledged all that was sent, which ours does at once: the
  // first 16, and again after a silence of its retransmission time (TCP_MAX_QUICKACKS,
  // net/ipv4/tcp_input.c).
  bool acknowledged() const;
  bool readable() const;
  int fd() const { return fd_.get(); }

 private:
  UniqueFd fd_;
  std::mutex sending_;
};

}  // namespace godwit::migration

#endif  // GODWIT_MIGRATION_PEER_H_
