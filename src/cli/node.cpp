#include "node/node.h"

#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <climits>
#include <cstdlib>
#include <memory>

#include "api/transport.h"
#include "base/log.h"
#include "base/status.h"
#include "cli/command.h"
#include "cli/text.h"
#include "network/overlay.h"

namespace godwit::cli {
namespace {

struct NodeOptions {
  node::NodeConfig config;
  std::string listen;
  std::string join;
  std::string uplink;
  std::string bandwidth;
  bool store = false;
  bool keep_alive = false;
};

absl::Status fill(NodeOptions& options) {
  node::NodeConfig& config = options.config;
  const size_t colon = options.listen.rfind(':');
  config.listen_host = options.listen.substr(0, colon);
  if (colon != std::string::npos) {
    const long port = std::strtol(options.listen.c_str() + colon + 1, nullptr, 10);
    if (port <= 0 || port > 65535)
      return make_error(absl::StatusCode::kInvalidArgument, "--listen {}: use IP or IP:PORT",
                        options.listen);
    config.listen_port = static_cast<uint16_t>(port);
  }
  if (options.store && config.store_path.empty())
    config.store_path = config.state_dir + "/store.db";
  if (config.store_path.empty() == options.join.empty())
    return make_error(absl::StatusCode::kInvalidArgument,
                      "one node of a cluster keeps the store (--store), the others name it "
                      "(--join NODE@HOST:PORT)");
  if (!options.join.empty()) {
    const size_t at = options.join.find('@');
    if (at == std::string::npos || at == 0)
      return make_error(absl::StatusCode::kInvalidArgument, "--join {}: use NODE@HOST:PORT",
                        options.join);
    config.join_node = options.join.substr(0, at);
    config.join_address = options.join.substr(at + 1);
    if (config.join_address.find(':') == std::string::npos)
      config.join_address += ":" + std::to_string(node::kDefaultPort);
  }
  if (config.name.empty()) {
    char name[HOST_NAME_MAX + 1] = {};
    if (::gethostname(name, sizeof name - 1) != 0) return errno_status(errno, "gethostname()");
    config.name = name;
  }
  if (!options.bandwidth.empty()) {
    const auto limit = parse_bandwidth(options.bandwidth);
    if (!limit.ok()) return annotate(limit.status(), "--bandwidth");
    config.bandwidth_bytes_per_s = *limit;
  }
  if (options.uplink.empty()) return absl::OkStatus();
  network::LanSpec lan;
  lan.bridge = config.bridge;
  lan.uplink = options.uplink;
  lan.mtu = config.mtu;
  return network::set_up_lan(lan);
}

// Starts the daemon again whenever it is killed, at once: services do not notice, and a migration
// that was under way is settled within the second. Ends with a daemon that ends by itself.
int run_kept_alive(const node::NodeConfig& config) {
  sigset_t set;
  ::sigemptyset(&set);
  for (const int each : {SIGTERM, SIGINT, SIGCHLD}) ::sigaddset(&set, each);
  ::sigprocmask(SIG_BLOCK, &set, nullptr);
  node::NodeConfig current = config;
  while (true) {
    const pid_t parent = ::getpid();
    const pid_t daemon = ::fork();
    if (daemon < 0) return complain(errno_status(errno, "fork()"));
    if (daemon == 0) {
      ::sigprocmask(SIG_UNBLOCK, &set, nullptr);
      ::prctl(PR_SET_PDEATHSIG, SIGTERM);
      if (::getppid() != parent) return 0;
      return node::node_main(current);
    }
    // Said once; a successor's readiness interests nobody.
    if (current.ready_fd >= 0) ::close(current.ready_fd);
    current.ready_fd = -1;
    int status = 0;
    while (true) {
      int number = 0;
      ::sigwait(&set, &number);
      if (number != SIGCHLD) ::kill(daemon, SIGTERM);
      if (::waitpid(daemon, &status, WNOHANG) == daemon) break;
    }
    if (WIFEXITED(status)) return WEXITSTATUS(status);
    log_warning("the daemon was ended by signal {}; starting it again", WTERMSIG(status));
  }
}

int run_node(NodeOptions& options) {
  if (absl::Status status = fill(options); !status.ok()) return complain(status, kUsage);
  return options.keep_alive ? run_kept_alive(options.config) : node::node_main(options.config);
}

}  // namespace

void add_node(CLI::App& app, Context& context) {
  auto options = std::make_shared<NodeOptions>();
  NodeOptions& o = *options;
  CLI::App* command = app.add_subcommand("node", "be a node's daemon")->group(kCluster);
  command->add_option("--name", o.config.name, "name in the cluster (default: the host name)");
  command->add_option("--listen", o.listen, "IP[:PORT] where other nodes reach this one")
      ->required();
  command
      ->add_option("--state", o.config.state_dir,
                   "folder with the services' layers; on a file system that overlayfs takes as "
                   "upper layer")
      ->capture_default_str();
  command->add_option("--tls", o.config.tls_dir,
                      "folder with ca.crt, node.crt, node.key (see godwit certificates; default: "
                      "STATE/tls)");
  command
      ->add_option_function<std::string>(
          "--data-tls",
          [&o](const std::string& value) {
            if (value != "on" && value != "off")
              throw CLI::ValidationError("--data-tls " + value, "use on or off");
            o.config.data_tls = value == "on";
          },
          "off: what services have in memory crosses the network readable and can be changed on "
          "the way; on all nodes or on none")
      ->default_str("on");
  command->add_option(
      "--bandwidth", o.bandwidth,
      "limit of all that its migrations send together, a second: 100MiB, 1Gbit; they "
      "share it equally, and the freeze is not limited (default: none)");
  command->add_flag("--store", o.store, "keep the cluster's store, in STATE/store.db");
  command->add_option("--store-file", o.config.store_path, "the same, in this file");
  command->add_option("--join", o.join, "NODE@HOST[:PORT] of the node that keeps the store");
  command->add_option("--bridge", o.config.bridge, "services' ports are put there")
      ->capture_default_str();
  command->add_option("--uplink", o.uplink,
                      "make the bridge, with this interface as its port to the services' segment");
  command->add_option("--subnet", o.config.subnet, "the services' network")->capture_default_str();
  command->add_option("--pool", o.config.pool,
                      "FIRST-LAST, addresses to give to services (default: upper half of the "
                      "subnet)");
  command->add_option("--subnet6", o.config.subnet6, "their IPv6 network (default: none)");
  command->add_option("--gateway", o.config.gateway,
                      "default route of services: an address, or one of each family with a comma");
  command->add_option("--mtu", o.config.mtu, "of the services' ports")->capture_default_str();
  command->add_option("--local-name", o.config.local_name,
                      "for several nodes on one machine: names the services' cgroup (default: the "
                      "name)");
  command->add_option("--libvirt", o.config.libvirt_socket,
                      "socket of the libvirt daemon with the node's virtual machines (default: "
                      "/run/libvirt/virtqemud-sock or /run/libvirt/libvirt-sock)");
  command
      ->add_option("--vm-sockets", o.config.vm_sockets,
                   "the folder that libvirt has as /run/godwit/vm, if it has a mount namespace of "
                   "its own")
      ->capture_default_str();
  command->add_flag("--keep-alive", o.keep_alive, "start the daemon again when it is killed");
  command->add_option("--ready-fd", o.config.ready_fd,
                      "write \"ready\" there once calls are served");
  command->footer(
      "--socket (before the command) is where users' commands find the daemon. SIGTERM ends the\n"
      "daemon; services run on and are found again by the next one.\n\n"
      "  godwit node --name n1 --listen 192.0.2.1 --store --uplink eth1\n"
      "  godwit node --name n2 --listen 192.0.2.2 --join n1@192.0.2.1 --uplink eth1");
  command->callback([&context, options] {
    if (!context.socket.empty()) options->config.socket = context.socket;
    context.exit_code = run_node(*options);
  });
}

}  // namespace godwit::cli
