#include <memory>

#include "base/status.h"
#include "cli/client.h"
#include "cli/command.h"
#include "cli/text.h"

namespace godwit::cli {
namespace {

struct CloneOptions {
  std::string name, clone, node, ip, max_downtime, bandwidth, compress = "auto";
  bool json = false, verbose = false, quiet = false;
};

int clone(const Context& context, const CloneOptions& options) {
  api::CloneRequest request;
  request.set_name(options.name);
  request.set_clone(options.clone);
  request.set_node(options.node);
  request.set_ip(options.ip);
  request.set_compress(options.compress);
  request.set_verbose(options.verbose);
  if (!options.max_downtime.empty()) {
    const auto limit = parse_duration_ns(options.max_downtime);
    if (!limit.ok()) return complain(annotate(limit.status(), "--max-downtime"), kUsage);
    request.set_max_downtime_ns(*limit);
  }
  if (!options.bandwidth.empty()) {
    const auto limit = parse_bandwidth(options.bandwidth);
    if (!limit.ok()) return complain(annotate(limit.status(), "--bandwidth"), kUsage);
    request.set_bandwidth_bytes_per_s(*limit);
  }
  return follow_move(context.socket,
                     {options.name, options.json, options.verbose, options.quiet || options.json},
                     [&](api::Godwit::Stub& stub, grpc::ClientContext& call) {
                       return stub.Clone(&call, request);
                     });
}

}  // namespace

void add_clone(CLI::App& app, Context& context) {
  auto options = std::make_shared<CloneOptions>();
  CloneOptions& o = *options;
  CLI::App* command =
      app.add_subcommand("clone", "make a second, live copy of a running service")->group(kMoving);
  command->add_option("NAME", o.name, "service")->required();
  command->add_option("--name", o.clone, "the clone's name")->required();
  command->add_option("--node", o.node, "where the clone runs (default: where the original does)");
  command->add_option("--ip", o.ip, "the clone's address (default: a free one)");
  command->add_option("--max-downtime", o.max_downtime,
                      "the original is stopped once what is left takes no longer than this "
                      "(default: 50ms)");
  command->add_option("--bandwidth", o.bandwidth,
                      "limit while it runs, a second, as on the wire: 100MiB, 1Gbit (default: "
                      "none)");
  command->add_option("--compress", o.compress, "pages on their way, as migrate does")
      ->check(CLI::IsMember({"auto", "none", "lz4", "zstd"}))
      ->capture_default_str();
  command->add_flag("--json", o.json, "print the result as JSON, as migrate does");
  command->add_flag("-v,--verbose", o.verbose, "print what the time in the freeze went to");
  command->add_flag("-q,--quiet", o.quiet, "no progress line");
  command->footer(
      "The original and its clients notice nothing but a stop of milliseconds. In the clone every\n"
      "connection to others is reset, as by its peer; it listens on its own address.\n\n"
      "Exit codes: 0 cloned; 3 it cannot be, the reasons are printed; 4 it was tried, and there "
      "is\n"
      "no clone; 1 another error. The original runs on in any case.");
  command->callback([&context, options] { context.exit_code = clone(context, *options); });
}

}  // namespace godwit::cli
