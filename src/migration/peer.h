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
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/clock.h"
#include "base/unique_fd.h"
#include "migration/peer.pb.h"

namespace godwit::migration {

enum class Purpose : uint8_t { kInvalid = 0, kStream = 1, kMessages = 2 };

struct Listener {
  UniqueFd fd;
  uint16_t port = 0;
};
absl::StatusOr<Listener> listen_on(const std::string& host);

absl::StatusOr<UniqueFd> connect_to_peer(const std::string& host, uint16_t port,
                                         std::string_view token, Purpose purpose,
                                         Deadline deadline);
struct Accepted {
  UniqueFd fd;
  Purpose purpose = Purpose::kInvalid;
};
// The next connection that knows the token; others are closed without a word.
absl::StatusOr<Accepted> accept_peer(int listener, std::string_view token, Deadline deadline);

// Messages both ways. One thread may send while another receives.
class PeerMessages {
 public:
  explicit PeerMessages(UniqueFd fd) : fd_(std::move(fd)) {}
  absl::Status send(const PeerMessage& message);
  // kDeadlineExceeded; kUnavailable when the peer has gone.
  absl::StatusOr<PeerMessage> receive(Deadline deadline);
  int fd() const { return fd_.get(); }

 private:
  UniqueFd fd_;
};

}  // namespace godwit::migration

#endif  // GODWIT_MIGRATION_PEER_H_
