#include <fmt/core.h>
#include <unistd.h>

#include <memory>
#include <vector>

#include "cli/client.h"
#include "cli/command.h"
#include "cli/render.h"
#include "cli/session.h"
#include "cli/terminal.h"

namespace godwit::cli {
namespace {

struct RunOptions {
  std::string name, node, ip, rootfs, workdir, user, hostname;
  std::vector<std::string> argv, env, binds;
  bool remove = false, detach = false, interactive = false, tty = false, json = false;
};

absl::Status fill(const RunOptions& options, api::RunRequest& request) {
  request.set_name(options.name);
  request.set_node(options.node);
  request.set_ip(options.ip);
  request.set_workdir(options.workdir);
  request.set_user(options.user);
  request.set_hostname(options.hostname);
  request.set_remove_at_exit(options.remove);
  request.set_interactive(options.interactive);
  request.set_tty(options.tty);
  for (const std::string& each : options.argv) request.add_argv(each);
  for (const std::string& each : options.env) {
    if (each.find('=') == std::string::npos)
      return absl::InvalidArgumentError(fmt::format("--env {}: use KEY=VALUE", each));
    request.add_env(each);
  }
  // The daemon's working directory is not ours.
  const auto absolute = [](const std::string& path) {
    char* cwd = path.empty() || path[0] == '/' ? nullptr : ::getcwd(nullptr, 0);
    const std::string result = cwd == nullptr ? path : std::string(cwd) + "/" + path;
    ::free(cwd);
    return result;
  };
  request.set_rootfs(absolute(options.rootfs));
  for (const std::string& each : options.binds) {
    const size_t colon = each.find(':');
    api::Bind* bind = request.add_binds();
    bind->set_host_path(absolute(each.substr(0, colon)));
    bind->set_capsule_path(colon == std::string::npos ? bind->host_path() : each.substr(colon + 1));
  }
  return absl::OkStatus();
}

int run(const Context& context, const RunOptions& options) {
  const bool foreground = !options.detach;
  if (foreground && options.tty && options.interactive && !is_terminal(STDIN_FILENO))
    return complain(absl::InvalidArgumentError(
                        "-t with -i needs a terminal as standard input; leave -t out, or add -d"),
                    kOwnError);
  api::RunRequest request;
  if (absl::Status status = fill(options, request); !status.ok())
    return complain(status, kOwnError);
  if (foreground) {
    // The program starts when the session is joined to it, so that nothing it writes and not even
    // a quick end of it is missed.
    api::ExecStart start;
    start.set_name(options.name);
    start.set_tty(options.tty);
    start.set_interactive(options.interactive);
    *start.mutable_run() = request;
    return run_session(context.socket, {options.tty, options.interactive, !options.tty}, start,
                       [](auto& stub, auto* call) { return stub.Attach(call); });
  }
  const auto reply = ask<api::RunReply>(context.socket, [&](auto& stub, auto* call, auto* out) {
    return stub.Run(call, request, out);
  });
  if (!reply.ok()) return complain(reply.status(), kOwnError);
  if (reply->has_not_started()) return complain(reply->not_started());
  if (options.json) {
    Json json;
    service_json(json, reply->service());
    fmt::print("{}", json.str());
  } else {
    fmt::print("{}\n", reply->service().name());
  }
  return 0;
}

}  // namespace

void add_run(CLI::App& app, Context& context) {
  auto options = std::make_shared<RunOptions>();
  RunOptions& o = *options;
  CLI::App* command =
      app.add_subcommand("run", "start an unmodified program as a service")->group(kServices);
  command->add_option("COMMAND", o.argv, "program and its arguments, after --");
  command->add_option("--name", o.name, "what the service is called, on all nodes")->required();
  command->add_option("--node", o.node, "node to start it on (default: the one that is asked)");
  command->add_option("--ip", o.ip,
                      "address of the service; it keeps it wherever it runs (default: a free one)");
  command
      ->add_option("--bind", o.binds,
                   "PATH[:PATH_IN_SERVICE], shared storage: seen by the service as it is on the "
                   "node, not moved with it, so it must be the same on all nodes (NFS, say)")
      ->allow_extra_args(false);
  command->add_option("--rootfs", o.rootfs,
                      "folder with the service's root (default: this machine's own /). The "
                      "service writes into a layer above it, which moves with it");
  command->add_option("-e,--env", o.env, "K=V, may be repeated")->allow_extra_args(false);
  command->add_option("-w,--workdir", o.workdir, "working directory (default: /)");
  command->add_option("-u,--user", o.user, "NAME or UID[:GID] (default: root)");
  command->add_option("--hostname", o.hostname, "host name inside (default: the name)");
  command->add_flag("--rm", o.remove, "remove the service when it exits");
  command->add_flag("-d,--detach", o.detach, "start it and return; see it with logs, attach");
  command->add_flag("-i,--interactive", o.interactive, "keep standard input open; pass ours on");
  command->add_flag("-t,--tty", o.tty, "give the program a terminal");
  command->add_flag("--json", o.json, "with -d: print the service as inspect --json does");
  command->footer(
      "Without -d the program's output is shown until it ends, and its exit code is ours (125:\n"
      "an error of godwit's own). A service lives while any of its processes does.\n\n"
      "  godwit run --name cache -d -- redis-server --save ''\n"
      "  godwit run --name sh --rm -it -- bash\n"
      "  godwit run --name web --ip 10.77.200.1 --user www-data -d -- python3 -m http.server");
  command->callback([&context, options] {
    options->argv.insert(options->argv.end(), context.tail.begin(), context.tail.end());
    context.exit_code = run(context, *options);
  });
}

}  // namespace godwit::cli
