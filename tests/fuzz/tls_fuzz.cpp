// Fuzzing of TLS's records (libFuzzer): the input says what becomes of a stream of records on its
// way, and how it is read. What is read is a beginning of what was sent, and all of it if nothing
// was done to it; whatever was done ends in an error that names its kind.
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/unique_fd.h"
#include "tls/channel.h"
#include "tls/handshake.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace {

using namespace godwit;       // NOLINT: one file
using namespace godwit::tls;  // NOLINT

void require(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "tls_fuzz: %s (errno %d)\n", what, errno);
  std::abort();
}

struct Pair {
  UniqueFd near, far;
};
Pair socket_pair() {
  int ends[2];
  require(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends) == 0,
          "socketpair");
  return {UniqueFd(ends[0]), UniqueFd(ends[1])};
}

Session session(bool of_far_end) {
  Session keys;
  keys.sending.secret.fill(of_far_end ? 2 : 1);
  keys.receiving.secret.fill(of_far_end ? 1 : 2);
  return keys;
}

class Input {
 public:
  Input(const uint8_t* data, size_t size) : left_(data, size) {}
  bool empty() const { return left_.empty(); }
  size_t number() {  // two bytes
    size_t value = 0;
    for (size_t i = 0; i < 2 && !left_.empty(); ++i, left_ = left_.subspan(1))
      value = value << 8 | left_[0];
    return value;
  }
  std::string rest() { return {left_.begin(), left_.end()}; }

 private:
  std::span<const uint8_t> left_;
};

// Records of a message, as they are on the wire, close_notify at their end.
std::string sealed(std::string_view message, size_t update_after) {
  auto [near, far] = socket_pair();
  auto channel = std::make_unique<Channel>(std::move(near), session(false));
  channel->update_key_after(update_after);
  require(channel->write_all(message, absl::Seconds(10)).ok(), "write");
  channel.reset();
  std::string wire(256 << 10, '\0');
  size_t filled = 0;
  for (ssize_t n = 0; (n = ::recv(far.get(), wire.data() + filled, wire.size() - filled, 0)) > 0;)
    filled += static_cast<size_t>(n);
  wire.resize(filled);
  return wire;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Input input(data, size);
  const std::string message(input.number() % 40'000 + 1, 'm');
  const size_t update_after = input.number() % 4 + 1;
  const size_t ahead = input.number();
  const size_t piece = input.number() + 1;
  std::string wire = sealed(message, update_after);
  const std::string sent = wire;
  switch (input.number() % 4) {
    case 0:  // bytes changed
      while (!input.empty()) {
        const size_t at = input.number() << 1 | 1;
        wire[at % wire.size()] = static_cast<char>(input.number());
      }
      break;
    case 1:  // cut off
      wire.resize(input.number() % (wire.size() + 1));
      break;
    case 2: {  // something put in
      const size_t at = input.number() % (wire.size() + 1);
      wire.insert(at, input.rest().substr(0, 32 << 10));
      break;
    }
    default:  // a part twice
      wire.insert(0, wire.substr(input.number() % wire.size(), input.number() % 20'000));
  }
  auto [stranger, own] = socket_pair();
  require(::send(stranger.get(), wire.data(), wire.size(), MSG_NOSIGNAL) ==
              static_cast<ssize_t>(wire.size()),
          "send");
  stranger.reset();
  Channel channel(std::move(own), session(true));
  if (ahead % 2 == 1) channel.read_ahead(ahead);
  std::string got;
  std::vector<char> room(piece);
  for (;;) {
    // Two parts, as pages are read.
    const iovec to[] = {{room.data(), piece / 2}, {room.data() + piece / 2, piece - piece / 2}};
    const ssize_t n = channel.readv(to);
    if (n > 0) {
      got.append(room.data(), static_cast<size_t>(n));
      require(message.starts_with(got), "what was read was not sent");
      continue;
    }
    if (n == 0) require(got == message, "a part was taken for all");
    if (n < 0) require(errno == EBADMSG || errno == ECONNABORTED, "kind of error");
    require(wire != sent || n == 0, "all was there, and was refused");
    return 0;
  }
}
