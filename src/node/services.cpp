#include "node/services.h"

#include <cerrno>
#include <cstdlib>
#include <vector>

#include "absl/cleanup/cleanup.h"
#include "base/fault_point.h"
#include "base/log.h"
#include "base/status.h"
#include "capsule/cpu_limit.h"
#include "kernel/syscalls.h"
#include "node/service_port.h"
#include "resource/tcp_socket/tcp_socket.h"

namespace godwit::node {
namespace {

constexpr absl::Duration kUsersWait = absl::Seconds(2);
constexpr absl::Duration kDestroyWait = absl::Seconds(30);
// A bpffs below /sys would be no secret, but sockets and stores of daemons are.
constexpr const char* kMasked[] = {"/run/godwit", kDefaultState};

// All TCP sockets of one process; one that has just ended has none.
absl::Status end_repair(HostPid pid) {
  const auto pidfd = kernel::pidfd_open(pid);
  if (absl::IsNotFound(pidfd.status())) return absl::OkStatus();
  if (!pidfd.ok()) return pidfd.status();
  const auto names = kernel::list_folder(fmt::format("/proc/{}/fd", pid.value));
  if (absl::IsNotFound(names.status())) return absl::OkStatus();
  if (!names.ok()) return names.status();
  std::vector<int> fds;
  for (const std::string& each : *names) fds.push_back(std::atoi(each.c_str()));
  return resource::tcp_end_capture_of(pidfd->get(), fds);
}

absl::Status take_hold(network::Port& port, UniqueFd hold) {
  if (!hold) return port.prepare_hold();
  const absl::Status adopted = port.adopt_hold(std::move(hold));
  // EBADFD: the mover had let go of it, with nothing left in it, and its interface has gone.
  return errno_of(adopted) == EBADFD ? port.prepare_hold() : adopted;
}

}  // namespace

absl::StatusOr<capsule::Capsule> Services::create(const capsule::CapsuleSpec& spec,
                                                  bool replica) const {
  capsule::CreateOptions options;
  options.replica = replica;
  options.masked.assign(std::begin(kMasked), std::end(kMasked));
  GW_ASSIGN_OR_RETURN(capsule::Capsule made, capsule::Capsule::create(paths_, spec, options));
  auto undo = absl::MakeCleanup([&] {
    const absl::Status gone = destroy_capsule(spec.name());
    if (!gone.ok()) log_error("undoing the start of {}: {}", spec.name(), message_of(gone));
  });
  GW_ASSIGN_OR_RETURN(const capsule::CapsuleInfo info, made.info());
  GW_ASSIGN_OR_RETURN(const NodeNetwork network, load_network(config_.state_dir));
  GW_ASSIGN_OR_RETURN(const UniqueFd netns, open_netns_of(HostPid{info.init_pid()}));
  GW_ASSIGN_OR_RETURN(const network::PortSpec described, port_spec(network, spec, netns.get()));
  GW_RETURN_IF_ERROR(network::Port::create(described).status());
  std::move(undo).Cancel();
  return made;
}

absl::StatusOr<capsule::CapsuleInfo> Services::start(capsule::Capsule& capsule) const {
  GW_ASSIGN_OR_RETURN(const capsule::CapsuleInfo before, capsule.info());
  GW_ASSIGN_OR_RETURN(OpenedPort opened,
                      open_port(config_.state_dir, capsule.spec(), HostPid{before.init_pid()}));
  GW_RETURN_IF_ERROR(opened.port.prepare_announce());
  GW_RETURN_IF_ERROR(opened.port.set_phase(network::PortPhase::kSourceRunning));
  // The address may have been another service's a moment ago.
  GW_RETURN_IF_ERROR(opened.port.announce());
  return capsule.start();
}

absl::StatusOr<capsule::CapsuleInfo> Services::info(const std::string& name) const {
  GW_ASSIGN_OR_RETURN(capsule::Capsule capsule, open(name));
  return capsule.info();
}

std::string Services::capsule_of(const std::string& service) const {
  const std::lock_guard lock(capsules_->mutex);
  const auto found = capsules_->by_service.find(service);
  return found == capsules_->by_service.end() ? service : found->second;
}

void Services::set_capsule(const std::string& service, const std::string& capsule) const {
  const std::lock_guard lock(capsules_->mutex);
  if (capsule == service)
    capsules_->by_service.erase(service);
  else
    capsules_->by_service[service] = capsule;
}

std::string capsule_in(const api::ServiceRecord& record) {
  capsule::CapsuleSpec spec;
  const bool named = spec.ParseFromString(record.spec()) && !spec.name().empty();
  return named ? spec.name() : record.name();
}

absl::Status Services::destroy_capsule(const std::string& name) const {
  if (auto capsule = capsule::Capsule::open(paths_, name); capsule.ok()) {
    const auto limit = capsule::CpuLimit::find(capsule->work(), cpu_limit_name(paths_, name));
    const absl::Status lifted = limit.ok() ? limit->lift() : absl::OkStatus();
    if (!lifted.ok()) log_warning("{}: {}", name, message_of(lifted));
    // At the end the shim gives its users back what it holds of their input.
    if ((capsule->spec().tty() || capsule->spec().interactive()) && capsule->kill().ok())
      capsule->wait_exit(Deadline::in(kUsersWait)).IgnoreError();
  }
  const absl::Status port = network::Port::remove(name, config_.pin_dir());
  const absl::Status capsule = capsule::Capsule::destroy(paths_, name, Deadline::in(kDestroyWait));
  if (!port.ok()) return annotate(port, fmt::format("removing the port of {}", name));
  return capsule;
}

absl::Status Services::roll_back(const std::string& name, UniqueFd hold) const {
  GW_ASSIGN_OR_RETURN(capsule::Capsule capsule, open(name));
  GW_ASSIGN_OR_RETURN(const capsule::CapsuleInfo info, capsule.info());
  if (info.state() == capsule::CAPSULE_EXITED) return absl::OkStatus();
  GW_ASSIGN_OR_RETURN(const std::vector<HostPid> members, capsule.work_pids());
  for (const HostPid each : members) GW_RETURN_IF_ERROR(end_repair(each));
  GW_ASSIGN_OR_RETURN(OpenedPort opened,
                      open_port(config_.state_dir, capsule.spec(), HostPid{info.init_pid()}));
  GW_RETURN_IF_ERROR(take_hold(opened.port, std::move(hold)));
  GW_RETURN_IF_ERROR(opened.port.prepare_announce());
  GW_RETURN_IF_ERROR(opened.port.set_phase(network::PortPhase::kRolledBack));
  GW_RETURN_IF_ERROR(capsule.hold_input(false));
  GW_RETURN_IF_ERROR(capsule.thaw());
  // Its mover may have limited it. Where nothing can, nothing has.
  const auto limit =
      capsule::CpuLimit::find(capsule.work(), cpu_limit_name(paths_, capsule.spec().name()));
  if (limit.ok()) GW_RETURN_IF_ERROR(limit->lift());
  return opened.port.release_hold();
}

std::string cpu_limit_name(const capsule::NodePaths& node, const std::string& capsule) {
  return node.node + "-" + capsule;
}

absl::Status Services::give(const std::string& name, const network::Frames& frames) const {
  GW_ASSIGN_OR_RETURN(capsule::Capsule capsule, open(name));
  GW_ASSIGN_OR_RETURN(const capsule::CapsuleInfo info, capsule.info());
  GW_ASSIGN_OR_RETURN(OpenedPort opened,
                      open_port(config_.state_dir, capsule.spec(), HostPid{info.init_pid()}));
  return opened.port.inject(frames);
}

absl::Status Services::silence(const std::string& name) const {
  GW_ASSIGN_OR_RETURN(capsule::Capsule capsule, capsule::Capsule::open(paths_, name));
  GW_ASSIGN_OR_RETURN(const capsule::CapsuleInfo info, capsule.info());
  GW_ASSIGN_OR_RETURN(OpenedPort opened,
                      open_port(config_.state_dir, capsule.spec(), HostPid{info.init_pid()}));
  opened.port.gate().set_from(network::GateMode::kDrop);
  return absl::OkStatus();
}

absl::Status Services::activate(const std::string& name, int32_t main_image_pid,
                                UniqueFd hold) const {
  GW_ASSIGN_OR_RETURN(capsule::Capsule capsule, open(name));
  GW_ASSIGN_OR_RETURN(const capsule::CapsuleInfo info, capsule.info());
  if (info.state() == capsule::CAPSULE_EXITED) return absl::OkStatus();
  FAULT_POINT("node.activate");
  // Its mover died before it could name the main process.
  if (info.main_image_pid() == 0) {
    // It may have ended on the way, while others of the service live.
    if (!capsule.set_main_pid({main_image_pid}).ok()) GW_RETURN_IF_ERROR(capsule.set_main_pid({0}));
  }
  GW_RETURN_IF_ERROR(capsule.adopt());
  GW_ASSIGN_OR_RETURN(OpenedPort opened,
                      open_port(config_.state_dir, capsule.spec(), HostPid{info.init_pid()}));
  GW_RETURN_IF_ERROR(capsule.thaw());
  GW_RETURN_IF_ERROR(take_hold(opened.port, std::move(hold)));
  GW_RETURN_IF_ERROR(opened.port.prepare_announce());
  GW_RETURN_IF_ERROR(opened.port.set_phase(network::PortPhase::kActive));
  GW_RETURN_IF_ERROR(opened.port.announce());
  return opened.port.release_hold();
}

}  // namespace godwit::node
