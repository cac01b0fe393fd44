// A TLS 1.3 handshake of OpenSSL's on a connected socket that does not block, step by step, so that
// one thread can shake many hands. What it ends with is a Session, for a Channel. The process has
// to ignore SIGPIPE.
#ifndef GODWIT_TLS_HANDSHAKE_H_
#define GODWIT_TLS_HANDSHAKE_H_

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "tls/context.h"
#include "tls/record.h"

namespace godwit::tls {

// Both directions of an authenticated connection, as one end has them.
struct Session {
  Direction sending;
  Direction receiving;
};
// For a process of this machine that a connection is handed to, over a socket that only root can
// read.
std::string encode(const Session& session);
absl::StatusOr<Session> decode(const std::string& bytes);

enum class Side { kConnected, kAccepted };

class Handshake {
 public:
  // The peer's certificate has to be that of `node`. `context` and `fd` must outlive this.
  static absl::StatusOr<std::unique_ptr<Handshake>> begin(const Context& context, Side side, int fd,
                                                          const std::string& node);
  Handshake(const Handshake&) = delete;
  Handshake& operator=(const Handshake&) = delete;

  // True: done. False: to be called again when the socket is readable, or, if wants_write(),
  // writable. kUnauthenticated: the peer is not who it should be; kUnavailable: it has gone, or
  // does not speak TLS. In TLS 1.3 the connecting end is done before the other has looked at its
  // certificate: its refusal is read from the channel.
  absl::StatusOr<bool> step();
  bool wants_write() const { return wants_write_; }
  // The one way that OpenSSL has of giving traffic secrets away (SSL_CTX_set_keylog_callback(3)).
  static void take_secret(const SSL* ssl, const char* line);
  // Once, when it is done. Nothing has been read from the socket beyond the handshake.
  absl::StatusOr<Session> session();

 private:
  struct Free {
    void operator()(SSL* ssl) const { SSL_free(ssl); }
  };
  Handshake(SSL* ssl, Side side, std::string node)
      : ssl_(ssl), side_(side), node_(std::move(node)) {}
  absl::Status failed(int error, int errno_then) const;

  std::unique_ptr<SSL, Free> ssl_;
  Side side_;
  std::string node_;
  bool wants_write_ = false;
  Session session_;
  int secrets_ = 0;
};

}  // namespace godwit::tls

#endif  // GODWIT_TLS_HANDSHAKE_H_
