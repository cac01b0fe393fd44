#include "migration/peer.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <openssl/rand.h>
#include <poll.h>
#include <sys/socket.h>

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
  if (::RAND_bytes(reinterpret_cast<unsigned char*>(nonce.data()), static_cast<int>(nonce.size())) !=
      1)
    return absl::InternalError("RAND_bytes(): no randomness");
  return absl::OkStatus();
}

void tune(int fd) {
  const int on = 1;
  ::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  // A black-holed peer is noticed by the kernel too, not only by the movers' own deadlines.
  const unsigned timeout_ms = 15'000;
  ::setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &timeout_ms, sizeof timeout_ms);
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

absl::StatusOr<Purpose> shake_hands(int fd, std::string_view token, Deadline deadline) {
  std::array<char, kMagic.size() + 1 + kNonce> hello{};
  GW_RETURN_IF_ERROR(read_all(fd, hello, deadline));
  if (std::string_view(hello.data(), kMagic.size()) != kMagic)
    return absl::UnauthenticatedError("not a mover of this version");
  const char purpose = hello[kMagic.size()];
  std::string nonces(hello.data() + kMagic.size() + 1, kNonce);
  nonces.resize(2 * kNonce);
  GW_RETURN_IF_ERROR(fill_nonce(std::span(nonces).subspan(kNonce)));
  const Mac mine = mac_of(token, "destination", purpose, nonces);
  GW_RETURN_IF_ERROR(
      write_all(fd, nonces.substr(kNonce) + std::string(mine.data(), mine.size())));
  Mac theirs{};
  GW_RETURN_IF_ERROR(read_all(fd, theirs, deadline));
  const Mac wanted = mac_of(token, "source", purpose, nonces);
  if (::CRYPTO_memcmp(theirs.data(), wanted.data(), kMac) != 0)
    return absl::UnauthenticatedError("the peer does not know the migration's token");
  if (purpose != static_cast<char>(Purpose::kStream) &&
      purpose != static_cast<char>(Purpose::kMessages))
    return absl::UnauthenticatedError("the peer wants something unknown");
  return static_cast<Purpose>(purpose);
}

}  // namespace

absl::StatusOr<Listener> listen_on(const std::string& host) {
  GW_ASSIGN_OR_RETURN(const Addresses addresses, numeric(host, 0, AI_PASSIVE));
  Listener listener;
  listener.fd.reset(::socket(addresses->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!listener.fd) return errno_status(errno, "socket(SOCK_STREAM)");
  if (::bind(listener.fd.get(), addresses->ai_addr, addresses->ai_addrlen) != 0)
    return errno_status(errno, fmt::format("bind({})", host));
  if (::listen(listener.fd.get(), 8) != 0) return errno_status(errno, "listen()");
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

absl::StatusOr<Accepted> accept_peer(int listener, std::string_view token, Deadline deadline) {
  for (;;) {
    GW_RETURN_IF_ERROR(wait_for(listener, POLLIN, deadline, "accept"));
    Accepted accepted;
    accepted.fd.reset(::accept4(listener, nullptr, nullptr, SOCK_CLOEXEC));
    if (!accepted.fd) {
      if (errno == EINTR || errno == ECONNABORTED || errno == EAGAIN) continue;
      return errno_status(errno, "accept4()");
    }
    tune(accepted.fd.get());
    // A stranger must not keep the listener busy for longer than this.
    auto purpose = shake_hands(accepted.fd.get(), token, Deadline::in(absl::Seconds(2)));
    if (!purpose.ok()) continue;
    accepted.purpose = *purpose;
    return accepted;
  }
}

absl::Status PeerMessages::send(const PeerMessage& message) {
  std::string bytes(4, '\0');
  message.AppendToString(&bytes);
  const auto length = static_cast<uint32_t>(bytes.size() - 4);
  std::memcpy(bytes.data(), &length, 4);
  return write_all(fd_.get(), bytes);
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
