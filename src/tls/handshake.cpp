#include "tls/handshake.h"

#include <openssl/err.h>
#include <openssl/x509v3.h>

#include <cerrno>
#include <charconv>
#include <cstring>
#include <string_view>

#include "base/status.h"

namespace godwit::tls {
namespace {

constexpr size_t kEncodedDirection = 32 + 8;

void append(std::string& to, const Direction& direction) {
  to.append(reinterpret_cast<const char*>(direction.secret.data()), direction.secret.size());
  to.append(reinterpret_cast<const char*>(&direction.sequence), sizeof direction.sequence);
}

Direction direction_at(const char* from) {
  Direction direction;
  std::memcpy(direction.secret.data(), from, direction.secret.size());
  std::memcpy(&direction.sequence, from + direction.secret.size(), sizeof direction.sequence);
  return direction;
}

}  // namespace

std::string encode(const Session& session) {
  std::string bytes;
  append(bytes, session.sending);
  append(bytes, session.receiving);
  return bytes;
}

absl::StatusOr<Session> decode(const std::string& bytes) {
  if (bytes.size() != 2 * kEncodedDirection)
    return make_error(absl::StatusCode::kInvalidArgument, "a TLS session of {} bytes",
                      bytes.size());
  return Session{direction_at(bytes.data()), direction_at(bytes.data() + kEncodedDirection)};
}

absl::StatusOr<std::unique_ptr<Handshake>> Handshake::begin(const Context& context, Side side,
                                                            int fd, const std::string& node) {
  std::unique_ptr<Handshake> made(new Handshake(SSL_new(context.get()), side, node));
  SSL* const ssl = made->ssl_.get();
  if (ssl == nullptr || SSL_set_fd(ssl, fd) != 1 || SSL_set1_host(ssl, node.c_str()) != 1)
    return make_error(absl::StatusCode::kInternal, "TLS with node {}: {}", node, last_error());
  SSL_set_hostflags(ssl, X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS);
  SSL_set_app_data(ssl, reinterpret_cast<char*>(made.get()));
  if (side == Side::kConnected)
    SSL_set_connect_state(ssl);
  else
    SSL_set_accept_state(ssl);
  return made;
}

// "LABEL <client's random> <secret>", both in hexadecimal.
void Handshake::take_secret(const SSL* ssl, const char* line) {
  auto* self = reinterpret_cast<Handshake*>(SSL_get_app_data(ssl));
  if (self == nullptr) return;
  const std::string_view text(line);
  const bool client = text.starts_with("CLIENT_TRAFFIC_SECRET_0 ");
  if (!client && !text.starts_with("SERVER_TRAFFIC_SECRET_0 ")) return;
  const bool ours = client == (self->side_ == Side::kConnected);
  Direction& to = ours ? self->session_.sending : self->session_.receiving;
  const std::string_view hex = text.substr(text.rfind(' ') + 1);
  if (hex.size() != 2 * to.secret.size()) return;
  for (size_t i = 0; i < to.secret.size(); ++i)
    std::from_chars(hex.data() + 2 * i, hex.data() + 2 * i + 2, to.secret.at(i), 16);
  self->secrets_ |= ours ? 1 : 2;
}

absl::StatusOr<bool> Handshake::step() {
  errno = 0;
  ERR_clear_error();
  const int result = SSL_do_handshake(ssl_.get());
  const int errno_then = errno;
  if (result == 1) return true;
  const int error = SSL_get_error(ssl_.get(), result);
  wants_write_ = error == SSL_ERROR_WANT_WRITE;
  if (wants_write_ || error == SSL_ERROR_WANT_READ) return false;
  return failed(error, errno_then);
}

absl::Status Handshake::failed(int error, int errno_then) const {
  const long verified = SSL_get_verify_result(ssl_.get());
  const std::string why = last_error();
  if (verified != X509_V_OK)
    return make_error(absl::StatusCode::kUnauthenticated,
                      "TLS: the peer has not shown a certificate of node {}: {}", node_,
                      X509_verify_cert_error_string(verified));
  if (error == SSL_ERROR_SYSCALL)
    return make_error(absl::StatusCode::kUnavailable, "TLS with node {}: {}", node_,
                      errno_then == 0 ? "the peer has gone" : std::strerror(errno_then));
  return make_error(absl::StatusCode::kUnavailable, "TLS with node {}: {}", node_, why);
}

absl::StatusOr<Session> Handshake::session() {
  if (secrets_ != 3 || SSL_has_pending(ssl_.get()) != 0)
    return make_error(absl::StatusCode::kInternal, "TLS with node {}: no traffic secrets", node_);
  return session_;
}

}  // namespace godwit::tls
