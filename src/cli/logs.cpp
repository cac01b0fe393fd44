#include <unistd.h>

#include <memory>

#include "cli/client.h"
#include "cli/command.h"
#include "cli/terminal.h"

namespace godwit::cli {
namespace {

struct LogOptions {
  std::string name;
  bool follow = false;
  int64_t tail = -1;
};

int logs(const Context& context, const LogOptions& options) {
  auto client = Client::connect(context.socket);
  if (!client.ok()) return complain(client.status());
  api::LogsRequest request;
  request.set_name(options.name);
  request.set_follow(options.follow);
  request.set_tail_lines(options.tail);
  grpc::ClientContext call;
  const auto stream = client->stub().Logs(&call, request);
  api::LogsChunk chunk;
  while (stream->Read(&chunk)) {
    if (!write_all(STDOUT_FILENO, chunk.data())) {
      call.TryCancel();  // the reader has gone (| head)
      while (stream->Read(&chunk)) {
      }
      stream->Finish();
      return 0;
    }
  }
  const grpc::Status status = stream->Finish();
  return status.ok() ? 0 : complain(api::from_grpc(status));
}

}  // namespace

void add_logs(CLI::App& app, Context& context) {
  auto options = std::make_shared<LogOptions>();
  CLI::App* command =
      app.add_subcommand("logs", "print what a service wrote to its standard output and error")
          ->group(kServices);
  command->add_option("NAME", options->name, "service")->required();
  command->add_flag("-f,--follow", options->follow,
                    "go on until the service exits; follows it to other nodes");
  command->add_option("-n,--tail", options->tail, "only the last N lines")
      ->check(CLI::NonNegativeNumber);
  command->callback([&context, options] { context.exit_code = logs(context, *options); });
}

}  // namespace godwit::cli
