#include <fmt/core.h>

#include <memory>
#include <vector>

#include "cli/client.h"
#include "cli/command.h"
#include "cli/text.h"

namespace godwit::cli {
namespace {

struct StopOptions {
  std::vector<std::string> names;
  std::string signal = "TERM";
  std::string timeout = "10s";
};

int stop(const Context& context, const StopOptions& options) {
  const auto number = parse_signal(options.signal);
  if (!number.ok()) return complain(number.status(), kUsage);
  const auto timeout = parse_duration_ns(options.timeout);
  if (!timeout.ok()) return complain(timeout.status(), kUsage);
  int exit_code = 0;
  for (const std::string& name : options.names) {
    api::StopRequest request;
    request.set_name(name);
    request.set_signal(*number);
    request.set_timeout_ns(*timeout == 0 ? 1 : *timeout);
    const auto reply = ask<api::StopReply>(context.socket, [&](auto& stub, auto* call, auto* out) {
      return stub.Stop(call, request, out);
    });
    if (!reply.ok()) exit_code = complain(reply.status());
  }
  return exit_code;
}

int wait(const Context& context, const StopOptions& options) {
  int exit_code = 0;
  for (const std::string& name : options.names) {
    api::WaitRequest request;
    request.set_name(name);
    const auto reply = ask<api::WaitReply>(context.socket, [&](auto& stub, auto* call, auto* out) {
      return stub.Wait(call, request, out);
    });
    if (reply.ok())
      fmt::print("{}\n", reply->exit_code());
    else
      exit_code = complain(reply.status());
  }
  return exit_code;
}

}  // namespace

void add_stop(CLI::App& app, Context& context) {
  auto options = std::make_shared<StopOptions>();
  CLI::App* command =
      app.add_subcommand("stop", "end a service; it can be inspected until rm")->group(kServices);
  command->add_option("NAME", options->names, "services")->required();
  command->add_option("-s,--signal", options->signal, "what asks it to end")->capture_default_str();
  command
      ->add_option("-t,--timeout", options->timeout,
                   "then every process of it that is left is killed (5s, 500ms)")
      ->capture_default_str();
  command->callback([&context, options] { context.exit_code = stop(context, *options); });
}

void add_wait(CLI::App& app, Context& context) {
  auto options = std::make_shared<StopOptions>();
  CLI::App* command =
      app.add_subcommand("wait", "wait until a service has exited and print its exit code")
          ->group(kServices);
  command->add_option("NAME", options->names, "services")->required();
  command->callback([&context, options] { context.exit_code = wait(context, *options); });
}

}  // namespace godwit::cli
