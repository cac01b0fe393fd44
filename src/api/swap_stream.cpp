#include "api/swap_stream.h"

#include <arpa/inet.h>
#include <grpcpp/client_context.h>
#include <netdb.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>

#include <chrono>
#include <utility>

#include "api/rpc_status.h"
#include "base/fault_point.h"
#include "base/log.h"
#include "base/status.h"

namespace godwit::api {
namespace {

// A stranger gets this long to show a certificate, and a node to read its answers.
constexpr absl::Duration kPatience = absl::Seconds(5);
// A node that moves more services at once has the rest go by ordinary calls.
constexpr size_t kMaxConnections = 256;

absl::StatusOr<std::pair<UniqueFd, uint16_t>> listen_at(const std::string& host) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_NUMERICHOST | AI_PASSIVE;
  addrinfo* list = nullptr;
  const int error = ::getaddrinfo(host.c_str(), "0", &hints, &list);
  if (error != 0)
    return make_error(absl::StatusCode::kInvalidArgument, "\"{}\" is not an IP address: {}", host,
                      ::gai_strerror(error));
  const std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)> address(list, &::freeaddrinfo);
  UniqueFd fd(::socket(address->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!fd || ::bind(fd.get(), address->ai_addr, address->ai_addrlen) != 0 ||
      ::listen(fd.get(), SOMAXCONN) != 0)
    return errno_status(errno, fmt::format("listening for swaps at {}", host));
  sockaddr_storage bound{};
  socklen_t size = sizeof bound;
  if (::getsockname(fd.get(), reinterpret_cast<sockaddr*>(&bound), &size) != 0)
    return errno_status(errno, "getsockname()");
  // The port stands at the same place in sockaddr_in and sockaddr_in6 (ip(7), ipv6(7)).
  return std::pair(std::move(fd), ntohs(reinterpret_cast<sockaddr_in*>(&bound)->sin_port));
}

}  // namespace

absl::StatusOr<std::unique_ptr<SwapService>> SwapService::start(store::Store* store,
                                                                const tls::Identity& identity,
                                                                const std::string& host) {
  GW_ASSIGN_OR_RETURN(tls::Context context, tls::Context::make(identity));
  std::unique_ptr<SwapService> service(new SwapService(store, std::move(context)));
  if (store == nullptr) return service;
  GW_ASSIGN_OR_RETURN(auto listening, listen_at(host));
  service->listener_ = std::move(listening.first);
  service->port_ = listening.second;
  service->accepting_ = std::thread([self = service.get()] { self->accept_loop(); });
  return service;
}

SwapService::~SwapService() {
  if (!accepting_.joinable()) return;
  ending_ = true;
  ::shutdown(listener_.get(), SHUT_RDWR);  // accept(2) returns with EINVAL
  accepting_.join();
  {
    std::lock_guard lock(mutex_);
    for (const Connection& each : connections_)
      if (each.fd) ::shutdown(each.fd.get(), SHUT_RDWR);
  }
  for (Connection& each : connections_) each.thread.join();
}

grpc::Status SwapService::OpenSwaps(grpc::ServerContext*, const OpenSwapsRequest*,
                                    OpenSwapsReply* reply) {
  if (store_ == nullptr)
    return {grpc::StatusCode::FAILED_PRECONDITION, "this node does not keep the store"};
  reply->set_port(port_);
  return grpc::Status::OK;
}

void SwapService::accept_loop() {
  while (!ending_) {
    UniqueFd fd(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC));
    connections_.remove_if([](Connection& each) {
      if (each.ended) each.thread.join();
      return each.ended.load();
    });
    if (!fd) {
      if (errno == EMFILE || errno == ENFILE) ::poll(nullptr, 0, 100);
      continue;
    }
    if (connections_.size() >= kMaxConnections) continue;
    std::lock_guard lock(mutex_);
    Connection& made = connections_.emplace_back();
    made.fd = std::move(fd);
    made.thread = std::thread([this, &made, number = made.fd.get()] {
      // Whoever breaks it off has its own to say about it.
      serve(number).IgnoreError();
      {
        std::lock_guard closing(mutex_);
        made.fd.reset();
      }
      made.ended = true;
    });
  }
}

absl::Status SwapService::serve(int fd) {
  GW_ASSIGN_OR_RETURN(const auto connection, TlsConnection::accept(context_, fd, kPatience));
  GW_RETURN_IF_ERROR(connection->be_patient());
  for (;;) {
    SwapRequest request;
    GW_RETURN_IF_ERROR(connection->receive(request));
    SwapReply reply;
    const bool commits = request.expected_revision() > 0;  // no warming up
    if (commits) FAULT_POINT("store.swap");
    if (!request.key().empty()) {
      const auto revision =
          store_->compare_and_swap(request.key(), request.expected_revision(), request.value());
      if (revision.ok()) reply.set_revision(*revision);
      reply.set_code(static_cast<int>(revision.status().code()));
      reply.set_error(std::string(message_of(revision.status())));
    }
    if (commits) FAULT_POINT("store.swapped");
    GW_RETURN_IF_ERROR(connection->send(reply));
  }
}

absl::StatusOr<std::unique_ptr<SwapStream>> SwapStream::open(const Keeper& keeper,
                                                             absl::Duration timeout) {
  grpc::ClientContext call;
  call.set_deadline(std::chrono::system_clock::now() + absl::ToChronoMilliseconds(timeout));
  OpenSwapsReply reply;
  const absl::Status told =
      from_grpc(GodwitSwaps::NewStub(keeper.channel)->OpenSwaps(&call, OpenSwapsRequest(), &reply));
  if (!told.ok()) return annotate(told, fmt::format("the store's keeper, node {}", keeper.node));
  std::unique_ptr<SwapStream> stream(new SwapStream);
  GW_ASSIGN_OR_RETURN(
      stream->connection_,
      TlsConnection::connect(*keeper.context, keeper.host, static_cast<uint16_t>(reply.port()),
                             keeper.node, timeout));
  GW_RETURN_IF_ERROR(stream->ask(SwapRequest()).status());
  return stream;
}

absl::StatusOr<store::Revision> SwapStream::compare_and_swap(const std::string& key,
                                                             store::Revision expected,
                                                             const std::string& value) {
  SwapRequest request;
  request.set_key(key);
  request.set_expected_revision(expected);
  request.set_value(value);
  GW_ASSIGN_OR_RETURN(const SwapReply reply, ask(request));
  if (reply.code() != 0)
    return absl::Status(static_cast<absl::StatusCode>(reply.code()), reply.error());
  return reply.revision();
}

absl::StatusOr<SwapReply> SwapStream::ask(const SwapRequest& request) {
  if (!connection_) return absl::UnavailableError("the connection to the store has ended");
  SwapReply reply;
  absl::Status asked = connection_->send(request);
  if (asked.ok()) asked = connection_->receive(reply);
  if (asked.ok()) return reply;
  connection_.reset();
  return make_error(absl::StatusCode::kUnavailable,
                    "the node that keeps the store does not answer: {}", message_of(asked));
}

}  // namespace godwit::api
