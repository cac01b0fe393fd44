#include <memory>

#include "cli/client.h"
#include "cli/command.h"
#include "cli/text.h"

namespace godwit::cli {
namespace {

struct SignalOptions {
  std::string name;
  std::string signal;
};

int send_signal(const Context& context, const SignalOptions& options) {
  const auto number = parse_signal(options.signal);
  if (!number.ok()) return complain(number.status(), kUsage);
  api::SignalRequest request;
  request.set_name(options.name);
  request.set_signal(*number);
  const auto reply = ask<api::Empty>(context.socket, [&](auto& stub, auto* call, auto* out) {
    return stub.Signal(call, request, out);
  });
  return reply.ok() ? 0 : complain(reply.status());
}

}  // namespace

void add_signal(CLI::App& app, Context& context) {
  auto options = std::make_shared<SignalOptions>();
  CLI::App* command =
      app.add_subcommand("signal", "send a signal to a service's main process")->group(kServices);
  command->add_option("NAME", options->name, "service")->required();
  command->add_option("SIGNAL", options->signal, "a name (HUP, SIGHUP) or a number")->required();
  command->footer(
      "Once the main process has ended (a program that daemonises), the signal goes\n"
      "to all processes of the service.");
  command->callback([&context, options] { context.exit_code = send_signal(context, *options); });
}

}  // namespace godwit::cli
