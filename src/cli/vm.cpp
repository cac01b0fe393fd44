#include <fmt/core.h>

#include <fstream>
#include <memory>
#include <sstream>
#include <vector>

#include "base/status.h"
#include "cli/client.h"
#include "cli/command.h"
#include "cli/render.h"
#include "cli/session.h"
#include "cli/terminal.h"

namespace godwit::cli {
namespace {

struct VmOptions {
  std::string name, file, node, ip;
  bool json = false, no_stdin = false;
};

int print(const absl::StatusOr<api::Service>& vm, const VmOptions& options) {
  if (!vm.ok()) return complain(vm.status());
  if (!options.json) {
    fmt::print("{}", service_text(*vm));
    return 0;
  }
  Json json;
  service_json(json, *vm);
  fmt::print("{}", json.str());
  return 0;
}

int add(const Context& context, const VmOptions& options) {
  api::AddVmRequest request;
  request.set_name(options.name);
  request.set_node(options.node);
  request.set_ip(options.ip);
  if (!options.file.empty()) {
    std::ifstream in(options.file);
    std::stringstream text;
    text << in.rdbuf();
    if (!in)
      return complain(make_error(absl::StatusCode::kNotFound, "{} cannot be read", options.file));
    request.set_xml(text.str());
  }
  return print(
      ask<api::Service>(context.socket, [&](auto& stub, auto* call,
                                            auto* out) { return stub.AddVm(call, request, out); }),
      options);
}

int start(const Context& context, const VmOptions& options) {
  api::InspectRequest request;
  request.set_name(options.name);
  return print(ask<api::Service>(context.socket,
                                 [&](auto& stub, auto* call, auto* out) {
                                   return stub.StartVm(call, request, out);
                                 }),
               options);
}

int stop(const Context& context, const VmOptions& options) {
  api::StopRequest request;
  request.set_name(options.name);
  const auto reply = ask<api::StopReply>(context.socket, [&](auto& stub, auto* call, auto* out) {
    return stub.Stop(call, request, out);
  });
  return reply.ok() ? 0 : complain(reply.status());
}

int console(const Context& context, const VmOptions& options) {
  const bool terminal = is_terminal(STDIN_FILENO);
  api::ExecStart start;
  start.set_name(options.name);
  start.set_tty(terminal);
  start.set_interactive(!options.no_stdin);
  if (terminal)
    fmt::print(stderr, "connected to the console of {}; Ctrl-] leaves it\n", options.name);
  constexpr char kLeave = 0x1d;  // Ctrl-], as of telnet and virsh
  SessionOptions session{terminal, !options.no_stdin, false};
  if (terminal) session.leave_key = kLeave;
  return run_session(context.socket, session, start,
                     [](auto& stub, auto* call) { return stub.Attach(call); });
}

}  // namespace

void add_vm(CLI::App& app, Context& context) {
  auto options = std::make_shared<VmOptions>();
  VmOptions& o = *options;
  CLI::App* command =
      app.add_subcommand("vm", "virtual machines of a node's libvirt")->group(kServices);
  command->require_subcommand(1);
  command->footer(
      "Once a machine has been taken on, ps, inspect, stop, rm and migrate are for it as they are\n"
      "for services. rm forgets it and leaves it to libvirt; rm --force ends and undefines it.\n\n"
      "  godwit vm adopt web\n"
      "  godwit migrate web n2");
  CLI::App* adopt = command->add_subcommand("adopt", "take a domain of libvirt on, as it is");
  adopt->add_option("DOMAIN", o.name, "as virsh list --all shows it")->required();
  CLI::App* define = command->add_subcommand("define", "define a domain, and take it on");
  define->add_option("FILE", o.file, "libvirt's XML (https://libvirt.org/formatdomain.html)")
      ->required();
  for (CLI::App* each : {adopt, define}) {
    each->add_option("--node", o.node, "whose libvirt it is (default: the node that is asked)");
    each->add_option("--ip", o.ip,
                     "the address that the guest gives itself: it is reserved, and shown");
    each->add_flag("--json", o.json, "as inspect --json shows it");
    each->callback([&context, options] { context.exit_code = add(context, *options); });
  }
  CLI::App* starts = command->add_subcommand("start", "let a stopped machine start");
  starts->add_option("NAME", o.name, "machine")->required();
  starts->add_flag("--json", o.json, "as inspect --json shows it");
  starts->callback([&context, options] { context.exit_code = start(context, *options); });
  CLI::App* stops = command->add_subcommand(
      "stop", "press its power button; after 10 s, pull the plug (godwit stop has other times)");
  stops->add_option("NAME", o.name, "machine")->required();
  stops->callback([&context, options] { context.exit_code = stop(context, *options); });
  CLI::App* consoles = command->add_subcommand("console", "join its serial console");
  consoles->add_option("NAME", o.name, "machine")->required();
  consoles->add_flag("--no-stdin", o.no_stdin, "output only");
  consoles->callback([&context, options] { context.exit_code = console(context, *options); });
}

}  // namespace godwit::cli
