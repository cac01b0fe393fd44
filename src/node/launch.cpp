#include "node/launch.h"

#include <arpa/inet.h>
#include <fmt/format.h>
#include <openssl/rand.h>
#include <sys/socket.h>

#include <algorithm>
#include <cstring>

#include "base/log.h"
#include "base/status.h"
#include "capsule/root_fs.h"
#include "network/ip.h"
#include "node/new_service.h"
#include "node/node.h"

namespace godwit::node {
namespace {

constexpr char kDefaultPath[] = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

uint32_t to_number(const network::IpAddress& ip) {
  uint32_t number = 0;
  std::memcpy(&number, ip.bytes.data(), sizeof number);
  return ntohl(number);
}

network::IpAddress from_number(uint32_t number) {
  network::IpAddress ip;
  ip.family = AF_INET;
  const uint32_t wire = htonl(number);
  std::memcpy(ip.bytes.data(), &wire, sizeof wire);
  return ip;
}

uint32_t random_number() {
  uint32_t number = 0;
  RAND_bytes(reinterpret_cast<unsigned char*>(&number), sizeof number);
  return number;
}

// A locally administered unicast MAC (IEEE 802), made once: it stays with the service.
std::string random_mac() {
  network::MacAddress mac;
  RAND_bytes(mac.bytes.data(), static_cast<int>(mac.bytes.size()));
  mac.bytes[0] = 0x02;
  return mac.text();
}

bool has_key(const api::RunRequest& request, const std::string& key) {
  return std::any_of(request.env().begin(), request.env().end(),
                     [&](const std::string& each) { return each.starts_with(key + "="); });
}

absl::StatusOr<std::string> claim_free_address(const Records& records, const AddressPool& pool,
                                               const std::string& service) {
  const uint32_t size = pool.last - pool.first + 1;
  const uint32_t start = random_number() % size;
  for (uint32_t i = 0; i < size; ++i) {
    const std::string ip = from_number(pool.first + (start + i) % size).text();
    const absl::Status claimed = records.claim_address(ip, service);
    if (claimed.ok()) return ip;
    if (!absl::IsAlreadyExists(claimed)) return claimed;
  }
  return make_error(absl::StatusCode::kResourceExhausted,
                    "all {} addresses of the pool are in use; remove services, or start the "
                    "daemons with a larger --pool",
                    size);
}

void add_address(capsule::CapsuleSpec& spec, const std::string& ip, uint32_t prefix) {
  capsule::Address* address = spec.add_addresses();
  address->set_ip(ip);
  address->set_prefix(prefix);
}

absl::Status set_addresses(const NodeConfig& config, const std::string& ip, uint8_t prefix,
                           capsule::CapsuleSpec& spec) {
  add_address(spec, ip, prefix);
  spec.set_mac(random_mac());
  spec.set_gateway(config.gateway);
  if (config.subnet6.empty()) return absl::OkStatus();
  // The same host number in the other family: unique because the first one is.
  GW_ASSIGN_OR_RETURN(const network::IpPrefix subnet6, network::parse_prefix(config.subnet6));
  GW_ASSIGN_OR_RETURN(const network::IpAddress v4, network::parse_ip(ip));
  const uint32_t host = prefix == 0 ? to_number(v4) : to_number(v4) & (~uint32_t{0} >> prefix);
  add_address(spec, network::host_of(subnet6, host).text(), subnet6.length);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<AddressPool> parse_pool(const std::string& subnet, const std::string& pool) {
  GW_ASSIGN_OR_RETURN(const network::IpPrefix network, network::parse_prefix(subnet));
  if (network.ip.is_v6() || network.length < 1 || network.length > 29)
    return make_error(absl::StatusCode::kInvalidArgument,
                      "--subnet {}: use an IPv4 network of /1 to /29", subnet);
  AddressPool result;
  result.prefix = network.length;
  const uint32_t base = to_number(network_of(network).ip);
  const uint32_t hosts = ~uint32_t{0} >> network.length;
  result.first = base + hosts / 2 + 1;
  result.last = base + hosts - 1;  // the last one is for broadcasts
  if (pool.empty()) return result;
  const size_t dash = pool.find('-');
  if (dash == std::string::npos)
    return make_error(absl::StatusCode::kInvalidArgument, "--pool {}: use FIRST-LAST", pool);
  GW_ASSIGN_OR_RETURN(const network::IpAddress first, network::parse_ip(pool.substr(0, dash)));
  GW_ASSIGN_OR_RETURN(const network::IpAddress last, network::parse_ip(pool.substr(dash + 1)));
  result.first = to_number(first);
  result.last = to_number(last);
  if (first.is_v6() || last.is_v6() || result.first > result.last || result.first <= base ||
      result.last >= base + hosts)
    return make_error(absl::StatusCode::kInvalidArgument,
                      "--pool {}: not a range of addresses inside {}", pool, subnet);
  return result;
}

absl::StatusOr<capsule::CapsuleSpec> spec_of(const api::RunRequest& request) {
  GW_RETURN_IF_ERROR(capsule::check_name(request.name()));
  if (request.argv().empty() || request.argv(0).empty())
    return make_error(absl::StatusCode::kInvalidArgument, "no program to run was named");
  capsule::CapsuleSpec spec;
  spec.set_name(request.name());
  *spec.mutable_argv() = request.argv();
  const bool root = request.user().empty() || request.user() == "root" || request.user() == "0";
  if (!has_key(request, "PATH")) spec.add_env(fmt::format("PATH={}", kDefaultPath));
  if (!has_key(request, "HOME") && root) spec.add_env("HOME=/root");
  if (!has_key(request, "TERM") && request.tty()) spec.add_env("TERM=xterm");
  for (const std::string& each : request.env()) {
    if (each.find('=') == std::string::npos || each.starts_with('='))
      return make_error(absl::StatusCode::kInvalidArgument, "--env {}: use KEY=VALUE", each);
    spec.add_env(each);
  }
  spec.set_workdir(request.workdir());
  spec.set_user(request.user());
  spec.set_rootfs(request.rootfs() == "/" ? "" : request.rootfs());
  for (const api::Bind& each : request.binds()) {
    if (!each.host_path().starts_with('/') || !each.capsule_path().starts_with('/'))
      return make_error(absl::StatusCode::kInvalidArgument, "--bind {}:{}: use absolute paths",
                        each.host_path(), each.capsule_path());
    capsule::Bind* bind = spec.add_binds();
    bind->set_host_path(each.host_path());
    bind->set_capsule_path(each.capsule_path());
  }
  spec.set_hostname(request.hostname().empty() ? request.name() : request.hostname());
  spec.set_tty(request.tty());
  spec.set_interactive(request.interactive());
  spec.set_remove_at_exit(request.remove_at_exit());
  return spec;
}

absl::Status check_ip(const NodeConfig& config, const std::string& ip) {
  if (ip.empty()) return absl::OkStatus();
  GW_ASSIGN_OR_RETURN(const network::IpAddress address, network::parse_ip(ip));
  GW_ASSIGN_OR_RETURN(const network::IpPrefix subnet, network::parse_prefix(config.subnet));
  if (address.is_v6() ||
      network::network_of({address, subnet.length}).ip != network::network_of(subnet).ip)
    return make_error(absl::StatusCode::kInvalidArgument, "--ip {}: not in {}", ip, config.subnet);
  return absl::OkStatus();
}

absl::Status claim_addresses(const Node& node, const std::string& wanted,
                             capsule::CapsuleSpec& spec) {
  GW_ASSIGN_OR_RETURN(const AddressPool pool, parse_pool(node.config().subnet, node.config().pool));
  std::string ip = wanted;
  if (ip.empty()) {
    GW_ASSIGN_OR_RETURN(ip, claim_free_address(node.records(), pool, spec.name()));
  } else {
    GW_RETURN_IF_ERROR(node.records().claim_address(ip, spec.name()));
  }
  spec.clear_addresses();
  return set_addresses(node.config(), ip, pool.prefix, spec);
}

absl::StatusOr<Launch> Launch::prepare(Node& node, const api::RunRequest& request) {
  GW_ASSIGN_OR_RETURN(capsule::CapsuleSpec spec, spec_of(request));
  GW_RETURN_IF_ERROR(capsule::check_root(spec));
  GW_RETURN_IF_ERROR(check_ip(node.config(), request.ip()));
  Launch launch(&node);
  GW_ASSIGN_OR_RETURN(launch.hold_, hold_new_name(node, request.name(), "being started"));

  api::ServiceRecord& record = launch.versioned_.record;
  // The name first: everything after it is found again by it.
  GW_RETURN_IF_ERROR(claim_new_name(node, request.name(), launch.versioned_));
  launch.claimed_ = true;

  GW_RETURN_IF_ERROR(claim_addresses(node, request.ip(), spec));
  record.set_address(spec.addresses(0).ip());
  record.set_spec(spec.SerializeAsString());
  GW_RETURN_IF_ERROR(node.records().put(launch.versioned_));
  GW_ASSIGN_OR_RETURN(launch.capsule_, node.services().create(spec, false));
  return launch;
}

absl::StatusOr<api::Service> Launch::start() {
  GW_RETURN_IF_ERROR(node_->services().start(*capsule_).status());
  api::ServiceRecord& record = versioned_.record;
  record.set_state(api::SERVICE_RUNNING);
  record.set_started_unix_ns(clock_ns(CLOCK_REALTIME));
  GW_RETURN_IF_ERROR(node_->records().put(versioned_));
  claimed_ = false;
  node_->supervise(record.name());
  hold_.release();
  return node_->describe(record);
}

Launch::~Launch() {
  if (!claimed_) return;
  capsule_.reset();
  const absl::Status gone = node_->remove_service(versioned_.record.name());
  if (!gone.ok())
    log_error("undoing the start of {}: {}", versioned_.record.name(), message_of(gone));
}

}  // namespace godwit::node
