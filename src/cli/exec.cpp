#include <memory>
#include <vector>

#include "cli/client.h"
#include "cli/command.h"
#include "cli/session.h"
#include "cli/terminal.h"

namespace godwit::cli {
namespace {

struct ExecOptions {
  std::string name;
  std::vector<std::string> argv;
  std::vector<std::string> env;
  std::string workdir;
  std::string user;
  bool tty = false;
  bool interactive = false;
};

int exec(const Context& context, const ExecOptions& options) {
  if (options.tty && options.interactive && !is_terminal(STDIN_FILENO))
    return complain(
        absl::InvalidArgumentError("-t with -i needs a terminal as standard input; leave -t out"),
        kOwnError);
  api::ExecStart start;
  start.set_name(options.name);
  for (const std::string& each : options.argv) start.add_argv(each);
  for (const std::string& each : options.env) start.add_env(each);
  start.set_workdir(options.workdir);
  start.set_user(options.user);
  start.set_tty(options.tty);
  start.set_interactive(options.interactive);
  return run_session(context.socket, {options.tty, options.interactive, !options.tty}, start,
                     [](auto& stub, auto* call) { return stub.Exec(call); });
}

int attach(const Context& context, const ExecOptions& options) {
  api::InspectRequest request;
  request.set_name(options.name);
  const auto service = ask<api::Service>(context.socket, [&](auto& stub, auto* call, auto* out) {
    return stub.Inspect(call, request, out);
  });
  if (!service.ok()) return complain(service.status(), kOwnError);
  api::ExecStart start;
  start.set_name(options.name);
  start.set_tty(service->tty());
  start.set_interactive(options.interactive);
  const bool tty = service->tty() && is_terminal(STDIN_FILENO);
  return run_session(context.socket, {tty, options.interactive, !tty}, start,
                     [](auto& stub, auto* call) { return stub.Attach(call); });
}

}  // namespace

void add_exec(CLI::App& app, Context& context) {
  auto options = std::make_shared<ExecOptions>();
  CLI::App* command =
      app.add_subcommand("exec", "run another program inside a service")->group(kServices);
  command->add_option("NAME", options->name, "service")->required();
  command->add_option("COMMAND", options->argv, "program and its arguments, after --");
  command->add_flag("-i,--interactive", options->interactive, "pass our standard input on");
  command->add_flag("-t,--tty", options->tty, "give the program a terminal");
  command->add_option("-e,--env", options->env, "K=V, besides the service's own")
      ->allow_extra_args(false);
  command->add_option("-w,--workdir", options->workdir,
                      "working directory (default: the service's)");
  command->add_option("-u,--user", options->user, "NAME or UID[:GID] (default: the service's)");
  command->footer(
      "The exit code is the program's: 127 when it is not there, 126 when it cannot be started,\n"
      "125 for an error of godwit's own.\n\n"
      "  godwit exec web -- nginx -s reload\n"
      "  godwit exec -it web -- bash");
  command->callback([&context, options] {
    options->argv.insert(options->argv.end(), context.tail.begin(), context.tail.end());
    context.exit_code = exec(context, *options);
  });
}

void add_attach(CLI::App& app, Context& context) {
  auto options = std::make_shared<ExecOptions>();
  options->interactive = true;
  CLI::App* command =
      app.add_subcommand("attach", "join the standard streams of a service's main process")
          ->group(kServices);
  command->add_option("NAME", options->name, "service")->required();
  command->add_flag("!--no-stdin", options->interactive, "output only");
  command->footer(
      "Ends with the main process, with its exit code. Signals that this command gets\n"
      "are passed on.");
  command->callback([&context, options] { context.exit_code = attach(context, *options); });
}

}  // namespace godwit::cli
