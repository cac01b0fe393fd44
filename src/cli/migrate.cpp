#include <memory>

#include "base/status.h"
#include "cli/client.h"
#include "cli/command.h"
#include "cli/evacuate.h"
#include "cli/text.h"

namespace godwit::cli {
namespace {

struct MigrateOptions {
  std::string all, name, node, strategy = "auto", max_downtime, max_total, bandwidth, stall,
                               compress = "auto";
  uint32_t parallel = 1;
  bool resume = false, source_lost = false;
  bool throttle = false, dry_run = false, verify = false, json = false, verbose = false,
       quiet = false;
};

int resume(const Context& context, const MigrateOptions& options) {
  api::ResumeRequest request;
  request.set_name(options.name);
  request.set_source_lost(options.source_lost);
  return follow_move(context.socket,
                     {options.name, options.json, options.verbose, options.quiet || options.json},
                     [&](api::Godwit::Stub& stub, grpc::ClientContext& call) {
                       return stub.ResumeMigration(&call, request);
                     });
}

int migrate(const Context& context, const MigrateOptions& options) {
  if (options.resume || options.source_lost) return resume(context, options);
  if (options.all.empty() && options.node.empty())
    return complain(absl::InvalidArgumentError("NAME and NODE are needed: what goes, and where"),
                    kUsage);
  if (!options.all.empty() && !options.node.empty())
    return complain(absl::InvalidArgumentError("--all NODE moves everything: name no service"),
                    kUsage);
  api::MigrateRequest request;
  request.set_name(options.name);
  request.set_node(options.node);
  request.set_strategy(options.strategy);
  request.set_throttle(options.throttle);
  request.set_dry_run(options.dry_run);
  request.set_verbose(options.verbose);
  request.set_verify(options.verify);
  request.set_compress(options.compress);
  if (!options.max_downtime.empty()) {
    const auto limit = parse_duration_ns(options.max_downtime);
    if (!limit.ok()) return complain(annotate(limit.status(), "--max-downtime"), kUsage);
    request.set_max_downtime_ns(*limit);
  }
  if (!options.max_total.empty()) {
    const auto limit = parse_duration_ns(options.max_total);
    if (!limit.ok()) return complain(annotate(limit.status(), "--max-total"), kUsage);
    request.set_max_total_ns(*limit);
  }
  if (!options.bandwidth.empty()) {
    const auto limit = parse_bandwidth(options.bandwidth);
    if (!limit.ok()) return complain(annotate(limit.status(), "--bandwidth"), kUsage);
    request.set_bandwidth_bytes_per_s(*limit);
  }
  if (!options.stall.empty()) {
    const auto limit = parse_duration_ns(options.stall);
    if (!limit.ok()) return complain(annotate(limit.status(), "--stall-timeout"), kUsage);
    request.set_stall_timeout_ns(*limit);
  }
  if (!options.all.empty())
    return evacuate(context, {options.all, options.name, options.parallel, request, options.json});
  return follow_move(context.socket,
                     {options.name, options.json, options.verbose, options.quiet || options.json},
                     [&](api::Godwit::Stub& stub, grpc::ClientContext& call) {
                       return stub.Migrate(&call, request);
                     });
}

}  // namespace

void add_migrate(CLI::App& app, Context& context) {
  auto options = std::make_shared<MigrateOptions>();
  MigrateOptions& o = *options;
  CLI::App* command =
      app.add_subcommand(
             "migrate",
             "move a running service or virtual machine to another node; its connections stay")
          ->group(kMoving);
  command->add_option("NAME", o.name, "service or virtual machine; with --all: where they go");
  command->add_option("NODE", o.node, "where it goes");
  command->add_option("--all", o.all,
                      "everything that runs on this node, to the node that is named or to those "
                      "that have least; the largest virtual machines first");
  command->add_option("--parallel", o.parallel, "with --all: how many at a time")
      ->check(CLI::Range(1, 64))
      ->capture_default_str();
  command
      ->add_option("--strategy", o.strategy,
                   "auto: what holds the limits, precopy if it does; precopy: send memory while it "
                   "runs, stop it for the last small rest; cold: stop it, send all; hybrid: send "
                   "memory while it runs, let it go on there while the rest follows; postcopy: let "
                   "it go on there at once, all memory follows")
      ->check(CLI::IsMember({"auto", "cold", "precopy", "postcopy", "hybrid"}))
      ->capture_default_str();
  command->add_option(
      "--max-downtime", o.max_downtime,
      "the service is stopped once what is left takes no longer than this (default: "
      "50ms)");
  command->add_option("--max-total", o.max_total,
                      "no round begins that would make the whole move longer than this (default: "
                      "none)");
  command->add_option("--bandwidth", o.bandwidth,
                      "limit while it runs, a second, as on the wire: 100MiB, 1Gbit (default: "
                      "none)");
  command->add_option("--stall-timeout", o.stall,
                      "a link that carries nothing for so long is broken: the move is rolled back, "
                      "or memory that follows waits for another connection (default: 2s; at least "
                      "1s)");
  command
      ->add_option("--compress", o.compress,
                   "pages on their way: auto tries lz4 and zstd while it measures, and keeps what "
                   "makes the move quicker; none, lz4, zstd")
      ->check(CLI::IsMember({"auto", "none", "lz4", "zstd"}))
      ->capture_default_str();
  command->add_flag("--throttle", o.throttle,
                    "where rounds do not converge, limit the service's CPU time while they last, "
                    "rather than give up: to a half of what it used, then a quarter, and so on");
  command->add_flag(
      "--dry-run", o.dry_run,
      "only say whether it can move and what that will cost, or why not; the program is not "
      "touched");
  command->add_flag("--verify", o.verify,
                    "before it runs there, compare every page and mapping of every process with "
                    "the source's, and go back if one differs: a diagnostic, the service stands "
                    "still for as long as that takes (0.5 s and more a GiB)");
  command->add_flag("--resume", o.resume,
                    "follow what runs there already and whose memory is still coming; it "
                    "goes on by itself whenever its source can be reached");
  command->add_flag("--source-lost", o.source_lost,
                    "its source will never come back: what is missing of its memory is lost, and a "
                    "process that touches it is ended by SIGBUS");
  command->add_flag("--json", o.json, "print the result as JSON, without a progress line");
  command->add_flag("-v,--verbose", o.verbose, "print what the time in the freeze went to");
  command->add_flag("-q,--quiet", o.quiet, "no progress line");
  command->footer(
      "Ctrl-C cancels the move: the service runs on where it is.\n\n"
      "  godwit migrate web n2\n"
      "  godwit migrate --all n1 --parallel 2\n\n"
      "Exit codes: 0 moved; 3 it cannot move, the reasons are printed and nothing was touched;\n"
      "4 it was tried, and the service runs on where it was; 1 another error.\n\n"
      "JSON fields: name, node (where the service is now), outcome (moved, rolled_back, refused,\n"
      "movable), error, strategy, rounds, freeze_ns, total_ns, bytes_wire, bytes_pages,\n"
      "bytes_pages_wire (pages before and after compression), compression, setup_ns,\n"
      "first_stop_ns, pages_sent, pages_zero, source_cpu_ns, processes, threads, descriptors,\n"
      "connections, frames_replayed, pages_left_behind, page_faults, post_copy_ns, spans,\n"
      "chosen_because, predicted_downtime_ns,\n"
      "predicted_total_ns, bytes_per_s, dirty_pages_per_s, pages_cold, pages_warm, pages_hot,\n"
      "memory_bytes, throttled_ns, throttle_percent, forecasts, based_on, layer_bytes, "
      "differences, refusals,\n"
      "warnings.");
  command->callback([&context, options] { context.exit_code = migrate(context, *options); });
}

}  // namespace godwit::cli
