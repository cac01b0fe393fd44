#include <fmt/core.h>

#include <memory>
#include <vector>

#include "base/status.h"
#include "cli/command.h"
#include "cli/json.h"
#include "cli/lab.h"
#include "cli/lab_daemon.h"
#include "cli/text.h"
#include "node/node_config.h"

namespace godwit::cli {
namespace {

struct LabOptions {
  network::LabSpec spec;
  std::string host;
  std::vector<std::string> argv;
  bool json = false;
  bool vm = false;
};

int up(LabOptions& options, const std::vector<std::string>& more) {
  options.spec.id = node::LabPlace::current().id;
  const absl::Status status = lab_up(options.spec, options.vm, more);
  if (!status.ok()) return complain(status);
  const auto lab = network::LabNetwork::of(options.spec);
  if (!lab.ok()) return complain(lab.status());
  for (uint32_t number = 1; number <= options.spec.nodes; ++number)
    fmt::print("n{}  {}\n", number, lab->node_address(number).ip.text());
  fmt::print("client  {}\n", lab->client_address().ip.text());
  return 0;
}

int status(const LabOptions& options) {
  const auto spec = lab_spec();
  if (!spec.ok()) return complain(spec.status());
  const auto lab = network::LabNetwork::of(*spec);
  if (!lab.ok()) return complain(lab.status());
  Table table({"HOST", "ADDRESS", "NAMESPACE", "DAEMON", "SOCKET"});
  Json json;
  json.array();
  for (uint32_t number = 1; number <= spec->nodes; ++number) {
    const std::string name = "n" + std::to_string(number);
    const node::LabPlace place = node::LabPlace::current();
    const std::string run = place.run + "/" + name;
    const bool lives = static_cast<bool>(open_by_pid_file(run + "/pid"));
    table.row({name, lab->node_address(number).ip.text(), lab->node_netns(number),
               lives ? "runs" : "down", place.socket(name)});
    json.object()
        .text("host", name)
        .text("address", lab->node_address(number).ip.text())
        .text("namespace", lab->node_netns(number))
        .boolean("daemon", lives)
        .text("socket", place.socket(name))
        .text("log", run + "/node.log")
        .end();
  }
  table.row({"client", lab->client_address().ip.text(), lab->client_netns(), "-", "-"});
  json.object()
      .text("host", "client")
      .text("address", lab->client_address().ip.text())
      .text("namespace", lab->client_netns())
      .end();
  fmt::print("{}", options.json ? json.end().str() : table.str());
  return 0;
}

}  // namespace

void add_lab(CLI::App& app, Context& context) {
  auto options = std::make_shared<LabOptions>();
  LabOptions& o = *options;
  CLI::App* command =
      app.add_subcommand("lab", "nodes and a client on this machine, to try things out")
          ->group(kCluster);
  command->require_subcommand(1);
  command->footer(
      "A lab is a small cluster in network namespaces: nodes n1, n2, ..., each with a daemon, a\n"
      "state folder and an address of its own, and a host \"client\". While one is up, the other\n"
      "commands ask its n1.\n\n"
      "  godwit lab up\n"
      "  godwit run --name cache -d -- redis-server --save '' --protected-mode no\n"
      "  godwit migrate cache n2\n"
      "  godwit lab exec client -- redis-cli -h $(godwit inspect cache --json | jq -r .address)\n"
      "  godwit lab down");
  CLI::App* first = command->add_subcommand("up", "make the lab; one that is up stays as it is");
  first->add_option("--nodes", o.spec.nodes, "how many")
      ->check(CLI::Range(1, 99))
      ->capture_default_str();
  first->add_flag("--overlay", o.spec.overlay,
                  "join the nodes by VXLAN, with the client outside, instead of one segment");
  first
      ->add_option("--subnet", o.spec.subnet,
                   "of the services (and of nodes and client, without "
                   "--overlay)")
      ->capture_default_str();
  first->add_flag("--vm", o.vm, "with a libvirt daemon on each node, for virtual machines");
  first->add_option("--subnet6", o.spec.subnet6, "the same for IPv6")->capture_default_str();
  first->footer(
      "What follows after -- are more options of the daemons that are started, see godwit node:\n\n"
      "  godwit lab up -- --data-tls off");
  first->callback([&context, options] { context.exit_code = up(*options, context.tail); });

  CLI::App* second = command->add_subcommand("exec", "run a command on a host of the lab");
  second->add_option("HOST", o.host, "n1, n2, ..., or client")->required();
  second->add_option("COMMAND", o.argv, "program and its arguments, after --");
  second->footer(
      "The command is this machine's and sees its files; only its network is the\n"
      "host's. On a node, godwit asks that node's daemon.");
  second->callback([&context, options] {
    options->argv.insert(options->argv.end(), context.tail.begin(), context.tail.end());
    context.exit_code =
        options->argv.empty()
            ? complain(absl::InvalidArgumentError("name a command: lab exec HOST -- COMMAND"),
                       kUsage)
            : complain(lab_exec(options->host, options->argv), kOwnError);
  });

  CLI::App* third = command->add_subcommand("status", "show its hosts");
  third->add_flag("--json", o.json, "an array with host, address, namespace, daemon, socket, log");
  third->callback([&context, options] { context.exit_code = status(*options); });

  CLI::App* last = command->add_subcommand("down", "take the lab down with all its services");
  last->callback([&context] {
    const absl::Status done = lab_down();
    context.exit_code = done.ok() ? 0 : complain(done);
  });
}

}  // namespace godwit::cli
