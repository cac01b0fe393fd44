#include "migration/peer.h"

#include <arpa/inet.h>
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

#include "base/log.h"
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
}

// Who mostly listens has nothing unacknowledged, and asks for a sign of life after each second of
// silence (tcp(7)). TCP_USER_TIMEOUT counts from the last one, before the first question: so that
// one that is lost ends nothing.
void expect_signs_of_life(int fd, absl::Duration stall) {
  const int on = 1, second = 1;
  set_patience(fd, stall + absl::Seconds(second));
  ::setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &second, sizeof second);
  ::setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &second, sizeof second);
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
// No more strangers than that; the oldest goes first.
constexpr size_t kMaxPending = 64;
// A peer that takes nothing for so long while it is there has its reasons; TCP's patience is
// shorter.
constexpr absl::Duration kSendPatience = absl::Seconds(15);

}  // namespace

void prepare_proofs() {
  std::array<char, kNonce> nonce{};
  // What cannot be made now is asked for again when it is needed.
  fill_nonce(nonce).IgnoreError();
  (void)mac_of("", "", 0, {nonce.data(), nonce.size()});
  tls::prepare_records();
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

absl::Duration stall_timeout_of(const MoverStart& start) {
  return start.stall_timeout_ns() > 0 ? absl::Nanoseconds(start.stall_timeout_ns()) : kStallTimeout;
}

absl::StatusOr<Terms> terms_of(const MoverStart& start) {
  Terms terms{start.token(), start.peer_node(), nullptr, stall_timeout_of(start)};
  if (!start.has_tls()) return terms;
  const tls::Identity identity{start.tls().authority_pem(),
                               {start.tls().certificate_pem(), start.tls().key_pem()}};
  GW_ASSIGN_OR_RETURN(tls::Context context, tls::Context::make(identity));
  terms.tls = std::make_shared<const tls::Context>(std::move(context));
  return terms;
}

namespace {

absl::StatusOr<UniqueFd> connect_socket(const std::string& host, uint16_t port,
                                        const std::string& call, absl::Duration stall,
                                        Deadline deadline) {
  GW_ASSIGN_OR_RETURN(const Addresses addresses, numeric(host, port, 0));
  UniqueFd fd(::socket(addresses->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd) return errno_status(errno, "socket(SOCK_STREAM)");
  if (::connect(fd.get(), addresses->ai_addr, addresses->ai_addrlen) != 0) {
    if (errno != EINPROGRESS) return errno_status(errno, call);
    GW_RETURN_IF_ERROR(wait_for(fd.get(), POLLOUT, deadline, call));
    int error = 0;
    socklen_t length = sizeof error;
    ::getsockopt(fd.get(), SOL_SOCKET, SO_ERROR, &error, &length);
    if (error != 0) return errno_status(error, call);
  }
  tune(fd.get());
  set_patience(fd.get(), stall);
  return fd;
}

absl::StatusOr<ChannelPtr> shake_hands(UniqueFd fd, const Terms& terms, Deadline deadline) {
  if (terms.tls == nullptr) return std::make_unique<tls::Channel>(std::move(fd));
  GW_ASSIGN_OR_RETURN(const auto handshake, tls::Handshake::begin(*terms.tls, tls::Side::kConnected,
                                                                  fd.get(), terms.node));
  for (;;) {
    GW_ASSIGN_OR_RETURN(const bool done, handshake->step());
    if (done) break;
    GW_RETURN_IF_ERROR(
        wait_for(fd.get(), handshake->wants_write() ? POLLOUT : POLLIN, deadline, "TLS"));
  }
  GW_ASSIGN_OR_RETURN(const tls::Session session, handshake->session());
  return std::make_unique<tls::Channel>(std::move(fd), session);
}

}  // namespace

absl::StatusOr<ChannelPtr> connect_to_peer(const std::string& host, uint16_t port,
                                           const Terms& terms, Purpose purpose, Deadline deadline) {
  const std::string call = fmt::format("connect({}:{})", host, port);
  GW_ASSIGN_OR_RETURN(UniqueFd fd, connect_socket(host, port, call, terms.stall, deadline));
  absl::StatusOr<ChannelPtr> shaken = shake_hands(std::move(fd), terms, deadline);
  if (!shaken.ok()) return annotate(shaken.status(), call);
  ChannelPtr channel = *std::move(shaken);
  std::string hello(kMagic);
  hello.push_back(static_cast<char>(purpose));
  std::string nonces(2 * kNonce, '\0');
  GW_RETURN_IF_ERROR(fill_nonce(std::span(nonces).first(kNonce)));
  hello.append(nonces, 0, kNonce);
  GW_RETURN_IF_ERROR(channel->write_all(hello, kSendPatience));
  std::array<char, kNonce + kMac> answer{};
  GW_RETURN_IF_ERROR(annotate(channel->read_all(answer, deadline), call));
  std::memcpy(nonces.data() + kNonce, answer.data(), kNonce);
  const Mac wanted = mac_of(terms.token, "destination", static_cast<char>(purpose), nonces);
  if (::CRYPTO_memcmp(answer.data() + kNonce, wanted.data(), kMac) != 0)
    return absl::UnauthenticatedError(call + ": that is not the mover this migration was sent to");
  const Mac mine = mac_of(terms.token, "source", static_cast<char>(purpose), nonces);
  GW_RETURN_IF_ERROR(channel->write_all(std::string_view(mine.data(), mine.size()), kSendPatience));
  return channel;
}

void set_patience(int fd, absl::Duration patience) {
  const auto milliseconds = static_cast<unsigned>(absl::ToInt64Milliseconds(patience));
  ::setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &milliseconds, sizeof milliseconds);
}

void Acceptor::take_in() {
  UniqueFd fd(::accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
  if (!fd) return;  // it has gone again
  tune(fd.get());
  expect_signs_of_life(fd.get(), terms_.stall);
  if (pending_.size() == kMaxPending) pending_.erase(pending_.begin());
  Pending one;
  if (terms_.tls != nullptr) {
    auto handshake =
        tls::Handshake::begin(*terms_.tls, tls::Side::kAccepted, fd.get(), terms_.node);
    if (!handshake.ok()) return;
    one.handshake = *std::move(handshake);
  }
  one.channel = std::make_unique<tls::Channel>(std::move(fd));
  one.wanted = kHello;
  pending_.push_back(std::move(one));
}

// True: what its next step needs is there.
absl::StatusOr<bool> Acceptor::fill(Pending& one) const {
  while (one.got.size() < one.wanted) {
    const size_t had = one.got.size();
    one.got.resize(one.wanted);
    const iovec room{one.got.data() + had, one.wanted - had};
    const ssize_t n = one.channel->readv({&room, 1});
    one.got.resize(had + static_cast<size_t>(std::max<ssize_t>(n, 0)));
    if (n > 0 || (n < 0 && errno == EINTR)) continue;
    if (n < 0 && errno == EAGAIN) return false;
    return absl::UnavailableError("the peer closed the connection");
  }
  return true;
}

absl::StatusOr<bool> Acceptor::step(Pending& one) const {
  if (one.handshake != nullptr) {
    GW_ASSIGN_OR_RETURN(const bool done, one.handshake->step());
    if (!done) return false;
    GW_ASSIGN_OR_RETURN(const tls::Session session, one.handshake->session());
    one.handshake.reset();
    GW_ASSIGN_OR_RETURN(tls::Channel::Handed plain, std::move(*one.channel).hand_over());
    one.channel = std::make_unique<tls::Channel>(std::move(plain.fd), session);
  }
  GW_ASSIGN_OR_RETURN(bool there, fill(one));
  if (!there) return false;
  if (one.purpose == 0) {
    const std::string hello = std::exchange(one.got, {});
    const char purpose = hello[kMagic.size()];
    if (std::string_view(hello).substr(0, kMagic.size()) != kMagic ||
        purpose < static_cast<char>(Purpose::kStream) ||
        purpose > static_cast<char>(Purpose::kVmDisks))
      return absl::UnauthenticatedError("not a mover of this version");
    one.purpose = purpose;
    one.nonces = hello.substr(kMagic.size() + 1);
    one.nonces.resize(2 * kNonce);
    GW_RETURN_IF_ERROR(fill_nonce(std::span(one.nonces).subspan(kNonce)));
    const Mac mine = mac_of(terms_.token, "destination", purpose, one.nonces);
    // So little has room, or the stranger does not read.
    GW_RETURN_IF_ERROR(one.channel->write_all(
        one.nonces.substr(kNonce) + std::string(mine.data(), mine.size()), absl::ZeroDuration()));
    one.wanted = kMac;
    GW_ASSIGN_OR_RETURN(there, fill(one));
    if (!there) return false;
  }
  const Mac wanted = mac_of(terms_.token, "source", one.purpose, one.nonces);
  if (::CRYPTO_memcmp(one.got.data(), wanted.data(), kMac) != 0)
    return absl::UnauthenticatedError("the peer does not know the migration's token");
  return true;
}

absl::StatusOr<Accepted> Acceptor::next(Deadline deadline) {
  constexpr absl::Duration kLook = absl::Milliseconds(200);  // at who is to go
  for (;;) {
    for (auto one = pending_.begin(); one != pending_.end();) {
      const absl::StatusOr<bool> done = step(*one);
      if (done.ok() && *done) {
        Accepted accepted{std::move(one->channel), static_cast<Purpose>(one->purpose)};
        pending_.erase(one);
        return accepted;
      }
      // Of a node, whoever else may knock.
      if (absl::IsUnauthenticated(done.status()))
        log_warning("a connection was refused: {}", message_of(done.status()));
      one = done.ok() && !one->patience.passed() ? one + 1 : pending_.erase(one);
    }
    std::vector<pollfd> polled = {{listener_, POLLIN, 0}};
    for (const Pending& one : pending_) {
      const bool writes = one.handshake != nullptr && one.handshake->wants_write();
      polled.push_back({one.channel->fd(), static_cast<short>(writes ? POLLOUT : POLLIN), 0});
    }
    if (deadline.passed())
      return make_error(absl::StatusCode::kDeadlineExceeded,
                        "accept: no answer from the peer in time");
    const int wait_ms = std::min(deadline.remaining_ms(), Deadline::in(kLook).remaining_ms());
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
  GW_RETURN_IF_ERROR(channel_->write_all(bytes, kSendPatience));
  // An answer makes the kernel keep acknowledgements back for the next one to take along, 40 ms.
  // Not for good (tcp(7)).
  const int on = 1;
  ::setsockopt(channel_->fd(), IPPROTO_TCP, TCP_QUICKACK, &on, sizeof on);
  return absl::OkStatus();
}

bool PeerMessages::acknowledged() const {
  // What is not acknowledged, whether it was sent or not (tcp(7)).
  int bytes = 0;
  return ::ioctl(channel_->fd(), SIOCOUTQ, &bytes) == 0 && bytes == 0;
}

bool PeerMessages::readable() const {
  if (channel_->unread()) return true;
  pollfd one{channel_->fd(), POLLIN, 0};
  return ::poll(&one, 1, 0) > 0;
}

absl::StatusOr<PeerMessage> PeerMessages::receive(Deadline deadline) {
  std::array<char, 4> head{};
  GW_RETURN_IF_ERROR(channel_->read_all(head, deadline));
  uint32_t length = 0;
  std::memcpy(&length, head.data(), 4);
  if (length > kMaxMessage)
    return make_error(absl::StatusCode::kDataLoss, "a message of {} bytes from the peer", length);
  std::string bytes(length, '\0');
  GW_RETURN_IF_ERROR(channel_->read_all(bytes, deadline));
  PeerMessage message;
  if (!message.ParseFromString(bytes))
    return absl::DataLossError("a message from the peer that cannot be read");
  return message;
}

}  // namespace godwit::migration
