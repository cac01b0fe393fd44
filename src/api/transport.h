// The two ways to a daemon: its unix socket, for root and for the user that the daemon runs as
// (SO_PEERCRED, unix(7)), and TCP with mutual TLS, for holders of a certificate of the cluster.
// Nobody else gets as far as a call.
#ifndef GODWIT_API_TRANSPORT_H_
#define GODWIT_API_TRANSPORT_H_

#include <grpcpp/channel.h>
#include <grpcpp/security/credentials.h>
#include <grpcpp/security/server_credentials.h>
#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>
#include <grpcpp/server_context.h>

#include <memory>
#include <string>
#include <thread>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/unique_fd.h"
#include "tls/certificates.h"

namespace godwit::api {

// Server side of TCP: a peer must show a certificate of the same authority.
std::shared_ptr<grpc::ServerCredentials> server_credentials(const tls::Identity& identity);
// What every server of ours allows: keep-alive pings of idle connections, big messages.
void set_server_options(grpc::ServerBuilder& builder);

// The node that calls: the name in its certificate, which TLS has checked. Empty: not by TCP.
std::string node_of(const grpc::ServerContext& context);

// A lazily connected channel to node `name` at `address` ("10.0.0.1:7400"). The other end must
// hold the certificate of exactly that node.
std::shared_ptr<grpc::Channel> peer_channel(const tls::Identity& identity, const std::string& name,
                                            const std::string& address);
// To the daemon behind a unix socket.
std::shared_ptr<grpc::Channel> user_channel(const std::string& socket_path);

// Accepts on a unix socket and hands connections of permitted users to a server; closes the others
// before a byte is read. Stops accepting when destroyed; connections stay with the server.
class UserSocket {
 public:
  // Replaces a socket file that nobody listens on; kAlreadyExists when somebody does.
  static absl::StatusOr<std::unique_ptr<UserSocket>> listen(const std::string& path);
  // `server` must outlive this. Called once.
  void serve(grpc::Server* server);
  ~UserSocket();

 private:
  UserSocket(std::string path, UniqueFd listener, UniqueFd stop)
      : path_(std::move(path)), listener_(std::move(listener)), stop_(std::move(stop)) {}
  void accept_loop(grpc::Server* server);

  std::string path_;
  UniqueFd listener_;
  UniqueFd stop_;  // eventfd
  std::thread thread_;
};

// May a process with this uid talk to a daemon that runs as `own`?
inline bool user_permitted(uid_t uid, uid_t own) { return uid == 0 || uid == own; }

}  // namespace godwit::api

#endif  // GODWIT_API_TRANSPORT_H_
