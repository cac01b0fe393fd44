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
#include "pages/link_share.h"

namespace godwit::node {
namespace {

constexpr absl::Duration kConnectWait = absl::Seconds(10);
constexpr absl::Duration kLook = absl::Milliseconds(200);
constexpr absl::Duration kConnectAgainWait = absl::Seconds(1);
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

absl::StatusOr<std::unique_ptr<VmRelay>> VmRelay::start(const migration::MoverStart& start) {
  GW_ASSIGN_OR_RETURN(migration::Terms terms, migration::terms_of(start));
  std::unique_ptr<VmRelay> relay(new VmRelay(start, std::move(terms)));
  GW_RETURN_IF_ERROR(make_vm_socket_folder(relay->folder_));
  if (!relay->source_) {
    GW_ASSIGN_OR_RETURN(relay->listener_, migration::listen_on(start.listen_host()));
    relay->port_ = relay->listener_.port;
    relay->accepting_ = std::thread([self = relay.get()] { self->accept_from_peer(); });
    return relay;
  }
  relay->host_ = start.peer_host();
  relay->port_ = static_cast<uint16_t>(start.peer_port());
  if (start.bandwidth_bytes_per_s() > 0) {
    auto pacer = std::make_unique<pages::Pacer>();
    pacer->set_limit(static_cast<uint64_t>(start.bandwidth_bytes_per_s()));
    if (!start.bandwidth_file().empty()) {
      GW_ASSIGN_OR_RETURN(auto share, pages::LinkShare::join(start.bandwidth_file()));
      pacer->set_share(std::move(share));
    }
    relay->traffic_.set_pacer(std::move(pacer));
  }
  GW_RETURN_IF_ERROR(relay->listen_locally());
  relay->accepting_ = std::thread([self = relay.get()] { self->accept_locally(); });
  return relay;
}

VmRelay::~VmRelay() {
  stopping_ = true;
  cut(true);
  if (accepting_.joinable()) accepting_.join();
  cut(true);  // what was accepted meanwhile
  for (Flow& each : flows_) each.thread.join();
  for (const char kind : kSourceKinds) ::unlink(path(kind).c_str());
}

void VmRelay::remove_sockets(const NodeConfig& config, const std::string& id) {
  for (const char kind : kSourceKinds)
    ::unlink(fmt::format("{}/{}.{}", config.vm_sockets, id, kind).c_str());
  ::unlink(mark_path(config.vm_sockets, id).c_str());
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
      if (fd) add(locals_[i].kind, std::move(fd), nullptr, {++last_flow_, 0});
    }
  }
}

void VmRelay::accept_from_peer() {
  migration::Acceptor acceptor(listener_.fd.get(), terms_);
  while (!stopping_) {
    auto accepted = acceptor.next(Deadline::in(kLook));
    if (accepted.ok()) {
      take(*std::move(accepted));
    } else if (!absl::IsDeadlineExceeded(accepted.status())) {
      log_warning("migration {}: {}", id_, message_of(accepted.status()));
      broken_ = true;
      return;
    }
  }
}

// A new flow's, or one that goes on with an old one.
void VmRelay::take(migration::Accepted accepted) {
  const char kind = kind_of(accepted.purpose);
  if (kind == 0) return;
  if (!post_copy_) return add(kind, {}, std::move(accepted.channel), {});
  const auto hello = vm::read_hello(*accepted.channel);
  if (!hello.ok()) return;
  expect_signs_of_life(accepted.channel->fd());
  {
    std::lock_guard lock(mutex_);
    for (Flow& each : flows_) {
      if (each.hello.flow != hello->flow) continue;
      if (each.ended || !each.lasting)
        vm::refuse_flow(*accepted.channel);
      else
        each.lasting->attach(std::move(accepted.channel), hello->received);
      return;
    }
  }
  add(kind, {}, std::move(accepted.channel), *hello);
}

void VmRelay::add(char kind, UniqueFd local, std::unique_ptr<tls::Channel> far,
                  vm::FlowHello hello) {
  std::lock_guard lock(mutex_);
  Flow& flow = flows_.emplace_back();
  flow.kind = kind;
  flow.local = std::move(local);
  flow.far = std::move(far);
  flow.hello = hello;
  flow.thread = std::thread([this, &flow] { serve(flow); });
}

absl::StatusOr<std::unique_ptr<tls::Channel>> VmRelay::connect_to_peer(char kind,
                                                                       absl::Duration within) {
  GW_ASSIGN_OR_RETURN(auto far, migration::connect_to_peer(host_, port_, terms_, purpose_of(kind),
                                                           Deadline::in(within)));
  expect_signs_of_life(far->fd());
  return far;
}

absl::Status VmRelay::complete(Flow& flow) {
  if (!source_) {
    GW_ASSIGN_OR_RETURN(flow.local, connect_to(flow.kind == 'c' ? libvirt_ : path(flow.kind)));
    return absl::OkStatus();
  }
  if (flow.kind == 's') {
    GW_ASSIGN_OR_RETURN(UniqueFd fd, connect_to(libvirt_));
    flow.far = std::make_unique<tls::Channel>(std::move(fd));
    return absl::OkStatus();
  }
  if (post_copy_) return absl::OkStatus();  // its pump does
  GW_ASSIGN_OR_RETURN(flow.far, connect_to_peer(flow.kind, kConnectWait));
  return absl::OkStatus();
}

bool VmRelay::pump(Flow& flow) {
  const bool own = flow.kind == 's';
  {
    std::lock_guard lock(mutex_);
    flow.pump = std::make_unique<vm::Pump>(std::make_unique<tls::Channel>(std::move(flow.local)),
                                           std::move(flow.far), own ? nullptr : &traffic_);
    if (stopping_ || (broken_ && !own)) flow.pump->stop();
    if (own && own_held_) flow.pump->hold(true);
  }
  return flow.pump->run();
}

bool VmRelay::pump_lasting(Flow& flow) {
  vm::LastingPump::Options options;
  options.flow = flow.hello.flow;
  options.traffic = &traffic_;
  options.gated = !source_ && flow.kind == 'c';
  options.local_may_go = source_ && flow.kind == 'c';
  options.asked_for_pages = source_ && flow.kind == 'm';
  if (source_)
    options.connect = [this, kind = flow.kind] { return connect_to_peer(kind, kConnectAgainWait); };
  {
    std::lock_guard lock(mutex_);
    flow.lasting = std::make_unique<vm::LastingPump>(std::move(flow.local), std::move(options));
    if (flow.far) flow.lasting->attach(std::move(flow.far), flow.hello.received);
    if (lasting_) flow.lasting->keep();
    if (stopping_ || broken_) flow.lasting->stop();
  }
  return flow.lasting->run();
}

void VmRelay::serve(Flow& flow) {
  const absl::Status completed = complete(flow);
  const bool own = flow.kind == 's';
  bool well = completed.ok();
  if (well) {
    well = post_copy_ && !own ? pump_lasting(flow) : pump(flow);
  } else {
    log_warning("migration {}: {}", id_, message_of(completed));
    flow.local.reset();
    flow.far.reset();
  }
  flow.ended = true;
  if (flow.kind == 'c') control_ended_ = true;
  if (!well && !own) cut(!lasting_);
}

void VmRelay::hold_own(bool held) {
  own_held_ = held;
  std::lock_guard lock(mutex_);
  for (Flow& each : flows_)
    if (each.kind == 's' && each.pump) each.pump->hold(held);
}

void VmRelay::keep() {
  lasting_ = true;
  std::lock_guard lock(mutex_);
  for (Flow& each : flows_)
    if (each.lasting) each.lasting->keep();
}

void VmRelay::release() {
  keep();
  const UniqueFd mark(
      ::open(mark_path(folder_, id_).c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600));
  // Without it nobody could tell later whether it has run.
  if (!mark) return log_error("migration {}: {}", id_, std::strerror(errno));
  std::lock_guard lock(mutex_);
  for (Flow& each : flows_)
    if (each.lasting && each.lasting->finish_held()) each.lasting->open_gate();
}

void VmRelay::cut(bool own_too) {
  std::lock_guard lock(mutex_);
  // No new ones either: whoever connects now is closed.
  broken_ = true;
  for (Flow& each : flows_) {
    if (each.pump && (own_too || each.kind != 's')) each.pump->stop();
    if (each.lasting) each.lasting->stop();
  }
}

migration::VmRelayState VmRelay::state() {
  migration::VmRelayState state;
  state.set_port(port_);
  state.set_control_ended(control_ended_);
  state.set_bytes(traffic_.bytes());
  bool broken = broken_;
  std::lock_guard lock(mutex_);
  for (Flow& each : flows_) {
    if (!each.lasting || each.ended) continue;
    state.set_finish_held(state.finish_held() || each.lasting->finish_held());
    broken = broken || (lasting_ && !each.lasting->connected());
  }
  state.set_broken(broken);
  return state;
}

bool VmRelay::idle() {
  std::lock_guard lock(mutex_);
  for (const Flow& each : flows_)
    if (!each.ended && each.kind != 's') return false;
  return !flows_.empty();
}

}  // namespace godwit::node
