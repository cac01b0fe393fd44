#include "api/transport.h"

#include <fcntl.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/server_posix.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <cstring>

#include "base/log.h"
#include "base/status.h"

namespace godwit::api {
namespace {

// A link that is cut silently is noticed after this long without an answer.
constexpr int kPingEveryMs = 5'000;
constexpr int kPingAnswerMs = 3'000;
// Of one attempt, TLS included (gRPC has no other name for it): a busy machine needs its time, and
// a link that is back is found within two seconds, since TCP asks again after one.
constexpr int kConnectWithinMs = 3'000;
constexpr int kReconnectFirstMs = 100;
constexpr int kReconnectMostMs = 1'000;

absl::StatusOr<sockaddr_un> unix_address(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof address.sun_path)
    return make_error(absl::StatusCode::kInvalidArgument,
                      "{}: a socket's path has at most {} bytes", path,
                      sizeof address.sun_path - 1);
  std::memcpy(address.sun_path, path.data(), path.size());
  return address;
}

const sockaddr* generic(const sockaddr_un& address) {
  return reinterpret_cast<const sockaddr*>(&address);
}

bool somebody_listens(const sockaddr_un& address) {
  UniqueFd probe(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  return probe && ::connect(probe.get(), generic(address), sizeof address) == 0;
}

}  // namespace

std::shared_ptr<grpc::ServerCredentials> server_credentials(const tls::Identity& identity) {
  grpc::SslServerCredentialsOptions options(
      GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY);
  options.pem_root_certs = identity.authority_pem;
  options.pem_key_cert_pairs.push_back({identity.own.key_pem, identity.own.certificate_pem});
  return grpc::SslServerCredentials(options);
}

void set_server_options(grpc::ServerBuilder& builder) {
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 1'000);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MAX_PING_STRIKES, 0);
  // Two daemons on one address would be two owners of its services.
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
}

std::string node_of(const grpc::ServerContext& context) {
  const auto peer = context.auth_context();
  if (peer == nullptr || !peer->IsPeerAuthenticated()) return "";
  const auto names = peer->FindPropertyValues(GRPC_X509_CN_PROPERTY_NAME);
  return names.size() == 1 ? std::string(names[0].data(), names[0].size()) : "";
}

std::shared_ptr<grpc::Channel> peer_channel(const tls::Identity& identity, const std::string& name,
                                            const std::string& address) {
  grpc::SslCredentialsOptions options;
  options.pem_root_certs = identity.authority_pem;
  options.pem_private_key = identity.own.key_pem;
  options.pem_cert_chain = identity.own.certificate_pem;
  grpc::ChannelArguments arguments;
  arguments.SetSslTargetNameOverride(name);
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, kPingEveryMs);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kPingAnswerMs);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  arguments.SetInt(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, kReconnectFirstMs);
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, kConnectWithinMs);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, kReconnectMostMs);
  // Connections are shared by equal arguments; a node that took over an address is another peer.
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  return grpc::CreateCustomChannel("ipv4:" + address, grpc::SslCredentials(options), arguments);
}

std::shared_ptr<grpc::Channel> user_channel(const std::string& socket_path) {
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  return grpc::CreateCustomChannel("unix:" + socket_path, grpc::InsecureChannelCredentials(),
                                   arguments);
}

absl::StatusOr<std::unique_ptr<UserSocket>> UserSocket::listen(const std::string& path) {
  GW_ASSIGN_OR_RETURN(const sockaddr_un address, unix_address(path));
  if (somebody_listens(address))
    return make_error(absl::StatusCode::kAlreadyExists,
                      "{}: a daemon listens here already; give this one another --socket", path);
  ::unlink(path.c_str());
  UniqueFd listener(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!listener) return errno_status(errno, "socket(AF_UNIX)");
  if (::bind(listener.get(), generic(address), sizeof address) != 0)
    return errno_status(errno, fmt::format("bind({})", path));
  if (::chmod(path.c_str(), 0600) != 0) return errno_status(errno, fmt::format("chmod({})", path));
  if (::listen(listener.get(), SOMAXCONN) != 0)
    return errno_status(errno, fmt::format("listen({})", path));
  UniqueFd stop(::eventfd(0, EFD_CLOEXEC));
  if (!stop) return errno_status(errno, "eventfd()");
  return std::unique_ptr<UserSocket>(new UserSocket(path, std::move(listener), std::move(stop)));
}

void UserSocket::serve(grpc::Server* server) {
  thread_ = std::thread([this, server] { accept_loop(server); });
}

void UserSocket::accept_loop(grpc::Server* server) {
  while (true) {
    pollfd polled[] = {{listener_.get(), POLLIN, 0}, {stop_.get(), POLLIN, 0}};
    if (::poll(polled, 2, -1) < 0) continue;
    if (polled[1].revents != 0) return;
    UniqueFd connection(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (!connection) continue;
    ucred peer{};
    socklen_t size = sizeof peer;
    if (::getsockopt(connection.get(), SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0 ||
        !user_permitted(peer.uid, ::geteuid())) {
      log_warning("refused uid {} (pid {}) at {}", peer.uid, peer.pid, path_);
      continue;
    }
    grpc::AddInsecureChannelFromFd(server, connection.release());
  }
}

UserSocket::~UserSocket() {
  const uint64_t one = 1;
  if (thread_.joinable()) {
    if (::write(stop_.get(), &one, sizeof one) != sizeof one)
      log_error("stopping the accept loop of {}: write: {}", path_, std::strerror(errno));
    thread_.join();
  }
  ::unlink(path_.c_str());
}

}  // namespace godwit::api
