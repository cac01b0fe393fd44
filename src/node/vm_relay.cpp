#include "node/vm_relay.h"

#include <fcntl.h>
#include <grp.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <cstring>

#include "base/log.h"
#include "base/status.h"

namespace godwit::node {
namespace {

constexpr absl::Duration kConnectWait = absl::Seconds(10);
constexpr absl::Duration kLook = absl::Milliseconds(200);
constexpr char kSourceKinds[] = {'c', 'm', 'd', 's'};

// Whose group QEMU's processes are in, where libvirt does not run them as root.
const group* group_of_qemu() {
  for (const char* each : {"libvirt-qemu", "qemu", "kvm"})
    if (const group* found = ::getgrnam(each)) return found;
  return nullptr;
}

absl::StatusOr<sockaddr_un> address_of(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof address.sun_path)
    return make_error(absl::StatusCode::kInvalidArgument, "{}: too long for a socket", path);
  std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
  return address;
}

absl::StatusOr<UniqueFd> unix_socket() {
  UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd) return errno_status(errno, "socket(AF_UNIX)");
  return fd;
}

absl::StatusOr<UniqueFd> listen_at(const std::string& path) {
  GW_ASSIGN_OR_RETURN(const sockaddr_un address, address_of(path));
  GW_ASSIGN_OR_RETURN(UniqueFd fd, unix_socket());
  ::unlink(path.c_str());
  if (::bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0)
    return errno_status(errno, fmt::format("bind({})", path));
  if (const group* qemu = group_of_qemu()) {
    if (::chown(path.c_str(), 0, qemu->gr_gid) != 0)
      return errno_status(errno, fmt::format("chown({})", path));
  }
  if (::chmod(path.c_str(), 0660) != 0) return errno_status(errno, fmt::format("chmod({})", path));
  if (::listen(fd.get(), 16) != 0) return errno_status(errno, fmt::format("listen({})", path));
  return fd;
}

absl::StatusOr<UniqueFd> connect_to(const std::string& path) {
  GW_ASSIGN_OR_RETURN(const sockaddr_un address, address_of(path));
  GW_ASSIGN_OR_RETURN(UniqueFd fd, unix_socket());
  if (::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0)
    return errno_status(errno, fmt::format("connect({})", path));
  return fd;
}

migration::Purpose purpose_of(char kind) {
  switch (kind) {
    case 'c':
      return migration::Purpose::kVmControl;
    case 'm':
      return migration::Purpose::kVmMemory;
    default:
      return migration::Purpose::kVmDisks;
  }
}

char kind_of(migration::Purpose purpose) {
  switch (purpose) {
    case migration::Purpose::kVmControl:
      return 'c';
    case migration::Purpose::kVmMemory:
      return 'm';
    case migration::Purpose::kVmDisks:
      return 'd';
    default:
      return 0;
  }
}

// One that says nothing for long is asked for a sign of life (tcp(7)).
void expect_signs_of_life(int fd) {
  const int on = 1, second = 1;
  ::setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &second, sizeof second);
  ::setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &second, sizeof second);
  ::setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
}

}  // namespace

absl::Status make_vm_socket_folder(const std::string& folder) {
  if (::mkdir(folder.c_str(), 0711) != 0 && errno != EEXIST)
    return errno_status(errno, fmt::format("mkdir({})", folder));
  const group* qemu = group_of_qemu();
  if (qemu != nullptr && ::chown(folder.c_str(), 0, qemu->gr_gid) != 0)
    return errno_status(errno, fmt::format("chown({})", folder));
  if (::chmod(folder.c_str(), 0731) != 0)
    return errno_status(errno, fmt::format("chmod({})", folder));
  return absl::OkStatus();
}

std::string VmRelay::shared_path(const std::string& id, char kind) {
  return std::string(kVmSockets) + "/" + id + "." + kind;
}

absl::StatusOr<std::unique_ptr<VmRelay>> VmRelay::at_source(const NodeConfig& config,
                                                            const std::string& libvirt,
                                                            const std::string& id,
                                                            const std::string& host, uint16_t port,
                                                            migration::Terms terms,
                                                            std::unique_ptr<pages::Pacer> pacer) {
  std::unique_ptr<VmRelay> relay(new VmRelay(config, libvirt, id, std::move(terms)));
  relay->host_ = host;
  relay->port_ = port;
  relay->traffic_.set_pacer(std::move(pacer));
  GW_RETURN_IF_ERROR(make_vm_socket_folder(relay->folder_));
  GW_RETURN_IF_ERROR(relay->listen_locally());
  relay->accepting_ = std::thread([self = relay.get()] { self->accept_locally(); });
  return relay;
}

absl::StatusOr<std::unique_ptr<VmRelay>> VmRelay::at_destination(const NodeConfig& config,
                                                                 const std::string& libvirt,
                                                                 const std::string& id,
                                                                 migration::Terms terms) {
  std::unique_ptr<VmRelay> relay(new VmRelay(config, libvirt, id, std::move(terms)));
  GW_RETURN_IF_ERROR(make_vm_socket_folder(relay->folder_));
  GW_ASSIGN_OR_RETURN(relay->listener_, migration::listen_on(config.listen_host));
  relay->port_ = relay->listener_.port;
  relay->accepting_ = std::thread([self = relay.get()] { self->accept_from_peer(); });
  return relay;
}

VmRelay::~VmRelay() {
  stopping_ = true;
  cut();
  if (accepting_.joinable()) accepting_.join();
  cut();  // what was accepted meanwhile
  for (Flow& each : flows_) each.thread.join();
  for (const char kind : kSourceKinds) ::unlink(path(kind).c_str());
}

void VmRelay::remove_sockets(const NodeConfig& config, const std::string& id) {
  for (const char kind : kSourceKinds)
    ::unlink(fmt::format("{}/{}.{}", config.vm_sockets, id, kind).c_str());
}

absl::Status VmRelay::listen_locally() {
  for (const char kind : kSourceKinds) {
    GW_ASSIGN_OR_RETURN(UniqueFd fd, listen_at(path(kind)));
    locals_.push_back({kind, std::move(fd)});
  }
  return absl::OkStatus();
}

void VmRelay::accept_locally() {
  std::vector<pollfd> polled;
  for (const Local& each : locals_) polled.push_back({each.fd.get(), POLLIN, 0});
  while (!stopping_) {
    if (::poll(polled.data(), polled.size(), static_cast<int>(absl::ToInt64Milliseconds(kLook))) <=
        0)
      continue;
    for (size_t i = 0; i < locals_.size(); ++i) {
      if (polled[i].revents == 0) continue;
      UniqueFd fd(::accept4(locals_[i].fd.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
      if (fd) add(locals_[i].kind, std::move(fd), nullptr);
    }
  }
}

void VmRelay::accept_from_peer() {
  migration::Acceptor acceptor(listener_.fd.get(), terms_);
  while (!stopping_) {
    auto accepted = acceptor.next(Deadline::in(kLook));
    if (!accepted.ok()) {
      if (absl::IsDeadlineExceeded(accepted.status())) continue;
      log_warning("migration {}: {}", id_, message_of(accepted.status()));
      broken_ = true;
      return;
    }
    if (const char kind = kind_of(accepted->purpose)) add(kind, {}, std::move(accepted->channel));
  }
}

void VmRelay::add(char kind, UniqueFd local, std::unique_ptr<tls::Channel> far) {
  std::lock_guard lock(mutex_);
  Flow& flow = flows_.emplace_back();
  flow.kind = kind;
  flow.local = std::move(local);
  flow.far = std::move(far);
  flow.thread = std::thread([this, &flow] { serve(flow); });
}

absl::Status VmRelay::complete(Flow& flow) {
  if (flow.far != nullptr) {
    GW_ASSIGN_OR_RETURN(flow.local, connect_to(flow.kind == 'c' ? libvirt_ : path(flow.kind)));
    return absl::OkStatus();
  }
  if (flow.kind == 's') {
    GW_ASSIGN_OR_RETURN(UniqueFd fd, connect_to(libvirt_));
    flow.far = std::make_unique<tls::Channel>(std::move(fd));
    return absl::OkStatus();
  }
  GW_ASSIGN_OR_RETURN(flow.far,
                      migration::connect_to_peer(host_, port_, terms_, purpose_of(flow.kind),
                                                 Deadline::in(kConnectWait)));
  expect_signs_of_life(flow.far->fd());
  return absl::OkStatus();
}

void VmRelay::serve(Flow& flow) {
  const absl::Status completed = complete(flow);
  const bool own = flow.kind == 's';
  bool well = completed.ok();
  if (well) {
    {
      std::lock_guard lock(mutex_);
      flow.pump = std::make_unique<vm::Pump>(std::make_unique<tls::Channel>(std::move(flow.local)),
                                             std::move(flow.far), own ? nullptr : &traffic_);
      if (stopping_ || broken_) flow.pump->stop();
      if (own && own_held_) flow.pump->hold(true);
    }
    well = flow.pump->run();
  } else {
    log_warning("migration {}: {}", id_, message_of(completed));
    flow.local.reset();
  }
  if (flow.kind == 'c') control_ended_ = true;
  if (!well && !own) {
    broken_ = true;
    cut();
  }
}

void VmRelay::hold_own(bool held) {
  own_held_ = held;
  std::lock_guard lock(mutex_);
  for (Flow& each : flows_)
    if (each.kind == 's' && each.pump) each.pump->hold(held);
}

void VmRelay::cut() {
  std::lock_guard lock(mutex_);
  // No new ones either: whoever connects now is closed.
  broken_ = true;
  for (Flow& each : flows_)
    if (each.pump) each.pump->stop();
}

}  // namespace godwit::node
