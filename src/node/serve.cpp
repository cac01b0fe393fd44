// `godwit node`: opens, serves, recovers, waits for the end.
#include <fmt/core.h>
#include <grpcpp/server_builder.h>
#include <poll.h>
#include <signal.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <unistd.h>

#include <chrono>
#include <thread>

#include "api/swap_stream.h"
#include "api/transport.h"
#include "base/log.h"
#include "base/status.h"
#include "node/api_service.h"
#include "node/node.h"

namespace godwit::node {
namespace {

constexpr std::chrono::seconds kDrain{2};

absl::Status make_socket_folder(const std::string& socket) {
  const std::string folder = socket.substr(0, socket.rfind('/'));
  for (size_t at = 1; at != std::string::npos && !folder.empty();) {
    at = folder.find('/', at + 1);
    const std::string part = folder.substr(0, at);
    if (::mkdir(part.c_str(), 0755) != 0 && errno != EEXIST)
      return errno_status(errno, fmt::format("mkdir({})", part));
  }
  return absl::OkStatus();
}

void say_ready(int fd) {
  if (fd < 0) return;
  // Whoever started us may have gone; that is no reason to end.
  if (::write(fd, "ready\n", 6) != 6) log_warning("nobody reads --ready-fd");
  ::close(fd);
}

absl::Status serve(const NodeConfig& config, int signals) {
  GW_ASSIGN_OR_RETURN(const std::unique_ptr<Node> node, Node::open(config));
  GW_RETURN_IF_ERROR(make_socket_folder(config.socket));
  GW_ASSIGN_OR_RETURN(std::unique_ptr<api::UserSocket> socket,
                      api::UserSocket::listen(config.socket));
  ApiService users(*node);
  PeerService peers(*node);
  GW_ASSIGN_OR_RETURN(
      const std::unique_ptr<api::SwapService> swaps,
      api::SwapService::start(node->local_store(), node->identity(), config.listen_host));
  grpc::ServerBuilder builder;
  api::set_server_options(builder);
  int port = 0;
  builder.AddListeningPort(config.listen_address(), api::server_credentials(node->identity()),
                           &port);
  builder.RegisterService(&users);
  builder.RegisterService(&peers);
  builder.RegisterService(swaps.get());
  const std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  if (server == nullptr || port == 0)
    return make_error(absl::StatusCode::kUnavailable,
                      "cannot listen on {}; is the address this machine's, and the port free?",
                      config.listen_address());
  // Other nodes are answered from here on (the store they may be waiting for is one of them); users
  // once everything is settled.
  absl::Status recovered = absl::OkStatus();
  std::thread recovering([&] {
    recovered = node->recover();
    if (!recovered.ok()) {
      ::kill(::getpid(), SIGTERM);
      return;
    }
    socket->serve(server.get());
    say_ready(config.ready_fd);
    node->spare_mover().keep_one();
    log_info("ready: {} at {}, users at {}", config.name, config.listen_address(), config.socket);
  });
  signalfd_siginfo info{};
  while (::read(signals, &info, sizeof info) != sizeof info) {
  }
  node->stop();
  recovering.join();
  log_info("stopping; the services run on");
  socket.reset();
  server->Shutdown(std::chrono::system_clock::now() + kDrain);
  return absl::IsCancelled(recovered) ? absl::OkStatus() : recovered;
}

}  // namespace

int node_main(const NodeConfig& config) {
  init_logging("node " + config.name);
  ::signal(SIGPIPE, SIG_IGN);
  sigset_t set;
  ::sigemptyset(&set);
  ::sigaddset(&set, SIGTERM);
  ::sigaddset(&set, SIGINT);
  // Before the first thread: all inherit the mask.
  ::pthread_sigmask(SIG_BLOCK, &set, nullptr);
  const UniqueFd signals(::signalfd(-1, &set, SFD_CLOEXEC));
  const absl::Status ended = serve(config, signals.get());
  if (ended.ok()) return 0;
  log_error("{}", message_of(ended));
  return 1;
}

}  // namespace godwit::node
