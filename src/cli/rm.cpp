#include <memory>
#include <vector>

#include "cli/client.h"
#include "cli/command.h"

namespace godwit::cli {
namespace {

struct RmOptions {
  std::vector<std::string> names;
  bool force = false;
};

int remove(const Context& context, const RmOptions& options) {
  int exit_code = 0;
  for (const std::string& name : options.names) {
    api::RemoveRequest request;
    request.set_name(name);
    request.set_force(options.force);
    const auto reply = ask<api::Empty>(context.socket, [&](auto& stub, auto* call, auto* out) {
      return stub.Remove(call, request, out);
    });
    if (!reply.ok()) exit_code = complain(reply.status());
  }
  return exit_code;
}

}  // namespace

void add_rm(CLI::App& app, Context& context) {
  auto options = std::make_shared<RmOptions>();
  CLI::App* command =
      app.add_subcommand("rm", "remove a service that has exited, with its log and its layer")
          ->group(kServices);
  command->add_option("NAME", options->names, "services")->required();
  command->add_flag("-f,--force", options->force, "kill it first if it runs");
  command->callback([&context, options] { context.exit_code = remove(context, *options); });
}

}  // namespace godwit::cli
