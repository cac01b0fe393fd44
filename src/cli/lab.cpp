#include "cli/lab.h"

#include <fcntl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <sstream>

#include "base/status.h"
#include "capsule/capsule.h"
#include "cli/lab_daemon.h"
#include "cli/lab_file.h"
#include "cli/lab_libvirt.h"
#include "kernel/syscalls.h"
#include "network/netns.h"
#include "network/port.h"
#include "node/journal.h"
#include "node/mover_process.h"
#include "node/node_config.h"
#include "tls/certificates.h"

namespace godwit::cli {
namespace {

namespace fs = std::filesystem;

constexpr absl::Duration kReadyWait = absl::Seconds(30);
constexpr absl::Duration kStopWait = absl::Seconds(15);
constexpr absl::Duration kDestroyWait = absl::Seconds(30);

node::LabPlace place() { return node::LabPlace::current(); }
std::string run_dir(const std::string& node) { return place().run + "/" + node; }
std::string state_dir(const std::string& node) { return place().state + "/" + node; }
// Unique on this machine, which may have several labs.
std::string local_name(const std::string& node) { return place().id + "-" + node; }
std::string node_name(uint32_t number) { return "n" + std::to_string(number); }
std::string spec_file() { return place().run + "/spec"; }

std::string to_text(const network::LabSpec& spec) {
  return fmt::format("{} {} {} {} {} {} {}\n", spec.id, spec.nodes, spec.overlay ? 1 : 0,
                     spec.subnet, spec.subnet6, spec.underlay, spec.underlay6);
}

absl::Status make_folder(const std::string& path, mode_t mode) {
  std::error_code error;
  fs::create_directories(path, error);
  if (error) return errno_status(error.value(), fmt::format("mkdir({})", path));
  if (::chmod(path.c_str(), mode) != 0) return errno_status(errno, fmt::format("chmod({})", path));
  return absl::OkStatus();
}

bool is_folder(const std::string& path) {
  std::error_code error;
  return fs::is_directory(path, error);
}

bool is_mount_point(const std::string& path) {
  struct stat self {
  }, parent{};
  return ::stat(path.c_str(), &self) == 0 && ::stat((path + "/..").c_str(), &parent) == 0 &&
         self.st_dev != parent.st_dev;
}

absl::Status make_run_folder() {
  const std::string run = place().run;
  GW_RETURN_IF_ERROR(make_folder(run, 0755));
  if (is_mount_point(run)) return absl::OkStatus();
  if (::mount("godwit-lab", run.c_str(), "tmpfs", MS_NOSUID | MS_NODEV, "mode=0755,size=64m") != 0)
    return errno_status(errno, fmt::format("mount(tmpfs, {})", run));
  return absl::OkStatus();
}

absl::Status make_identities(uint32_t nodes) {
  const std::string folder = place().run + "/ca";
  auto authority = tls::load_authority(folder);
  if (!authority.ok()) {
    authority = tls::make_authority("lab");
    GW_RETURN_IF_ERROR(authority.status());
    GW_RETURN_IF_ERROR(tls::save_authority(folder, *authority));
  }
  for (uint32_t number = 1; number <= nodes; ++number) {
    const std::string name = node_name(number);
    GW_RETURN_IF_ERROR(make_folder(run_dir(name), 0700));
    const std::string tls = run_dir(name) + "/tls";
    if (tls::load_identity(tls).ok()) continue;
    GW_ASSIGN_OR_RETURN(const tls::Certificate own, tls::issue_certificate(*authority, name));
    GW_RETURN_IF_ERROR(tls::save_identity(tls, {authority->certificate_pem, own}));
  }
  return absl::OkStatus();
}

std::string joined(const std::vector<network::IpAddress>& addresses) {
  std::string text;
  for (const network::IpAddress& each : addresses) text += (text.empty() ? "" : ",") + each.text();
  return text;
}

LabLibvirt libvirt_of(const std::string& node, const std::string& netns) {
  LabLibvirt libvirt;
  libvirt.netns = netns;
  libvirt.run = run_dir(node);
  libvirt.state = state_dir(node);
  libvirt.cache = place().state + "/libvirt-cache";
  libvirt.host_name = local_name(node);
  libvirt.number = static_cast<uint32_t>(std::strtoul(node.c_str() + 1, nullptr, 10));
  return libvirt;
}

absl::Status start_node(const network::LabNetwork& lab, uint32_t number,
                        const std::vector<std::string>& more) {
  const std::string name = node_name(number);
  const std::string run = run_dir(name);
  if (open_by_pid_file(run + "/pid")) return absl::OkStatus();
  GW_RETURN_IF_ERROR(make_folder(place().state, 0755));
  GW_RETURN_IF_ERROR(make_folder(state_dir(name), 0700));
  const std::string address = lab.node_address(number).ip.text();
  // Away from what the lab uses itself, and enough for any test.
  constexpr uint32_t kPool = 100;
  std::vector<std::string> arguments = {
      "--socket",
      place().socket(name),
      "node",
      "--name",
      name,
      "--local-name",
      local_name(name),
      "--listen",
      address,
      "--state",
      state_dir(name),
      "--tls",
      run + "/tls",
      "--subnet",
      lab.spec().subnet,
      "--pool",
      lab.service_address(0).ip.text() + "-" + lab.service_address(kPool - 1).ip.text(),
      "--subnet6",
      lab.spec().subnet6,
      "--mtu",
      std::to_string(lab.service_mtu()),
      "--keep-alive"};
  if (number == 1) {
    arguments.insert(arguments.end(), {"--store-file", run + "/store.db"});
  } else {
    arguments.insert(arguments.end(), {"--join", "n1@" + lab.node_address(1).ip.text()});
  }
  const LabLibvirt libvirt = libvirt_of(name, lab.node_netns(number));
  if (is_folder(libvirt.folder()))
    arguments.insert(arguments.end(),
                     {"--libvirt", libvirt.socket(), "--vm-sockets", libvirt.sockets()});
  const std::string gateways = joined(lab.service_gateways());
  if (!gateways.empty()) arguments.insert(arguments.end(), {"--gateway", gateways});
  arguments.insert(arguments.end(), more.begin(), more.end());
  return start_daemon(lab.node_netns(number), arguments, run + "/node.log", run + "/pid",
                      Deadline::in(kReadyWait));
}

// A killed daemon may leave movers; they would end by themselves a moment later.
absl::Status end_movers(const std::string& state) {
  const auto entries = node::Journal(state).all();
  if (!entries.ok()) return absl::OkStatus();  // nothing that could be read names a mover
  for (const api::MigrationJournal& each : *entries)
    GW_RETURN_IF_ERROR(
        node::end_left_over_mover(each.mover_pid(), each.mover_start_ticks(), 0).status());
  return absl::OkStatus();
}

absl::Status remove_services(const std::string& node, const std::string& netns) {
  const capsule::NodePaths paths{state_dir(node), local_name(node)};
  GW_ASSIGN_OR_RETURN(const std::vector<std::string> names, capsule::list_services(paths));
  node::NodeConfig config;
  config.name = node;
  config.local_name = local_name(node);
  for (const std::string& name : names) {
    // The namespace may be gone already, and the port with it.
    const auto inside = network::NetnsScope::enter_named(netns);
    if (inside.ok()) GW_RETURN_IF_ERROR(network::Port::remove(name, config.pin_dir()));
    GW_RETURN_IF_ERROR(capsule::Capsule::destroy(paths, name, Deadline::in(kDestroyWait)));
  }
  ::unlink(config.bandwidth_file().c_str());
  // Gates that a killed daemon had not finished making.
  if (is_mount_point(config.pin_dir()) && ::umount2(config.pin_dir().c_str(), MNT_DETACH) != 0)
    return errno_status(errno, fmt::format("umount2({})", config.pin_dir()));
  ::rmdir(config.pin_dir().c_str());
  const auto cgroups = capsule::cgroup2_mount();
  if (cgroups.ok()) ::rmdir((*cgroups + "/godwit/" + local_name(node)).c_str());
  return absl::OkStatus();
}

std::vector<std::string> nodes_with_folders() {
  std::vector<std::string> names;
  for (const std::string& parent : {place().run, place().state}) {
    const auto found = kernel::list_folder(parent);
    if (!found.ok()) continue;
    for (const std::string& each : *found)
      if (each.size() > 1 && each[0] == 'n' &&
          each.find_first_not_of("0123456789", 1) == std::string::npos)
        names.push_back(each);
  }
  return names;
}

void remove_if_empty(const std::string& folder) { ::rmdir(folder.c_str()); }

// Of libvirt daemons in mount namespaces of their own. The mounts of other labs there would go with
// them (rmdir(2) detaches what is mounted in other namespaces).
void remove_mount_points() {
  const auto names = kernel::list_folder("/run/godwit");
  if (!names.ok()) return;
  for (const std::string& each : *names)
    if (each.starts_with("lab")) return;
  remove_if_empty(node::kVmSockets);
  remove_if_empty("/run/libvirt");
}

}  // namespace

absl::StatusOr<network::LabSpec> lab_spec() {
  const auto text = kernel::read_file(spec_file(), 4096);
  if (!text.ok())
    return make_error(absl::StatusCode::kNotFound, "no lab is up; bring one up with godwit lab up");
  network::LabSpec spec;
  int overlay = 0;
  std::istringstream in(*text);
  in >> spec.id >> spec.nodes >> overlay >> spec.subnet >> spec.subnet6 >> spec.underlay >>
      spec.underlay6;
  if (!in) return make_error(absl::StatusCode::kDataLoss, "{} does not parse", spec_file());
  spec.overlay = overlay != 0;
  return spec;
}

absl::Status lab_up(const network::LabSpec& spec, bool libvirt,
                    const std::vector<std::string>& more) {
  if (::geteuid() != 0) return make_error(absl::StatusCode::kPermissionDenied, "a lab needs root");
  GW_ASSIGN_OR_RETURN(const network::LabNetwork lab, network::LabNetwork::of(spec));
  const auto before = lab_spec();
  if (before.ok() && to_text(*before) != to_text(spec))
    return make_error(absl::StatusCode::kAlreadyExists,
                      "another lab is up ({} nodes{}, {}); take it down first (godwit lab down)",
                      before->nodes, before->overlay ? ", overlay" : "", before->subnet);
  GW_RETURN_IF_ERROR(make_run_folder());
  GW_RETURN_IF_ERROR(write_lab_file(spec_file(), to_text(spec)));
  GW_RETURN_IF_ERROR(lab.up());
  GW_RETURN_IF_ERROR(make_identities(spec.nodes));
  if (libvirt) {
    GW_RETURN_IF_ERROR(make_folder(place().state, 0755));
    for (uint32_t number = 1; number <= spec.nodes; ++number) {
      const std::string name = node_name(number);
      GW_RETURN_IF_ERROR(make_folder(state_dir(name), 0700));
      if (open_by_pid_file(run_dir(name) + "/pid") &&
          !is_folder(libvirt_of(name, lab.node_netns(number)).folder()))
        return make_error(absl::StatusCode::kAlreadyExists,
                          "a lab is up without libvirt; take it down first (godwit lab down)");
      GW_RETURN_IF_ERROR(
          start_libvirt(libvirt_of(name, lab.node_netns(number)), Deadline::in(kReadyWait)));
    }
  }
  // The first keeps the store that the others join.
  for (uint32_t number = 1; number <= spec.nodes; ++number)
    GW_RETURN_IF_ERROR(start_node(lab, number, more));
  return absl::OkStatus();
}

absl::Status lab_down() {
  if (::geteuid() != 0) return make_error(absl::StatusCode::kPermissionDenied, "a lab needs root");
  const auto [id, run, state] = place();
  const std::vector<std::string> nodes = nodes_with_folders();
  // All daemons first: one that loses its peer would begin to settle things.
  for (const std::string& each : nodes)
    GW_RETURN_IF_ERROR(stop_daemon(run_dir(each) + "/pid", Deadline::in(kStopWait)));
  for (const std::string& each : nodes)
    GW_RETURN_IF_ERROR(stop_libvirt(libvirt_of(each, id + "-" + each), Deadline::in(kStopWait)));
  for (const std::string& each : nodes) {
    GW_RETURN_IF_ERROR(end_movers(state_dir(each)));
    GW_RETURN_IF_ERROR(remove_services(each, id + "-" + each));
  }
  GW_RETURN_IF_ERROR(network::LabNetwork::down(id));
  std::error_code error;
  fs::remove_all(state, error);
  if (error) return errno_status(error.value(), fmt::format("removing {}", state));
  if (is_mount_point(run) && ::umount2(run.c_str(), MNT_DETACH) != 0)
    return errno_status(errno, fmt::format("umount2({})", run));
  fs::remove_all(run, error);
  if (error) return errno_status(error.value(), fmt::format("removing {}", run));
  remove_mount_points();
  remove_if_empty("/run/godwit");
  remove_if_empty(node::kDefaultState);
  const auto cgroups = capsule::cgroup2_mount();
  if (cgroups.ok()) remove_if_empty(*cgroups + "/godwit");
  return absl::OkStatus();
}

absl::Status lab_exec(const std::string& host, const std::vector<std::string>& argv) {
  GW_ASSIGN_OR_RETURN(const network::LabSpec spec, lab_spec());
  GW_ASSIGN_OR_RETURN(const network::NetnsScope inside,
                      network::NetnsScope::enter_named(spec.id + "-" + host));
  const std::string socket = place().socket(host);
  if (::access(socket.c_str(), F_OK) == 0) ::setenv("GODWIT_SOCKET", socket.c_str(), 1);
  std::vector<char*> arguments;
  for (const std::string& each : argv) arguments.push_back(const_cast<char*>(each.c_str()));
  arguments.push_back(nullptr);
  ::execvp(arguments[0], arguments.data());
  return errno_status(errno, fmt::format("execvp({})", argv[0]));
}

}  // namespace godwit::cli
