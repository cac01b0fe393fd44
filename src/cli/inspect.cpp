#include <fmt/core.h>

#include <memory>
#include <vector>

#include "cli/client.h"
#include "cli/command.h"
#include "cli/render.h"

namespace godwit::cli {
namespace {

struct InspectOptions {
  std::vector<std::string> names;
  bool json = false;
};

int inspect(const Context& context, const InspectOptions& options) {
  int exit_code = 0;
  std::vector<api::Service> found;
  for (const std::string& name : options.names) {
    api::InspectRequest request;
    request.set_name(name);
    const auto reply = ask<api::Service>(context.socket, [&](auto& stub, auto* call, auto* out) {
      return stub.Inspect(call, request, out);
    });
    if (reply.ok())
      found.push_back(*reply);
    else
      exit_code = complain(reply.status());
  }
  if (!options.json) {
    for (size_t i = 0; i < found.size(); ++i)
      fmt::print("{}{}", i == 0 ? "" : "\n", service_text(found[i]));
    return exit_code;
  }
  Json json;
  if (options.names.size() > 1) json.array();
  for (const api::Service& each : found) service_json(json, each);
  if (options.names.size() > 1) json.end();
  fmt::print("{}", json.str());
  return exit_code;
}

}  // namespace

void add_inspect(CLI::App& app, Context& context) {
  auto options = std::make_shared<InspectOptions>();
  CLI::App* command = app.add_subcommand("inspect", "show all about a service")->group(kServices);
  command->add_option("NAME", options->names, "services")->required();
  command->add_flag("--json", options->json,
                    "one object; an array of them if several services are named");
  command->footer(
      "JSON fields: name, node, state (creating, running, migrating, exited, lost), address, pid\n"
      "(of the main process on its node's machine, 0 if there is none), exit_code, mac, user,\n"
      "workdir, rootfs, layer, tty, generation, destination, created, started, command, env,\n"
      "binds, and last_migration with the fields of \"godwit migrate --json\".");
  command->callback([&context, options] { context.exit_code = inspect(context, *options); });
}

}  // namespace godwit::cli
