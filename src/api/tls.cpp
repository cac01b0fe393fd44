#include "api/tls.h"

#include <netdb.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <openssl/x509v3.h>
#include <sys/socket.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <string_view>

#include "base/status.h"

namespace godwit::api {
namespace {

constexpr uint32_t kMaxMessage = uint32_t{1} << 20;

absl::Status invalid(std::string_view what) {
  return make_error(absl::StatusCode::kInvalidArgument, "TLS: {}: {}", what, tls::last_error());
}

absl::Status set_patience(int fd, absl::Duration patience) {
  const timeval time = absl::ToTimeval(patience);
  for (const int option : {SO_RCVTIMEO, SO_SNDTIMEO})
    if (::setsockopt(fd, SOL_SOCKET, option, &time, sizeof time) != 0)
      return errno_status(errno, "setsockopt(SO_RCVTIMEO)");
  return absl::OkStatus();
}

absl::StatusOr<UniqueFd> connect_to(const std::string& host, uint16_t port,
                                    absl::Duration patience) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV;
  addrinfo* list = nullptr;
  const int error = ::getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &list);
  if (error != 0)
    return make_error(absl::StatusCode::kInvalidArgument, "\"{}\" is not an IP address: {}", host,
                      ::gai_strerror(error));
  const std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)> address(list, &::freeaddrinfo);
  UniqueFd fd(::socket(address->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!fd) return errno_status(errno, "socket(SOCK_STREAM)");
  // connect(2) waits for no longer than SO_SNDTIMEO (socket(7)).
  GW_RETURN_IF_ERROR(set_patience(fd.get(), patience));
  if (::connect(fd.get(), address->ai_addr, address->ai_addrlen) != 0)
    return make_error(absl::StatusCode::kUnavailable, "connect({}, {}): {}", host, port,
                      std::strerror(errno));
  return fd;
}

}  // namespace

absl::StatusOr<std::unique_ptr<TlsConnection>> TlsConnection::make(const tls::Context& context,
                                                                   int fd, UniqueFd owned,
                                                                   absl::Duration patience) {
  GW_RETURN_IF_ERROR(set_patience(fd, patience));
  const int on = 1;
  if (::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on) != 0)
    return errno_status(errno, "setsockopt(TCP_NODELAY)");
  std::unique_ptr<TlsConnection> made(new TlsConnection(SSL_new(context.get()), std::move(owned)));
  if (!made->ssl_ || SSL_set_fd(made->ssl_.get(), fd) != 1) return invalid("SSL_new()");
  return made;
}

absl::StatusOr<std::unique_ptr<TlsConnection>> TlsConnection::connect(const tls::Context& context,
                                                                      const std::string& host,
                                                                      uint16_t port,
                                                                      const std::string& node,
                                                                      absl::Duration patience) {
  GW_ASSIGN_OR_RETURN(UniqueFd fd, connect_to(host, port, patience));
  const int number = fd.get();
  GW_ASSIGN_OR_RETURN(auto made, make(context, number, std::move(fd), patience));
  SSL* const ssl = made->ssl_.get();
  SSL_set_hostflags(ssl, X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS);
  if (SSL_set1_host(ssl, node.c_str()) != 1) return invalid(node);
  const int result = SSL_connect(ssl);
  if (result != 1) return made->failed("SSL_connect()", result);
  return made;
}

absl::StatusOr<std::unique_ptr<TlsConnection>> TlsConnection::accept(const tls::Context& context,
                                                                     int fd,
                                                                     absl::Duration patience) {
  GW_ASSIGN_OR_RETURN(auto made, make(context, fd, UniqueFd(), patience));
  const int result = SSL_accept(made->ssl_.get());
  if (result != 1) return made->failed("SSL_accept()", result);
  return made;
}

absl::Status TlsConnection::be_patient() {
  const int fd = SSL_get_fd(ssl_.get());
  const int on = 1, idle_s = 5, interval_s = 2, count = 3;
  ::setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle_s, sizeof idle_s);
  ::setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &interval_s, sizeof interval_s);
  ::setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &count, sizeof count);
  if (::setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on) != 0)
    return errno_status(errno, "setsockopt(SO_KEEPALIVE)");
  const timeval never{};
  if (::setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &never, sizeof never) != 0)
    return errno_status(errno, "setsockopt(SO_RCVTIMEO)");
  return absl::OkStatus();
}

absl::Status TlsConnection::failed(const char* what, int result) const {
  const int error = errno;
  switch (SSL_get_error(ssl_.get(), result)) {
    case SSL_ERROR_ZERO_RETURN:
      return make_error(absl::StatusCode::kUnavailable, "{}: the peer has closed", what);
    case SSL_ERROR_WANT_READ:
    case SSL_ERROR_WANT_WRITE:
      return make_error(absl::StatusCode::kUnavailable, "{}: no answer in time", what);
    case SSL_ERROR_SYSCALL:
      ERR_clear_error();
      return make_error(absl::StatusCode::kUnavailable, "{}: {}", what,
                        error == 0 ? "the peer has gone" : std::strerror(error));
    default:
      return make_error(absl::StatusCode::kUnavailable, "{}: {}", what, tls::last_error());
  }
}

absl::Status TlsConnection::send(const google::protobuf::MessageLite& message) {
  const std::string body = message.SerializeAsString();
  const auto size = static_cast<uint32_t>(body.size());
  std::string bytes;
  for (int shift = 0; shift < 32; shift += 8)
    bytes.push_back(static_cast<char>((size >> shift) & 0xff));
  bytes += body;
  errno = 0;
  const int sent = SSL_write(ssl_.get(), bytes.data(), static_cast<int>(bytes.size()));
  return sent > 0 ? absl::OkStatus() : failed("SSL_write()", sent);
}

absl::Status TlsConnection::read_all(char* to, size_t size) {
  while (size > 0) {
    errno = 0;
    const int got = SSL_read(ssl_.get(), to, static_cast<int>(size));
    if (got <= 0) return failed("SSL_read()", got);
    to += got;
    size -= static_cast<size_t>(got);
  }
  return absl::OkStatus();
}

absl::Status TlsConnection::receive(google::protobuf::MessageLite& message) {
  std::array<char, 4> length{};
  GW_RETURN_IF_ERROR(read_all(length.data(), length.size()));
  uint32_t size = 0;
  for (size_t i = 0; i < length.size(); ++i)
    size |= static_cast<uint32_t>(static_cast<unsigned char>(length.at(i))) << (8 * i);
  if (size > kMaxMessage)
    return make_error(absl::StatusCode::kUnavailable, "a message of {} bytes", size);
  std::string bytes(size, '\0');
  GW_RETURN_IF_ERROR(read_all(bytes.data(), bytes.size()));
  if (!message.ParseFromString(bytes))
    return absl::UnavailableError("a message that does not parse");
  return absl::OkStatus();
}

}  // namespace godwit::api
