#include "cli/client.h"

#include <fmt/core.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "api/transport.h"
#include "base/status.h"
#include "base/unique_fd.h"
#include "cli/command.h"
#include "node/node_config.h"

namespace godwit::cli {

int complain(const absl::Status& status, int code) {
  fmt::print(stderr, "godwit: {}\n", message_of(status));
  return code;
}

int complain(const api::SessionFailure& failure) {
  fmt::print(stderr, "godwit: {}\n", failure.message());
  return failure.exit_code() != 0 ? failure.exit_code() : kOwnError;
}

std::string find_socket(const std::string& given) {
  if (!given.empty()) return given;
  if (const char* set = std::getenv("GODWIT_SOCKET"); set != nullptr && *set != 0) return set;
  const std::string lab = node::LabPlace::current().socket("n1");
  if (::access(lab.c_str(), F_OK) == 0) return lab;
  return node::kDefaultSocket;
}

absl::StatusOr<Client> Client::connect(const std::string& given_socket) {
  const std::string path = find_socket(given_socket);
  // gRPC would retry and then say "failed to connect to all addresses".
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof address.sun_path)
    return make_error(absl::StatusCode::kInvalidArgument, "--socket {}: the path is too long",
                      path);
  std::memcpy(address.sun_path, path.data(), path.size());
  UniqueFd probe(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!probe ||
      ::connect(probe.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0)
    return make_error(absl::StatusCode::kUnavailable,
                      "no node daemon answers at {} ({}); start one with \"godwit node\" or try "
                      "it out with \"godwit lab up\", or name another with --socket",
                      path, std::strerror(errno));
  Client client;
  client.stub_ = api::Godwit::NewStub(api::user_channel(path));
  return client;
}

}  // namespace godwit::cli
