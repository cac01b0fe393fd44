// Fuzzing of what one mover reads from the other beside the stream (libFuzzer): frames of a length
// and a protobuf message. Any bytes whatever end in an error that names its kind; what was read,
// sent again, is read as the same.
#include <sys/socket.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <utility>

#include "base/status.h"
#include "migration/peer.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace {

using namespace godwit;             // NOLINT: one file
using namespace godwit::migration;  // NOLINT

// Fits into a unix socket's buffer, so that one thread writes it and reads it afterwards.
constexpr size_t kMaxInput = size_t{64} << 10;

void require(bool condition, const char* what, const absl::Status& status = absl::OkStatus()) {
  if (condition) return;
  std::fprintf(stderr, "peer_fuzz: %s: %s\n", what, status.ToString().c_str());
  std::abort();
}

std::pair<ChannelPtr, ChannelPtr> connection() {
  int ends[2];
  require(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0, "socketpair");
  return {std::make_unique<tls::Channel>(UniqueFd(ends[0])),
          std::make_unique<tls::Channel>(UniqueFd(ends[1]))};
}

Deadline soon() { return Deadline::in(absl::Seconds(10)); }

void check_again(const PeerMessage& message) {
  auto [near, far] = connection();
  PeerMessages sender(std::move(near)), receiver(std::move(far));
  require(sender.send(message).ok(), "what was read cannot be sent");
  const auto again = receiver.receive(soon());
  require(again.ok(), "what was sent cannot be read", again.status());
  require(again->SerializeAsString() == message.SerializeAsString(), "the message differs");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size > kMaxInput) return 0;
  auto [stranger, own] = connection();
  require(
      size == 0 || ::send(stranger->fd(), data, size, MSG_NOSIGNAL) == static_cast<ssize_t>(size),
      "send");
  stranger.reset();
  PeerMessages messages(std::move(own));
  for (;;) {
    const auto message = messages.receive(soon());
    if (!message.ok()) {
      require(absl::IsDataLoss(message.status()) || absl::IsUnavailable(message.status()),
              "kind of error", message.status());
      return 0;
    }
    check_again(*message);
  }
}
