#include "migration/peer.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/sockios.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <openssl/rand.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <span>

#include "base/status.h"

namespace godwit::migration {
namespace {

constexpr std::string_view kMagic("GWPEER1\0", 8);
constexpr size_t kNonce = 32;
constexpr size_t kMac = 32;
constexpr uint32_t kMaxMessage = uint32_t{16} << 20;
using Mac = std::array<char, kMac>;

absl::Status wait_for(int fd, short events, Deadline deadline, std::string_view what) {
  for (;;) {
    pollfd one{fd, events, 0};
    const int ready = ::poll(&one, 1, deadline.remaining_ms());
    if (ready > 0) return absl::OkStatus();
    if (ready < 0 && errno != EINTR) return errno_status(errno, "poll()");
    if (ready == 0 && deadline.passed())
      return make_error(absl::StatusCode::kDeadlineExceeded, "{}: no answer from the peer in time",
                        what);
  }
}

absl::Status read_all(int fd, std::span<char> to, Deadline deadline) {
  size_t got = 0;
  while (got < to.size()) {
    GW_RETURN_IF_ERROR(wait_for(fd, POLLIN, deadline, "receive"));
    const ssize_t n = ::recv(fd, to.data() + got, to.size() - got, MSG_DONTWAIT);
    if (n == 0) return absl::UnavailableError("the peer closed the connection");
    if (n < 0) {
      if (errno == EINTR || errno == EAGAIN) continue;
      return absl::UnavailableError(fmt::format("recv(peer): {}", std::strerror(errno)));
    }
    got += static_cast<size_t>(n);
  }
  return absl::OkStatus();
}

absl::Status write_all(int fd, std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t n = ::send(fd, bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (n < 0) {
      if (errno == EINTR) continue;
      return absl::UnavailableError(fmt::format("send(peer): {}", std::strerror(errno)));
    }
    bytes.remove_prefix(static_cast<size_t>(n));
  }
  return absl::OkStatus();
}

Mac mac_of(std::string_view token, std::string_view side, char purpose, std::string_view nonces) {
  std::string text(side);
  text.push_back(purpose);
  text.append(nonces);
  Mac mac{};
  unsigned length = kMac;
  ::HMAC(::EVP_sha256(), token.data(), static_cast<int>(token.size()),
         reinterpret_cast<const unsigned char*>(text.data()), text.size(),
         reinterpret_cast<unsigned char*>(mac.data()), &length);
  return mac;
}

absl::Status fill_nonce(std::span<char> nonce) {
  if (::RAND_bytes(reinterpret_cast<unsigned char*>(nonce.data()),
                   static_cast<int>(nonce.size())) != 1)
    return absl::InternalError("RAND_bytes(): no randomness");
  return absl::OkStatus();
}

// On a short path a paced congestion control (BBR, where that is the machine's default) sends by
// timers and guesses too low: half the rate at twice the CPU time, and pages of the freeze wait.
// tcp(7); the round trip is known from the handshake. Where there is no cubic nothing changes.
void choose_congestion_control(int fd) {
  constexpr uint32_t kShortPath_us = 2000;
  tcp_info info{};
  socklen_t length = sizeof info;
  if (::getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &length) != 0) return;
  if (info.tcpi_rtt == 0 || info.tcpi_rtt > kShortPath_us) return;
  constexpr std::string_view kCubic = "cubic";
  ::setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, kCubic.data(), kCubic.size());
}

void tune(int fd) {
  const int on = 1;
  choose_congestion_control(fd);
  ::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  // A black-holed peer is noticed by the kernel too, not only by the movers' own deadlines; by one
  // that only listens as well, which has nothing unacknowledged (tcp(7)).
  set_patience(fd, absl::Seconds(15));
  const int idle_s = 5, interval_s = 2;
  ::setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle_s, sizeof idle_s);
  ::setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &interval_s, sizeof interval_s);
  ::setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
}

using Addresses = std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)>;

absl::StatusOr<Addresses> numeric(const std::string& host, uint16_t port, int flags) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV | flags;
  addrinfo* list = nullptr;
  const int error = ::getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &list);
  if (error != 0)
    return make_error(absl::StatusCode::kInvalidArgument, "\"{}\" is not an IP address: {}", host,
                      ::gai_strerror(error));
  return Addresses(list, &::freeaddrinfo);
}

constexpr size_t kHello = kMagic.size() + 1 + kNonce;
// Strangers get this long, and no more of them than that; the oldest goes first.
constexpr absl::Duration kStrangerPatience = absl::Seconds(2);
constexpr size_t kMaxPending = 64;

size_t readable_bytes(int fd) {
  int bytes = 0;
  return ::ioctl(fd, FIONREAD, &bytes) == 0 && bytes > 0 ? static_cast<size_t>(bytes) : 0;
}

}  // namespace

void prepare_proofs() {
  std::array<char, kNonce> nonce{};
  // What cannot be made now is asked for again when it is needed.
  fill_nonce(nonce).IgnoreError();
  (void)mac_of("", "", 0, {nonce.data(), nonce.size()});
}

absl::StatusOr<Listener> listen_on(const std::string& host) {
  GW_ASSIGN_OR_RETURN(const Addresses addresses, numeric(host, 0, AI_PASSIVE));
  Listener listener;
  listener.fd.reset(::socket(addresses->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!listener.fd) return errno_status(errno, "socket(SOCK_STREAM)");
  if (::bind(listener.fd.get(), addresses->ai_addr, addresses->ai_addrlen) != 0)
    return errno_status(errno, fmt::format("bind({})", host));
  if (::listen(listener.fd.get(), 64) != 0) return errno_status(errno, "listen()");
  sockaddr_storage bound{};
  socklen_t length = sizeof bound;
  if (::getsockname(listener.fd.get(), reinterpret_cast<sockaddr*>(&bound), &length) != 0)
    return errno_status(errno, "getsockname()");
  listener.port = bound.ss_family == AF_INET6
                      ? ntohs(reinterpret_cast<const sockaddr_in6&>(bound).sin6_port)
                      : ntohs(reinterpret_cast<const sockaddr_in&>(bound).sin_port);
  return listener;
}

absl::StatusOr<UniqueFd> connect_to_peer(const std::string& host, uint16_t port,
                                         std::string_view token, Purpose purpose,
                                         Deadline deadline) {
  GW_ASSIGN_OR_RETURN(const Addresses addresses, numeric(host, port, 0));
  UniqueFd fd(::socket(addresses->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd) return errno_status(errno, "socket(SOCK_STREAM)");
  const std::string call = fmt::format("connect({}:{})", host, port);
  if (::connect(fd.get(), addresses->ai_addr, addresses->ai_addrlen) != 0) {
    if (errno != EINPROGRESS) return errno_status(errno, call);
    GW_RETURN_IF_ERROR(wait_for(fd.get(), POLLOUT, deadline, call));
    int error = 0;
    socklen_t length = sizeof error;
    ::getsockopt(fd.get(), SOL_SOCKET, SO_ERROR, &error, &length);
    if (error != 0) return errno_status(error, call);
  }
  if (::fcntl(fd.get(), F_SETFL, 0) != 0) return errno_status(errno, "fcntl(F_SETFL)");
  tune(fd.get());
  std::string hello(kMagic);
  hello.push_back(static_cast<char>(purpose));
  std::string nonces(2 * kNonce, '\0');
  GW_RETURN_IF_ERROR(fill_nonce(std::span(nonces).first(kNonce)));
  hello.append(nonces, 0, kNonce);
  GW_RETURN_IF_ERROR(write_all(fd.get(), hello));
  std::array<char, kNonce + kMac> answer{};
  GW_RETURN_IF_ERROR(read_all(fd.get(), answer, deadline));
  std::memcpy(nonces.data() + kNonce, answer.data(), kNonce);
  const Mac wanted = mac_of(token, "destination", static_cast<char>(purpose), nonces);
  if (::CRYPTO_memcmp(answer.data() + kNonce, wanted.data(), kMac) != 0)
    return absl::UnauthenticatedError(call + ": that is not the mover this migration was sent to");
  const Mac mine = mac_of(token, "source", static_cast<char>(purpose), nonces);
  GW_RETURN_IF_ERROR(write_all(fd.get(), std::string_view(mine.data(), mine.size())));
  return fd;
}

void set_patience(int fd, absl::Duration patience) {
  const auto milliseconds = static_cast<unsigned>(absl::ToInt64Milliseconds(patience));
  ::setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &milliseconds, sizeof milliseconds);
}

void Acceptor::take_in() {
  UniqueFd fd(::accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC));
  if (!fd) return;  // it has gone again
  tune(fd.get());
  if (pending_.size() == kMaxPending) pending_.erase(pending_.begin());
  pending_.push_back({std::move(fd), Deadline::in(kStrangerPatience), kHello, 0, {}});
}

absl::StatusOr<bool> Acceptor::step(Pending& one) const {
  // Less than it needs: the peer is slow, or has closed; recv(2) tells the two apart.
  if (readable_bytes(one.fd.get()) < one.wanted) {
    char byte = 0;
    const ssize_t n = ::recv(one.fd.get(), &byte, 1, MSG_PEEK | MSG_DONTWAIT);
    if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR))
      return absl::UnavailableError("the peer closed the connection");
    return false;
  }
  const Deadline now = Deadline::in(absl::ZeroDuration());
  if (one.purpose == 0) {
    std::array<char, kHello> hello{};
    GW_RETURN_IF_ERROR(read_all(one.fd.get(), hello, now));
    const char purpose = hello[kMagic.size()];
    if (std::string_view(hello.data(), kMagic.size()) != kMagic ||
        purpose < static_cast<char>(Purpose::kStream) ||
        purpose > static_cast<char>(Purpose::kPush))
      return absl::UnauthenticatedError("not a mover of this version");
    one.purpose = purpose;
    one.nonces.assign(hello.data() + kMagic.size() + 1, kNonce);
    one.nonces.resize(2 * kNonce);
    GW_RETURN_IF_ERROR(fill_nonce(std::span(one.nonces).subspan(kNonce)));
    const Mac mine = mac_of(token_, "destination", purpose, one.nonces);
    GW_RETURN_IF_ERROR(
        write_all(one.fd.get(), one.nonces.substr(kNonce) + std::string(mine.data(), mine.size())));
    one.wanted = kMac;
    return false;
  }
  Mac theirs{};
  GW_RETURN_IF_ERROR(read_all(one.fd.get(), theirs, now));
  const Mac wanted = mac_of(token_, "source", one.purpose, one.nonces);
  if (::CRYPTO_memcmp(theirs.data(), wanted.data(), kMac) != 0)
    return absl::UnauthenticatedError("the peer does not know the migration's token");
  return true;
}

absl::StatusOr<Accepted> Acceptor::next(Deadline deadline) {
  // A half-sent message would make poll(2) return at once: then it is looked at this often.
  constexpr absl::Duration kSlice = absl::Milliseconds(10);
  for (;;) {
    for (auto one = pending_.begin(); one != pending_.end();) {
      const absl::StatusOr<bool> done = step(*one);
      if (done.ok() && *done) {
        Accepted accepted{std::move(one->fd), static_cast<Purpose>(one->purpose)};
        pending_.erase(one);
        return accepted;
      }
      one = done.ok() && !one->patience.passed() ? one + 1 : pending_.erase(one);
    }
    std::vector<pollfd> polled = {{listener_, POLLIN, 0}};
    bool half_sent = false;
    for (const Pending& one : pending_) {
      if (readable_bytes(one.fd.get()) > 0) {
        half_sent = true;
        continue;
      }
      polled.push_back({one.fd.get(), POLLIN, 0});
    }
    if (deadline.passed())
      return make_error(absl::StatusCode::kDeadlineExceeded,
                        "accept: no answer from the peer in time");
    const Deadline slice = Deadline::in(half_sent ? kSlice : absl::Milliseconds(200));
    const int wait_ms = std::min(deadline.remaining_ms(), slice.remaining_ms());
    if (::poll(polled.data(), polled.size(), wait_ms) < 0 && errno != EINTR)
      return errno_status(errno, "poll()");
    if (polled[0].revents != 0) take_in();
  }
}

absl::Status PeerMessages::send(const PeerMessage& message) {
  std::string bytes(4, '\0');
  message.AppendToString(&bytes);
  const auto length = static_cast<uint32_t>(bytes.size() - 4);
  std::memcpy(bytes.data(), &length, 4);
  std::lock_guard lock(sending_);
  GW_RETURN_IF_ERROR(write_all(fd_.get(), bytes));
  // An answer makes the kernel keep acknowledgements back for the next one to take along, 40 ms.
  // Not for good (tcp(7)).
  const int on = 1;
  ::setsockopt(fd_.get(), IPPROTO_TCP, TCP_QUICKACK, &on, sizeof on);
  return absl::OkStatus();
}

bool PeerMessages::acknowledged() const {
  // What is not acknowledged, whether it was sent or not (tcp(7)).
  int bytes = 0;
  return ::ioctl(fd_.get(), SIOCOUTQ, &bytes) == 0 && bytes == 0;
}

bool PeerMessages::readable() const {
  pollfd one{fd_.get(), POLLIN, 0};
  return ::poll(&one, 1, 0) > 0;
}

absl::StatusOr<PeerMessage> PeerMessages::receive(Deadline deadline) {
  std::array<char, 4> head{};
  GW_RETURN_IF_ERROR(read_all(fd_.get(), head, deadline));
  uint32_t length = 0;
  std::memcpy(&length, head.data(), 4);
  if (length > kMaxMessage)
    return make_error(absl::StatusCode::kDataLoss, "a message of {} bytes from the peer", length);
  std::string bytes(length, '\0');
  GW_RETURN_IF_ERROR(read_all(fd_.get(), bytes, deadline));
  PeerMessage message;
  if (!message.ParseFromString(bytes))
    return absl::DataLossError("a message from the peer that cannot be read");
  return message;
}

}  // namespace godwit::migration
