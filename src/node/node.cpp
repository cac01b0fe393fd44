#include "node/node.h"

#include <sys/stat.h>
#include <sys/utsname.h>

#include <algorithm>
#include <ctime>

#include "api/remote_store.h"
#include "api/swap_stream.h"
#include "api/transport.h"
#include "base/log.h"
#include "base/status.h"
#include "capsule/capsule.h"
#include "kernel/syscalls.h"
#include "node/replica_session.h"
#include "node/service_port.h"
#include "node/vms.h"
#include "pages/link_share.h"

namespace godwit::node {
namespace {

// The commit of a migration waits for the store inside the freeze; elsewhere patience costs little.
constexpr absl::Duration kStoreTimeout = absl::Seconds(1);
// Between two questions to the store: a service may stand frozen for the first; gRPC fails fast
// while it waits for its next attempt to connect.
constexpr long kFirstPauseNs = 1'000'000;
constexpr long kLongestPauseNs = 100'000'000;
// How soon stop() is noticed by those that wait for a service's end.
constexpr absl::Duration kExitSlice = absl::Milliseconds(500);
constexpr absl::Duration kExitRecordedWait = absl::Seconds(10);

absl::Status make_folders(const std::string& path) {
  for (size_t at = 1; at != std::string::npos;) {
    at = path.find('/', at + 1);
    const std::string part = path.substr(0, at);
    if (::mkdir(part.c_str(), at == std::string::npos ? 0700 : 0755) != 0 && errno != EEXIST)
      return errno_status(errno, fmt::format("mkdir({})", part));
  }
  return absl::OkStatus();
}

const char* state_name(api::ServiceState state) {
  switch (state) {
    case api::SERVICE_CREATING:
      return "creating";
    case api::SERVICE_RUNNING:
      return "running";
    case api::SERVICE_MIGRATING:
      return "migrating";
    case api::SERVICE_EXITED:
      return "exited";
    default:
      return "unknown";
  }
}

}  // namespace

absl::StatusOr<std::unique_ptr<Node>> Node::open(const NodeConfig& config) {
  GW_RETURN_IF_ERROR(capsule::check_name(config.name));
  GW_RETURN_IF_ERROR(make_folders(config.state_dir));
  // The ports' bpffs is mounted below.
  GW_RETURN_IF_ERROR(make_folders("/run/godwit"));
  std::unique_ptr<Node> node(new Node(config));
  GW_ASSIGN_OR_RETURN(node->identity_, tls::load_identity(config.tls()));
  if (!config.store_path.empty()) {
    const size_t slash = config.store_path.rfind('/');
    if (slash != std::string::npos && slash > 0)
      GW_RETURN_IF_ERROR(make_folders(config.store_path.substr(0, slash)));
    GW_ASSIGN_OR_RETURN(node->local_store_, store::SqliteStore::open(config.store_path));
    node->records_ = std::make_unique<Records>(node->local_store_.get());
  } else {
    GW_ASSIGN_OR_RETURN(tls::Context context, tls::Context::make(node->identity_));
    node->keeper_ =
        api::Keeper{api::peer_channel(node->identity_, config.join_node, config.join_address),
                    config.join_node, config.join_address.substr(0, config.join_address.rfind(':')),
                    std::make_shared<const tls::Context>(std::move(context))};
    node->remote_store_ = std::make_unique<api::RemoteStore>(node->keeper_->channel, kStoreTimeout);
    node->records_ = std::make_unique<Records>(node->remote_store_.get());
  }
  node->peers_ = std::make_unique<Peers>(node->identity_, node->records_.get());
  NodeNetwork network;
  network.set_bridge(config.bridge);
  network.set_pin_dir(config.pin_dir());
  network.set_mtu(config.mtu);
  GW_RETURN_IF_ERROR(save_network(config.state_dir, network));
  if (config.bandwidth_bytes_per_s > 0)
    GW_RETURN_IF_ERROR(pages::LinkShare::create(
        config.bandwidth_file(), static_cast<uint64_t>(config.bandwidth_bytes_per_s)));
  return node;
}

Node::Node(const NodeConfig& config)
    : config_(config),
      services_(config_),
      journal_(config_.state_dir),
      vms_(std::make_unique<Vms>(*this)) {}

Node::~Node() {
  stop();
  vms_->abort_sessions();
  std::map<std::string, std::shared_ptr<ReplicaSession>> sessions;
  {
    std::lock_guard lock(mutex_);
    sessions = sessions_;
  }
  // One that has committed needs no abort.
  for (auto& [id, session] : sessions) session->abort().IgnoreError();
  tasks_.join();
}

absl::Status Node::announce_self() {
  api::NodeRecord record;
  const auto before = records_->node(config_.name);
  if (before.ok()) record = before->record;
  record.set_name(config_.name);
  record.set_host(config_.listen_host);
  record.set_port(config_.listen_port);
  record.set_subnet(config_.subnet);
  if (record.joined_unix_ns() == 0) record.set_joined_unix_ns(clock_ns(CLOCK_REALTIME));
  const api::Node self = describe_self();
  record.set_kernel(self.kernel());
  record.clear_features();
  GW_ASSIGN_OR_RETURN(const MachineFacts* facts, machine_facts());
  for (const auto& [feature, found] : facts->features.all())
    if (found->present) record.add_features(std::string(feature));
  return records_->put_node(record);
}

absl::StatusOr<const MachineFacts*> Node::machine_facts() const {
  std::lock_guard lock(facts_mutex_);
  if (!facts_) {
    GW_ASSIGN_OR_RETURN(facts_, find_machine_facts());
  }
  return &*facts_;
}

void Node::set_bandwidth(migration::MoverStart& start, int64_t bytes_per_s) const {
  const int64_t most = config_.bandwidth_bytes_per_s;
  if (most > 0) start.set_bandwidth_file(config_.bandwidth_file());
  const bool less = most > 0 && (bytes_per_s == 0 || bytes_per_s > most);
  start.set_bandwidth_bytes_per_s(less ? most : bytes_per_s);
}

void Node::set_proof(migration::MoverStart& start, const std::string& token,
                     const std::string& peer) const {
  start.set_token(token);
  start.set_peer_node(peer);
  if (!config_.data_tls) return;
  migration::TlsIdentity& own = *start.mutable_tls();
  own.set_authority_pem(identity_.authority_pem);
  own.set_certificate_pem(identity_.own.certificate_pem);
  own.set_key_pem(identity_.own.key_pem);
}

api::Node Node::describe_self() const {
  api::Node self;
  self.set_name(config_.name);
  self.set_host(config_.listen_host);
  self.set_port(config_.listen_port);
  self.set_state("ready");
  self.set_subnet(config_.subnet);
  self.set_keeps_store(local_store_ != nullptr);
  self.set_version(GODWIT_VERSION);
  self.set_monotonic_ns(clock_ns(CLOCK_MONOTONIC));
  self.set_boottime_ns(clock_ns(CLOCK_BOOTTIME));
  const auto boot = kernel::read_file("/proc/sys/kernel/random/boot_id");
  if (boot.ok()) self.set_boot_id(*boot);
  utsname name{};
  if (::uname(&name) == 0) self.set_kernel(name.release);
  return self;
}

api::Service Node::describe(const api::ServiceRecord& record) const {
  api::Service service;
  service.set_name(record.name());
  service.set_node(record.owner());
  service.set_state(state_name(record.state()));
  service.set_address(record.address());
  service.set_exit_code(record.exit_code());
  service.set_generation(record.generation());
  service.set_destination(record.destination());
  service.set_created_unix_ns(record.created_unix_ns());
  service.set_started_unix_ns(record.started_unix_ns());
  if (record.has_last_migration()) *service.mutable_last_migration() = record.last_migration();
  if (record.has_vm()) {
    vms_->describe(record, service);
    return service;
  }
  capsule::CapsuleSpec spec;
  if (spec.ParseFromString(record.spec())) {
    *service.mutable_argv() = spec.argv();
    *service.mutable_env() = spec.env();
    service.set_mac(spec.mac());
    service.set_rootfs(spec.rootfs());
    service.set_user(spec.user());
    service.set_workdir(spec.workdir().empty() ? "/" : spec.workdir());
    service.set_tty(spec.tty());
    for (const capsule::Bind& each : spec.binds()) {
      api::Bind* bind = service.add_binds();
      bind->set_host_path(each.host_path());
      bind->set_capsule_path(each.capsule_path());
    }
  }
  if (record.owner() != config_.name) return service;
  service.set_layer(services_.paths_of(record.name()).layer());
  // Between a move's two ends there is none here for a moment: then there is no pid to show.
  const auto info = services_.info(record.name());
  service.set_pages_at(record.pages_at());
  service.set_pages_file(record.pages_file().path());
  if (!record.pages_at().empty()) service.set_pages_error(post_copy_.error_of(record.name()));
  if (const auto moving = outgoing(record.name()))
    service.set_throttle_percent(moving->throttle_percent);
  if (!info.ok()) return service;
  service.set_pid(info->main_pid());
  service.set_pages_missing(info->post_copy().missing());
  service.set_pages_connected(info->post_copy().connected());
  return service;
}

void Node::supervise(const std::string& name) {
  uint64_t watch = 0;
  {
    std::lock_guard lock(mutex_);
    watch = watches_[name] = ++last_watch_;
  }
  tasks_.run([this, name, watch] { watch_for_exit(name, watch); });
}

bool Node::watch_is_current(const std::string& name, uint64_t watch) const {
  std::lock_guard lock(mutex_);
  const auto found = watches_.find(name);
  return found != watches_.end() && found->second == watch;
}

void Node::watch_for_exit(const std::string& name, uint64_t watch) {
  auto capsule = services_.open(name);
  if (!capsule.ok()) return;
  absl::StatusOr<capsule::CapsuleInfo> end = absl::DeadlineExceededError("");
  while (absl::IsDeadlineExceeded(end.status())) {
    if (stopping() || !watch_is_current(name, watch)) return;
    end = capsule->wait_exit(Deadline::in(kExitSlice));
  }
  if (!end.ok()) {
    log_warning("waiting for the end of {}: {}", name, message_of(end.status()));
    return;
  }
  // A move or a removal that is under way decides first whose end this was; a service that has
  // come back since is another capsule.
  absl::StatusOr<Busy::Hold> hold = absl::FailedPreconditionError("");
  while (!hold.ok()) {
    if (stopping() || !watch_is_current(name, watch)) return;
    hold = busy_.hold(name, "being recorded as exited", Deadline::in(kExitSlice));
  }
  if (!watch_is_current(name, watch)) return;
  const absl::Status recorded = record_exit(name, *end);
  if (!recorded.ok()) log_warning("recording the end of {}: {}", name, message_of(recorded));
}

absl::Status Node::wait_exit_recorded(const std::string& name, const std::string& capsule,
                                      const capsule::CapsuleInfo& info) {
  GW_ASSIGN_OR_RETURN(const Busy::Hold hold, busy_.hold(name, "being recorded as exited",
                                                        Deadline::in(kExitRecordedWait)));
  if (services_.capsule_of(name) != capsule) return absl::OkStatus();
  return record_exit(name, info);
}

absl::Status Node::record_exit(const std::string& name, const capsule::CapsuleInfo& info) {
  bool remove = false;
  const absl::Status recorded = until_answered([&] {
    return records_
        ->update(name,
                 [&](api::ServiceRecord& record) {
                   if (record.owner() != config_.name || record.state() != api::SERVICE_RUNNING)
                     return absl::CancelledError("not ours any more");
                   record.set_state(api::SERVICE_EXITED);
                   record.set_exit_code(info.exit_code());
                   capsule::CapsuleSpec spec;
                   remove = spec.ParseFromString(record.spec()) && spec.remove_at_exit();
                   return absl::OkStatus();
                 })
        .status();
  });
  if (absl::IsCancelled(recorded) || absl::IsNotFound(recorded)) return absl::OkStatus();
  GW_RETURN_IF_ERROR(recorded);
  log_info("service {} exited with code {}{}{}", name, info.exit_code(),
           info.exit_reason().empty() ? "" : ": ", info.exit_reason());
  return remove ? remove_service(name) : absl::OkStatus();
}

absl::Status Node::destroy_local(const std::string& name) {
  {
    std::lock_guard lock(mutex_);
    watches_.erase(name);
  }
  GW_RETURN_IF_ERROR(services_.destroy(name));
  services_.set_capsule(name, name);
  return absl::OkStatus();
}

void Node::replace_capsule(const std::string& service, const std::string& capsule) {
  {
    std::lock_guard lock(mutex_);
    watches_.erase(service);
  }
  services_.set_capsule(service, capsule);
}

absl::Status Node::remove_service(const std::string& name) {
  GW_RETURN_IF_ERROR(destroy_local(name));
  return until_answered([&]() -> absl::Status {
    while (true) {
      const auto record = records_->service(name);
      if (absl::IsNotFound(record.status())) return absl::OkStatus();
      GW_RETURN_IF_ERROR(record.status());
      if (record->record.owner() != config_.name)
        return make_error(absl::StatusCode::kAborted, "service {} is on {} now", name,
                          record->record.owner());
      GW_RETURN_IF_ERROR(records_->release_address(record->record.address(), name));
      const absl::Status removed = records_->remove(*record);
      if (!absl::IsAborted(removed)) return removed;
    }
  });
}

std::unique_ptr<api::SwapStream> Node::open_swaps() const {
  if (!keeper_) return nullptr;
  auto stream = api::SwapStream::open(*keeper_, kStoreTimeout);
  if (stream.ok()) return *std::move(stream);
  log_warning("{}", message_of(stream.status()));
  return nullptr;
}

absl::Status Node::until_answered(const std::function<absl::Status()>& ask) const {
  const AskAgain again = ask_again();
  while (true) {
    absl::Status answer = ask();
    if (!absl::IsUnavailable(answer) && !absl::IsDeadlineExceeded(answer)) return answer;
    if (!again(answer)) return absl::CancelledError("the daemon stops");
  }
}

AskAgain Node::ask_again() const {
  return [this, said = std::string(), pause_ns = kFirstPauseNs](const absl::Status& why) mutable {
    if (stopping()) return false;
    const std::string message(message_of(why));
    if (message != said) log_warning("{}; asking on", message);
    said = message;
    const timespec pause{0, pause_ns};
    ::nanosleep(&pause, nullptr);
    pause_ns = std::min(2 * pause_ns, kLongestPauseNs);
    return true;
  };
}

std::shared_ptr<Outgoing> Node::begin_outgoing(const std::string& service) {
  std::lock_guard lock(mutex_);
  return outgoing_[service] = std::make_shared<Outgoing>();
}

void Node::end_outgoing(const std::string& service) {
  std::lock_guard lock(mutex_);
  outgoing_.erase(service);
}

std::shared_ptr<Outgoing> Node::outgoing(const std::string& service) const {
  std::lock_guard lock(mutex_);
  const auto found = outgoing_.find(service);
  return found == outgoing_.end() ? nullptr : found->second;
}

bool Node::cancel_outgoing(const std::string& service) {
  std::lock_guard lock(mutex_);
  const auto found = outgoing_.find(service);
  if (found == outgoing_.end()) return false;
  found->second->cancelled = true;
  return true;
}

void Node::add_session(const std::shared_ptr<ReplicaSession>& session) {
  std::lock_guard lock(mutex_);
  sessions_[session->migration_id()] = session;
}

void Node::drop_session(const std::string& migration_id) {
  std::lock_guard lock(mutex_);
  sessions_.erase(migration_id);
}

std::shared_ptr<ReplicaSession> Node::session(const std::string& migration_id) {
  std::lock_guard lock(mutex_);
  const auto found = sessions_.find(migration_id);
  return found == sessions_.end() ? nullptr : found->second;
}

}  // namespace godwit::node
