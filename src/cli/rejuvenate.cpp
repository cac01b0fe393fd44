#include <memory>

#include "base/status.h"
#include "cli/client.h"
#include "cli/command.h"
#include "cli/text.h"

namespace godwit::cli {
namespace {

struct RejuvenateOptions {
  std::string name, max_downtime;
  bool verify = false, json = false, verbose = false, quiet = false;
};

int rejuvenate(const Context& context, const RejuvenateOptions& options) {
  api::MigrateRequest request;
  request.set_name(options.name);
  request.set_in_place(true);
  request.set_strategy("precopy");
  request.set_verify(options.verify);
  request.set_verbose(options.verbose);
  if (!options.max_downtime.empty()) {
    const auto limit = parse_duration_ns(options.max_downtime);
    if (!limit.ok()) return complain(annotate(limit.status(), "--max-downtime"), kUsage);
    request.set_max_downtime_ns(*limit);
  }
  return follow_move(context.socket,
                     {options.name, options.json, options.verbose, options.quiet || options.json},
                     [&](api::Godwit::Stub& stub, grpc::ClientContext& call) {
                       return stub.Migrate(&call, request);
                     });
}

}  // namespace

void add_rejuvenate(CLI::App& app, Context& context) {
  auto options = std::make_shared<RejuvenateOptions>();
  RejuvenateOptions& o = *options;
  CLI::App* command =
      app.add_subcommand("rejuvenate",
                         "move a running service to a new capsule on the node that it is on; its "
                         "connections stay")
          ->group(kMoving);
  command->add_option("NAME", o.name, "service")->required();
  command->add_option("--max-downtime", o.max_downtime, "as of migrate (default: 50ms)");
  command->add_flag("--verify", o.verify, "as of migrate");
  command->add_flag("--json", o.json, "print the result as JSON, as migrate does");
  command->add_flag("-v,--verbose", o.verbose, "print what the time in the freeze went to");
  command->add_flag("-q,--quiet", o.quiet, "no progress line");
  command->footer(
      "It gets a new shim, namespaces, cgroups and network port, made by the Godwit that runs "
      "now,\n"
      "and kernel objects without a history. The node needs the memory for both copies.\n\n"
      "Exit codes are those of migrate.");
  command->callback([&context, options] { context.exit_code = rejuvenate(context, *options); });
}

}  // namespace godwit::cli
