#include <fmt/core.h>

#include <memory>

#include "cli/client.h"
#include "cli/command.h"
#include "cli/render.h"
#include "cli/text.h"

namespace godwit::cli {
namespace {

struct PsOptions {
  bool all = false;
  bool quiet = false;
  bool json = false;
};

int list(const Context& context, const PsOptions& options) {
  api::ListRequest request;
  request.set_all(options.all);
  const auto reply = ask<api::ListReply>(context.socket, [&](auto& stub, auto* call, auto* out) {
    return stub.List(call, request, out);
  });
  if (!reply.ok()) return complain(reply.status());
  if (options.json) {
    Json json;
    json.array();
    for (const api::Service& each : reply->services()) service_json(json, each);
    fmt::print("{}", json.end().str());
    return 0;
  }
  Table table({"NAME", "NODE", "STATE", "ADDRESS", "PID", "UP", "COMMAND"});
  for (const api::Service& each : reply->services()) {
    if (options.quiet) {
      fmt::print("{}\n", each.name());
      continue;
    }
    std::string command = command_line(each);
    if (command.size() > 40) command = command.substr(0, 37) + "...";
    const bool running = each.state() == "running" || each.state() == "migrating";
    table.row({each.name(), each.node(), state_text(each), each.address(),
               each.pid() == 0 ? "-" : std::to_string(each.pid()),
               running ? format_age(each.started_unix_ns()) : "-", command});
  }
  if (!options.quiet) fmt::print("{}", table.str());
  return 0;
}

}  // namespace

void add_ps(CLI::App& app, Context& context) {
  auto options = std::make_shared<PsOptions>();
  CLI::App* command = app.add_subcommand("ps", "list the services of all nodes")->group(kServices);
  command->add_flag("-a,--all", options->all, "also those that have exited");
  command->add_flag("-q,--quiet", options->quiet, "names only");
  command->add_flag("--json", options->json, "an array of services, as inspect --json shows them");
  command->footer(
      "PID is the pid of the service's main process as the machine of its node counts.\n"
      "UP is the time since the program was started; a move does not set it back.");
  command->callback([&context, options] { context.exit_code = list(context, *options); });
}

}  // namespace godwit::cli
