#include <unistd.h>

#include <cstdlib>
#include <memory>

#include "base/status.h"
#include "cli/client.h"
#include "cli/command.h"
#include "cli/text.h"

namespace godwit::cli {
namespace {

struct CheckpointOptions {
  std::string name, file, key_file, node, compress = "none", bandwidth;
  bool leave_running = false, lazy = false, with_files = false, verify = false, json = false,
       verbose = false, quiet = false;
};

// The daemon's working directory is not ours.
std::string absolute(const std::string& path) {
  char* cwd = path.starts_with('/') ? nullptr : ::getcwd(nullptr, 0);
  const std::string result = cwd == nullptr ? path : std::string(cwd) + "/" + path;
  ::free(cwd);
  return result;
}

MoveOutput output_of(const CheckpointOptions& options) {
  return {options.name, options.json, options.verbose, options.quiet || options.json};
}

int checkpoint(const Context& context, const CheckpointOptions& options) {
  api::CheckpointRequest request;
  request.set_name(options.name);
  request.set_file(absolute(options.file));
  request.set_leave_running(options.leave_running);
  request.set_with_files(options.with_files);
  request.set_verify(options.verify);
  request.set_compress(options.compress);
  if (!options.key_file.empty()) request.set_key_file(absolute(options.key_file));
  return follow_move(context.socket, output_of(options),
                     [&](api::Godwit::Stub& stub, grpc::ClientContext& call) {
                       return stub.Checkpoint(&call, request);
                     });
}

int restore(const Context& context, const CheckpointOptions& options) {
  api::RestoreRequest request;
  request.set_file(absolute(options.file));
  if (!options.key_file.empty()) request.set_key_file(absolute(options.key_file));
  request.set_node(options.node);
  request.set_name(options.name);
  request.set_lazy(options.lazy);
  if (!options.bandwidth.empty()) {
    const auto limit = parse_bandwidth(options.bandwidth);
    if (!limit.ok()) return complain(annotate(limit.status(), "--bandwidth"), kUsage);
    request.set_bandwidth_bytes_per_s(*limit);
  }
  return follow_move(context.socket, output_of(options),
                     [&](api::Godwit::Stub& stub, grpc::ClientContext& call) {
                       return stub.Restore(&call, request);
                     });
}

void add_output_flags(CLI::App* command, CheckpointOptions& o) {
  command->add_flag("--json", o.json, "print the result as JSON, as migrate does");
  command->add_flag("-v,--verbose", o.verbose, "print what the time in the freeze went to");
  command->add_flag("-q,--quiet", o.quiet, "no progress line");
}

}  // namespace

void add_checkpoint(CLI::App& app, Context& context) {
  auto options = std::make_shared<CheckpointOptions>();
  CLI::App* command =
      app.add_subcommand("checkpoint", "save a running service or virtual machine to a file")
          ->group(kMoving);
  command->add_option("NAME", options->name, "service or virtual machine")->required();
  command
      ->add_option("-o,--output", options->file,
                   "file, on the node that runs it; it holds its memory: mode 0600")
      ->required();
  command->add_flag("--leave-running", options->leave_running,
                    "it runs on afterwards (default: it ends, and what it had on its node goes: "
                    "of a machine its definition and its disks, which are in the file)");
  command->add_flag("--with-files", options->with_files,
                    "also what it has open or mapped below its writable layer, or a machine's "
                    "read-only disks, so that it can be restored where these files are others");
  command->add_flag("--verify", options->verify,
                    "also the hash of every page: a restore compares what it has made with them "
                    "before it lets it run (services)");
  command
      ->add_option("--compress", options->compress,
                   "pages in the file: zstd for the smallest, lz4 for a quick one; auto where "
                   "the disk is slower than compressing; none")
      ->check(CLI::IsMember({"auto", "none", "lz4", "zstd"}))
      ->capture_default_str();
  command->add_option(
      "--encrypt", options->key_file,
      "encrypt the file, and prove that it is ours, by the bytes of this KEYFILE on the node that "
      "runs it: 32 to 4096 random ones, for its owner alone: (umask 077; head -c 32 "
      "/dev/urandom > KEYFILE)");
  add_output_flags(command, *options);
  command->footer(
      "A virtual machine's memory and disks are those of one moment. With --leave-running it "
      "stands\n"
      "still for some tens of milliseconds, and what it writes to its disks until the file is\n"
      "complete is kept beside them. What is in the file: godwit image show FILE.");
  command->callback([&context, options] { context.exit_code = checkpoint(context, *options); });
}

void add_restore(CLI::App& app, Context& context) {
  auto options = std::make_shared<CheckpointOptions>();
  CLI::App* command =
      app.add_subcommand("restore", "let a service or virtual machine run again from a file")
          ->group(kMoving);
  command->add_option("FILE", options->file, "made by checkpoint; on the node that restores")
      ->required();
  command->add_option("--node", options->node, "where (default: the node that is asked)");
  command->add_option(
      "--name", options->name,
      "another name than it had; a virtual machine then has a uuid and disks of its "
      "own (NAME-vda.qcow2 beside the old ones), and network cards without a link");
  CLI::Option* lazy = command->add_flag(
      "--lazy", options->lazy,
      "it runs at once, and its memory follows from the file: first what it waits for, then the "
      "rest. The file must stay where it is until the last page has come (see ps). Services only");
  command
      ->add_option("--bandwidth", options->bandwidth,
                   "with --lazy: limit of what nobody waits for, a second: 100MiB, 1Gbit (default: "
                   "none)")
      ->needs(lazy);
  command
      ->add_option("--decrypt", options->key_file,
                   "the KEYFILE that it was encrypted with, on the node that restores; a file that "
                   "is not encrypted by it is refused")
      ->excludes(lazy);
  add_output_flags(command, *options);
  command->callback([&context, options] { context.exit_code = restore(context, *options); });
}

}  // namespace godwit::cli
