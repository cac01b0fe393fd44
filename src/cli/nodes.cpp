#include <fmt/core.h>

#include <memory>

#include "cli/client.h"
#include "cli/command.h"
#include "cli/render.h"
#include "cli/text.h"

namespace godwit::cli {
namespace {

int nodes(const Context& context, bool as_json) {
  const auto reply = ask<api::NodesReply>(context.socket, [](auto& stub, auto* call, auto* out) {
    return stub.Nodes(call, api::Empty(), out);
  });
  if (!reply.ok()) return complain(reply.status());
  if (as_json) {
    Json json;
    json.array();
    for (const api::Node& each : reply->nodes()) node_json(json, each);
    fmt::print("{}", json.end().str());
    return 0;
  }
  Table table({"NAME", "STATE", "ADDRESS", "SERVICES", "KERNEL", "ROLE"});
  for (const api::Node& each : reply->nodes())
    table.row({each.name(), each.state(), fmt::format("{}:{}", each.host(), each.port()),
               std::to_string(each.services()), each.kernel(),
               each.keeps_store() ? "keeps the store" : "-"});
  fmt::print("{}", table.str());
  return 0;
}

}  // namespace

void add_nodes(CLI::App& app, Context& context) {
  auto as_json = std::make_shared<bool>(false);
  CLI::App* command = app.add_subcommand("nodes", "list the nodes")->group(kCluster);
  command->add_flag("--json", *as_json,
                    "an array with name, state (ready, unreachable), host, port, kernel, version, "
                    "services, subnet, keeps_store, features");
  command->callback([&context, as_json] { context.exit_code = nodes(context, *as_json); });
}

}  // namespace godwit::cli
