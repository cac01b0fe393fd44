#ifdef GODWIT_LIBVIRT
#include "vm/libvirt_hypervisor.h"

#include <unistd.h>

#include <array>
#include <span>
#include <vector>

#include "base/log.h"
#include "base/status.h"

namespace godwit::vm {
namespace {

// Of libvirt's own keep-alive: a daemon that hangs is given up after 15 s.
constexpr int kKeepAliveSeconds = 5;
constexpr unsigned kKeepAliveTries = 2;

Happened happened(int event, int detail) {
  switch (event) {
    case VIR_DOMAIN_EVENT_STARTED:
      return Happened::kStarted;
    case VIR_DOMAIN_EVENT_SUSPENDED:
      return detail == VIR_DOMAIN_EVENT_SUSPENDED_MIGRATED ||
                     detail == VIR_DOMAIN_EVENT_SUSPENDED_POSTCOPY
                 ? Happened::kStoppedForSwitchover
                 : Happened::kPaused;
    case VIR_DOMAIN_EVENT_RESUMED:
      return Happened::kResumed;
    case VIR_DOMAIN_EVENT_STOPPED:
    case VIR_DOMAIN_EVENT_CRASHED:
      return Happened::kStopped;
    default:
      return Happened::kInvalid;
  }
}

}  // namespace

absl::StatusOr<std::shared_ptr<Connection>> Connection::open(const Libvirt& api,
                                                             const std::string& uri) {
  const virConnectPtr opened = api.virConnectOpenAuth(uri.c_str(), nullptr, 0);
  if (opened == nullptr) {
    const absl::Status why = libvirt_error(api, fmt::format("connecting to {}", uri));
    return make_error(absl::StatusCode::kUnavailable, "{}", message_of(why));
  }
  // Refused by daemons that cannot: then there is none.
  api.virConnectSetKeepAlive(opened, kKeepAliveSeconds, kKeepAliveTries);
  return std::shared_ptr<Connection>(new Connection(api, opened));
}

// Outlives the object: libvirt frees it when no callback can run any more.
struct LibvirtHypervisor::Watchers {
  std::mutex mutex;
  uint64_t last = 0;
  std::multimap<std::string, std::pair<uint64_t, std::shared_ptr<OnEvent>>> by_uuid;
};

struct LibvirtHypervisor::Watch final : Subscription {
  Watch(std::shared_ptr<Watchers> of, std::string domain, uint64_t number)
      : watchers(std::move(of)), uuid(std::move(domain)), id(number) {}
  ~Watch() override {
    std::lock_guard lock(watchers->mutex);
    const auto [first, last] = watchers->by_uuid.equal_range(uuid);
    for (auto each = first; each != last; ++each)
      if (each->second.first == id) {
        watchers->by_uuid.erase(each);
        return;
      }
  }
  std::shared_ptr<Watchers> watchers;
  std::string uuid;
  uint64_t id;
};

LibvirtHypervisor::~LibvirtHypervisor() = default;

absl::StatusOr<std::shared_ptr<Connection>> LibvirtHypervisor::connection() {
  std::lock_guard lock(mutex_);
  if (connection_ != nullptr && connection_->alive()) return connection_;
  connection_.reset();
  GW_ASSIGN_OR_RETURN(connection_, Connection::open(api_, uri_of(socket_)));
  if (watchers_ == nullptr) watchers_ = std::make_shared<Watchers>();
  const auto on_lifecycle = [](virConnectPtr, virDomainPtr domain, int event, int detail,
                               void* opaque) {
    const auto api = libvirt();
    char uuid[VIR_UUID_STRING_BUFLEN];
    if (!api.ok() || (*api)->virDomainGetUUIDString(domain, uuid) != 0) return 0;
    Watchers& watchers = **static_cast<std::shared_ptr<Watchers>*>(opaque);
    // Under the lock: whoever ends a watch must not be called afterwards.
    std::lock_guard held(watchers.mutex);
    const auto [first, last] = watchers.by_uuid.equal_range(uuid);
    for (auto each = first; each != last; ++each) (*each->second.second)(happened(event, detail));
    return 0;
  };
  int (*const callback)(virConnectPtr, virDomainPtr, int, int, void*) = on_lifecycle;
  const int registered = api_.virConnectDomainEventRegisterAny(
      connection_->get(), nullptr, VIR_DOMAIN_EVENT_ID_LIFECYCLE,
      VIR_DOMAIN_EVENT_CALLBACK(callback), new std::shared_ptr<Watchers>(watchers_),
      [](void* opaque) { delete static_cast<std::shared_ptr<Watchers>*>(opaque); });
  if (registered < 0) {
    const absl::Status why = libvirt_error(api_, "virConnectDomainEventRegisterAny()");
    connection_.reset();
    return why;
  }
  return connection_;
}

absl::StatusOr<LibvirtHypervisor::Domain> LibvirtHypervisor::domain(Connection& connection,
                                                                    const std::string& uuid) {
  const virDomainPtr found = api_.virDomainLookupByUUIDString(connection.get(), uuid.c_str());
  if (found == nullptr) return libvirt_error(api_, fmt::format("the domain {}", uuid));
  return Domain(found, api_.virDomainFree);
}

absl::Status LibvirtHypervisor::on_domain(const std::string& uuid, const char* call,
                                          absl::FunctionRef<int(virDomainPtr)> act) {
  GW_ASSIGN_OR_RETURN(const std::shared_ptr<Connection> connected, connection());
  GW_ASSIGN_OR_RETURN(const Domain found, domain(*connected, uuid));
  return act(found.get()) < 0 ? libvirt_error(api_, call) : absl::OkStatus();
}

absl::StatusOr<std::string> LibvirtHypervisor::uuid_of(const std::string& name) {
  GW_ASSIGN_OR_RETURN(const std::shared_ptr<Connection> connected, connection());
  const Domain found(api_.virDomainLookupByName(connected->get(), name.c_str()),
                     api_.virDomainFree);
  if (found == nullptr) return libvirt_error(api_, fmt::format("the domain \"{}\"", name));
  char uuid[VIR_UUID_STRING_BUFLEN];
  if (api_.virDomainGetUUIDString(found.get(), uuid) != 0)
    return libvirt_error(api_, "virDomainGetUUIDString()");
  return std::string(uuid);
}

absl::StatusOr<DomainState> LibvirtHypervisor::state(const std::string& uuid) {
  int state = 0;
  GW_RETURN_IF_ERROR(on_domain(uuid, "virDomainGetState()", [&](virDomainPtr found) {
    return api_.virDomainGetState(found, &state, nullptr, 0);
  }));
  switch (state) {
    case VIR_DOMAIN_RUNNING:
    case VIR_DOMAIN_BLOCKED:
    case VIR_DOMAIN_SHUTDOWN:  // on its way
      return DomainState::kRunning;
    case VIR_DOMAIN_PAUSED:
    case VIR_DOMAIN_PMSUSPENDED:
      return DomainState::kPaused;
    default:
      return DomainState::kStopped;
  }
}

absl::StatusOr<std::string> LibvirtHypervisor::xml(const std::string& uuid, bool migratable) {
  std::string text;
  GW_RETURN_IF_ERROR(on_domain(uuid, "virDomainGetXMLDesc()", [&](virDomainPtr found) {
    char* got = api_.virDomainGetXMLDesc(
        found, migratable ? VIR_DOMAIN_XML_MIGRATABLE | VIR_DOMAIN_XML_SECURE : 0);
    if (got == nullptr) return -1;
    text = got;
    ::free(got);
    return 0;
  }));
  return text;
}

absl::StatusOr<bool> LibvirtHypervisor::persistent(const std::string& uuid) {
  int answer = 0;
  GW_RETURN_IF_ERROR(on_domain(uuid, "virDomainIsPersistent()", [&](virDomainPtr found) {
    return answer = api_.virDomainIsPersistent(found);
  }));
  return answer == 1;
}

absl::StatusOr<MemoryFigures> LibvirtHypervisor::memory(const std::string& uuid) {
  std::array<virDomainMemoryStatStruct, VIR_DOMAIN_MEMORY_STAT_NR> figures{};
  int count = 0;
  GW_RETURN_IF_ERROR(on_domain(uuid, "virDomainMemoryStats()", [&](virDomainPtr found) {
    return count = api_.virDomainMemoryStats(found, figures.data(), figures.size(), 0);
  }));
  MemoryFigures memory;
  for (const auto& each : std::span(figures).first(static_cast<size_t>(count))) {
    const uint64_t bytes = uint64_t{each.val} << 10;
    if (each.tag == VIR_DOMAIN_MEMORY_STAT_ACTUAL_BALLOON) memory.ram_bytes = bytes;
    if (each.tag == VIR_DOMAIN_MEMORY_STAT_RSS) memory.resident_bytes = bytes;
  }
  return memory;
}

absl::StatusOr<int> LibvirtHypervisor::snapshots(const std::string& uuid) {
  int number = 0;
  GW_RETURN_IF_ERROR(on_domain(uuid, "virDomainSnapshotNum()", [&](virDomainPtr found) {
    return number = api_.virDomainSnapshotNum(found, 0);
  }));
  return number;
}

absl::StatusOr<std::string> LibvirtHypervisor::define(const std::string& xml) {
  GW_ASSIGN_OR_RETURN(const std::shared_ptr<Connection> connected, connection());
  const Domain made(
      api_.virDomainDefineXMLFlags(connected->get(), xml.c_str(), VIR_DOMAIN_DEFINE_VALIDATE),
      api_.virDomainFree);
  if (made == nullptr) return libvirt_error(api_, "defining the domain");
  char uuid[VIR_UUID_STRING_BUFLEN];
  if (api_.virDomainGetUUIDString(made.get(), uuid) != 0)
    return libvirt_error(api_, "virDomainGetUUIDString()");
  return std::string(uuid);
}

absl::Status LibvirtHypervisor::start(const std::string& uuid) {
  const absl::Status done = on_domain(
      uuid, "virDomainCreate()", [&](virDomainPtr found) { return api_.virDomainCreate(found); });
  if (done.ok()) return done;
  const auto now = state(uuid);
  return now.ok() && *now == DomainState::kRunning ? absl::OkStatus() : done;
}

absl::Status LibvirtHypervisor::press_power(const std::string& uuid) {
  return on_domain(uuid, "virDomainShutdown()",
                   [&](virDomainPtr found) { return api_.virDomainShutdown(found); });
}

absl::Status LibvirtHypervisor::destroy(const std::string& uuid) {
  const absl::Status done = on_domain(
      uuid, "virDomainDestroy()", [&](virDomainPtr found) { return api_.virDomainDestroy(found); });
  if (done.ok() || absl::IsNotFound(done)) return absl::OkStatus();
  const auto now = state(uuid);
  if (absl::IsNotFound(now.status())) return absl::OkStatus();
  return now.ok() && *now == DomainState::kStopped ? absl::OkStatus() : done;
}

absl::Status LibvirtHypervisor::undefine(const std::string& uuid) {
  const absl::Status done = on_domain(uuid, "virDomainUndefineFlags()", [&](virDomainPtr found) {
    // A transient one goes when it ends.
    if (api_.virDomainIsPersistent(found) == 0) return 0;
    return api_.virDomainUndefineFlags(
        found, VIR_DOMAIN_UNDEFINE_MANAGED_SAVE | VIR_DOMAIN_UNDEFINE_KEEP_NVRAM);
  });
  return absl::IsNotFound(done) ? absl::OkStatus() : done;
}

absl::Status LibvirtHypervisor::resume(const std::string& uuid) {
  const absl::Status done = on_domain(
      uuid, "virDomainResume()", [&](virDomainPtr found) { return api_.virDomainResume(found); });
  if (done.ok()) return done;
  const auto now = state(uuid);
  return now.ok() && *now == DomainState::kRunning ? absl::OkStatus() : done;
}

absl::StatusOr<std::unique_ptr<Hypervisor::Subscription>> LibvirtHypervisor::watch(
    const std::string& uuid, OnEvent on_event) {
  GW_RETURN_IF_ERROR(connection().status());
  std::lock_guard lock(watchers_->mutex);
  const uint64_t id = ++watchers_->last;
  watchers_->by_uuid.emplace(uuid, std::pair(id, std::make_shared<OnEvent>(std::move(on_event))));
  return std::make_unique<Watch>(watchers_, uuid, id);
}

absl::StatusOr<HypervisorCapabilities> LibvirtHypervisor::capabilities(const DomainSpec& spec) {
  GW_ASSIGN_OR_RETURN(const std::shared_ptr<Connection> connected, connection());
  const auto text = [](const std::string& value) {
    return value.empty() ? nullptr : value.c_str();
  };
  char* got =
      api_.virConnectGetDomainCapabilities(connected->get(), text(spec.emulator), text(spec.arch),
                                           text(spec.machine), text(spec.emulation), 0);
  if (got == nullptr) return libvirt_error(api_, "virConnectGetDomainCapabilities()");
  const std::string xml = got;
  ::free(got);
  return parse_capabilities(xml);
}

absl::StatusOr<bool> LibvirtHypervisor::cpu_fits(const DomainSpec& spec) {
  if (spec.cpu_xml.empty()) return true;
  GW_ASSIGN_OR_RETURN(const std::shared_ptr<Connection> connected, connection());
  const int compared = api_.virConnectCompareHypervisorCPU(
      connected->get(), spec.emulator.c_str(), spec.arch.c_str(), spec.machine.c_str(),
      spec.emulation.c_str(), spec.cpu_xml.c_str(), 0);
  if (compared == VIR_CPU_COMPARE_ERROR)
    return libvirt_error(api_, "virConnectCompareHypervisorCPU()");
  return compared != VIR_CPU_COMPARE_INCOMPATIBLE;
}

}  // namespace godwit::vm
#endif
