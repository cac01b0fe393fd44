// The connection of a command to a daemon.
#ifndef GODWIT_CLI_CLIENT_H_
#define GODWIT_CLI_CLIENT_H_

#include <grpcpp/client_context.h>

#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "api/godwit.grpc.pb.h"

namespace godwit::cli {

// Which daemon is asked: `given` (--socket), else $GODWIT_SOCKET, else the lab's n1 if a lab is
// up, else this machine's.
std::string find_socket(const std::string& given);

class Client {
 public:
  // Fails at once, with what to do, when no daemon answers there.
  static absl::StatusOr<Client> connect(const std::string& given_socket);
  api::Godwit::Stub& stub() { return *stub_; }

 private:
  std::unique_ptr<api::Godwit::Stub> stub_;
};

// A call without streams: `call(stub, context, &reply)`.
template <typename Reply, typename Call>
absl::StatusOr<Reply> ask(const std::string& socket, Call call);

// A migration-like call: progress to the terminal while it lasts, Ctrl-C cancels it. Prints the
// result; returns the exit code.
struct MoveOutput {
  std::string service;
  bool json = false;
  bool verbose = false;
  bool quiet = false;
};
using MoveStream = std::unique_ptr<grpc::ClientReader<api::MigrateEvent>>;
int follow_move(const std::string& socket, const MoveOutput& output,
                const std::function<MoveStream(api::Godwit::Stub&, grpc::ClientContext&)>& start);

}  // namespace godwit::cli

#include "api/rpc_status.h"

namespace godwit::cli {

template <typename Reply, typename Call>
absl::StatusOr<Reply> ask(const std::string& socket, Call call) {
  auto client = Client::connect(socket);
  if (!client.ok()) return client.status();
  grpc::ClientContext context;
  Reply reply;
  const grpc::Status status = call(client->stub(), &context, &reply);
  if (!status.ok()) return api::from_grpc(status);
  return reply;
}

}  // namespace godwit::cli

#endif  // GODWIT_CLI_CLIENT_H_
