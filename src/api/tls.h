// TLS 1.3 between nodes on blocking sockets (OpenSSL, ssl(7)): for a message whose answer is waited
// for inside a freeze. gRPC hands such a message through three threads on either side, 0.5 ms on a
// busy machine; here it is one write and one read.
//
// The same identities as gRPC's (tls/certificates.h): each end shows a certificate of the cluster's
// authority, and the client checks that the server's is that of the node it means.
#ifndef GODWIT_API_TLS_H_
#define GODWIT_API_TLS_H_

#include <google/protobuf/message_lite.h>
#include <openssl/ssl.h>

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "base/unique_fd.h"
#include "tls/context.h"

namespace godwit::api {

// One thread uses it, but for hang_up(). The process has to ignore SIGPIPE.
class TlsConnection {
 public:
  // Each way that does not get on for `patience` ends in kUnavailable, as does everything else that
  // is the peer's or the network's fault. After that the connection is of no more use.
  static absl::StatusOr<std::unique_ptr<TlsConnection>> connect(const tls::Context& context,
                                                                const std::string& host,
                                                                uint16_t port,
                                                                const std::string& node,
                                                                absl::Duration patience);
  // Of an accepted socket.
  static absl::StatusOr<std::unique_ptr<TlsConnection>> accept(const tls::Context& context, int fd,
                                                               absl::Duration patience);

  // A 32-bit little-endian length, and the message's bytes.
  absl::Status send(const google::protobuf::MessageLite& message);
  absl::Status receive(google::protobuf::MessageLite& message);
  // From here on the peer may be silent for as long as it is there.
  absl::Status be_patient();

 private:
  struct Free {
    void operator()(SSL* ssl) const { SSL_free(ssl); }
  };
  TlsConnection(SSL* ssl, UniqueFd owned) : ssl_(ssl), fd_(std::move(owned)) {}
  static absl::StatusOr<std::unique_ptr<TlsConnection>> make(const tls::Context& context, int fd,
                                                             UniqueFd owned,
                                                             absl::Duration patience);
  absl::Status failed(const char* what, int result) const;
  absl::Status read_all(char* to, size_t size);

  std::unique_ptr<SSL, Free> ssl_;
  UniqueFd fd_;  // of a connection that connect() made
};

}  // namespace godwit::api

#endif  // GODWIT_API_TLS_H_
