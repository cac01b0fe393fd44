#include "node/machine.h"

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <sys/statvfs.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <map>
#include <optional>
#include <set>
#include <string_view>

#include "absl/cleanup/cleanup.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/status.h"
#include "base/utf8.h"
#include "capsule/file_check.h"
#include "capsule/layer_listing.h"
#include "kernel/cpu.h"
#include "kernel/huge_pages.h"
#include "kernel/proc/memory.h"
#include "kernel/proc/status.h"
#include "kernel/syscalls.h"
#include "migration/precheck.h"
#include "node/file_sections.h"
#include "node/replica_files.h"

namespace godwit::node {
namespace {

// What every replica is made with. What only some services need is found by their own precheck.
constexpr std::array<std::string_view, 6> kOfReplicas = {
    "clone3_set_tid", "time_namespaces", "cgroup_freeze", "tcp_repair", "tcx", "prctl_mm_map"};
constexpr std::array<std::string_view, 5> kOfSources = {
    "pagemap_scan", "uffd_wp_async", "pidfd_getfd", "kcmp", "rseq_configuration"};

std::optional<uint64_t> number_in(const std::string& path) {
  const auto text = kernel::read_file(path);
  uint64_t value = 0;
  if (!text.ok()) return std::nullopt;
  const auto [end, error] = std::from_chars(text->data(), text->data() + text->size(), value);
  // "max", too, is no number: no limit.
  return error == std::errc() ? std::optional(value) : std::nullopt;
}

struct Room {
  uint64_t tasks = UINT64_MAX;
  std::string limit;
  void at_most(uint64_t allowed, uint64_t used, std::string what) {
    const uint64_t left = allowed > used ? allowed - used : 0;
    if (left >= tasks) return;
    tasks = left;
    limit = std::move(what);
  }
};

// pids.max of the group that services inherit from their daemon and of those above it; of version
// 2's they leave the daemon's for one below the root.
void look_at_pids_cgroup(Room& room) {
  const auto groups = kernel::read_file("/proc/self/cgroup");
  if (!groups.ok()) return;
  constexpr std::string_view kLine = ":pids:";
  const size_t at = groups->find(kLine);
  if (at == std::string::npos) return;
  const size_t begin = at + kLine.size();
  std::string group = groups->substr(begin, groups->find('\n', begin) - begin);
  for (;; group.resize(group.rfind('/'))) {
    const std::string folder = "/sys/fs/cgroup/pids" + group;
    const auto most = number_in(folder + "/pids.max");
    const auto used = number_in(folder + "/pids.current");
    if (most && used) room.at_most(*most, *used, folder + "/pids.max");
    if (group.empty() || group.rfind('/') == std::string::npos) return;
  }
}

Room room_for_tasks(uint64_t pid_max) {
  Room room;
  // "0.00 0.01 0.05 2/512 1234": 512 tasks, running or not.
  uint64_t used = 0;
  if (const auto load = kernel::read_file("/proc/loadavg"); load.ok())
    if (const size_t slash = load->find('/'); slash != std::string::npos)
      std::from_chars(load->data() + slash + 1, load->data() + load->size(), used);
  room.at_most(pid_max, used, "kernel.pid_max");
  if (const auto most = number_in("/proc/sys/kernel/threads-max"))
    room.at_most(*most, used, "kernel.threads-max");
  look_at_pids_cgroup(room);
  return room;
}

void add_addresses(migration::Machine& machine) {
  ifaddrs* first = nullptr;
  if (::getifaddrs(&first) != 0) return;
  const auto freed = absl::MakeCleanup([first] { ::freeifaddrs(first); });
  for (const ifaddrs* each = first; each != nullptr; each = each->ifa_next) {
    if (each->ifa_addr == nullptr || each->ifa_addr->sa_family != AF_INET) continue;
    std::array<char, INET_ADDRSTRLEN> text{};
    const auto* address = reinterpret_cast<const sockaddr_in*>(each->ifa_addr);
    if (::inet_ntop(AF_INET, &address->sin_addr, text.data(), text.size()) != nullptr)
      machine.add_addresses(text.data());
  }
}

// By size; of an object that several map the most that one of them maps.
class HugePageCount {
 public:
  void add(const kernel::HugePagesOf& of) {
    for (const kernel::HugePages& own : of.own) pages_[own.page_bytes] += own.pages;
    for (const auto& object : of.objects) {
      uint64_t& most = objects_[{object.page_bytes, object.inode}];
      most = std::max(most, object.pages);
    }
  }
  void into(migration::Needs& needs) {
    for (const auto& [object, pages] : objects_) pages_[object.first] += pages;
    for (const auto& [bytes, pages] : pages_) {
      if (pages == 0) continue;
      migration::HugePages* one = needs.add_huge_pages();
      one->set_page_bytes(bytes);
      one->set_pages(pages);
    }
  }

 private:
  std::map<uint64_t, uint64_t> pages_;
  std::map<std::pair<uint64_t, uint64_t>, uint64_t> objects_;
};

// Of all its processes. Ones that end meanwhile need nothing.
absl::Status add_processes(capsule::Capsule& capsule, migration::Needs& needs) {
  GW_ASSIGN_OR_RETURN(const std::vector<HostPid> pids, capsule.work_pids());
  uint64_t own = 0;
  uint64_t shared = 0;
  uint32_t tasks = 0;
  int32_t highest = 0;
  HugePageCount huge;
  for (const HostPid pid : pids) {
    const auto text = kernel::read_file(fmt::format("/proc/{}/status", pid.value));
    if (!text.ok()) continue;
    const auto status = kernel::parse_task_status(*text);
    const auto memory = kernel::parse_process_memory(*text);
    if (!status.ok() || !memory.ok()) continue;
    if (const auto of = kernel::huge_pages_of(pid); of.ok()) huge.add(*of);
    own += memory->anonymous + memory->swapped;
    shared = std::max(shared, memory->shared);
    tasks += status->threads;
    highest = std::max(highest, status->image_tgid().value);
  }
  needs.set_memory_bytes(own + shared);
  huge.into(needs);
  needs.set_tasks(tasks);
  needs.set_highest_pid(static_cast<uint32_t>(highest));
  return absl::OkStatus();
}

absl::StatusOr<uint64_t> bytes_of_layer(const capsule::ServicePaths& paths) {
  GW_ASSIGN_OR_RETURN(const capsule::LayerListing listing, capsule::list_layer(paths, nullptr));
  uint64_t bytes = 0;
  for (const auto* tree : {&listing.upper, &listing.shm}) {
    std::set<uint64_t> seen;
    for (const auto& [path, entry] : *tree)
      if (entry.links == 1 || seen.insert(entry.inode).second) bytes += entry.node.size();
  }
  return bytes;
}

}  // namespace

absl::StatusOr<MachineFacts> find_machine_facts() {
  MachineFacts facts;
  facts.features = kernel::probe_features();
  const kernel::CpuFacts cpu = kernel::read_cpu();
  facts.cpu.set_model(cpu.model);
  for (const std::string& each : cpu.features) facts.cpu.add_features(each);
  facts.cpu.set_xfeatures(cpu.xfeatures);
  facts.cpu.set_xsave_bytes(cpu.xsave_bytes);
  GW_ASSIGN_OR_RETURN(const kernel::Vdso vdso, kernel::read_vdso());
  facts.vdso.set_code(vdso.code);
  for (const kernel::VdsoSymbol& each : vdso.symbols) {
    migration::Vdso::Symbol* symbol = facts.vdso.add_symbols();
    symbol->set_name(each.name);
    symbol->set_offset(each.offset);
  }
  utsname name{};
  if (::uname(&name) == 0) facts.kernel = name.release;
  return facts;
}

absl::StatusOr<migration::Machine> describe_machine(const MachineFacts& facts,
                                                    const capsule::NodePaths& paths) {
  migration::Machine machine;
  *machine.mutable_cpu() = facts.cpu;
  *machine.mutable_vdso() = facts.vdso;
  machine.set_kernel(facts.kernel);
  for (const auto& [name, feature] : facts.features.all()) {
    if (feature->present) continue;
    auto* missing = machine.add_missing_features();
    missing->set_name(std::string(name));
    missing->set_why(feature->missing);
  }
  GW_ASSIGN_OR_RETURN(const kernel::MemoryInfo memory, kernel::read_memory_info());
  machine.set_memory_available(memory.available + memory.swap_free);
  GW_ASSIGN_OR_RETURN(const auto pools, kernel::read_huge_page_pools());
  for (const kernel::HugePages& pool : pools) {
    migration::HugePages* one = machine.add_huge_pages();
    one->set_page_bytes(pool.page_bytes);
    one->set_pages(pool.pages);
  }
  struct statvfs disk {};
  // Not there before the first service.
  if (::statvfs(paths.services().c_str(), &disk) != 0 &&
      ::statvfs(paths.state_dir.c_str(), &disk) != 0)
    return errno_status(errno, fmt::format("statvfs({})", paths.state_dir));
  machine.set_disk_available(disk.f_bavail * disk.f_frsize);
  const uint64_t pid_max = number_in("/proc/sys/kernel/pid_max").value_or(0);
  machine.set_pid_max(static_cast<uint32_t>(pid_max));
  const Room room = room_for_tasks(pid_max);
  machine.set_tasks_available(room.tasks);
  machine.set_tasks_limit(room.limit);
  add_addresses(machine);
  machine.set_realtime_ns(clock_ns(CLOCK_REALTIME));
  return machine;
}

absl::StatusOr<migration::Needs> needs_of(const MachineFacts& facts, const Services& services,
                                          const api::ServiceRecord& record) {
  migration::Needs needs;
  *needs.mutable_cpu() = facts.cpu;
  *needs.mutable_vdso() = facts.vdso;
  needs.set_kernel(facts.kernel);
  for (const std::string_view each : kOfReplicas) needs.add_kernel_features(std::string(each));
  needs.set_address(record.address());
  GW_ASSIGN_OR_RETURN(capsule::Capsule capsule, services.open(record.name()));
  GW_RETURN_IF_ERROR(add_processes(capsule, needs));
  GW_ASSIGN_OR_RETURN(const uint64_t layer, bytes_of_layer(services.paths_of(record.name())));
  needs.set_disk_bytes(layer);
  return needs;
}

absl::Status judge_needs(const MachineFacts& facts, const capsule::NodePaths& paths,
                         const std::string& node, const api::PrepareReplicaRequest& request,
                         api::PrepareReplicaReply& reply) {
  migration::Needs needs;
  if (request.needs().empty() || !needs.ParseFromString(request.needs()))
    return make_error(absl::StatusCode::kInvalidArgument,
                      "what the service needs of a machine does not parse");
  GW_ASSIGN_OR_RETURN(migration::Machine machine, describe_machine(facts, paths));
  for (const migration::Reason& each : migration::judge(needs, machine, node))
    *reply.add_refusals() = to_refusal(each);
  // The source has no use for it; 8 KiB.
  machine.mutable_vdso()->clear_code();
  reply.set_machine(machine.SerializeAsString());
  return absl::OkStatus();
}

std::optional<migration::Reason> judge_data_tls(const std::string& node, bool data_tls,
                                                const std::string& peer, api::DataTls peers) {
  if (data_tls == (peers == api::DATA_TLS_ON)) return std::nullopt;
  migration::Reason reason;
  reason.set_code("node.data_tls");
  reason.set_object("node " + node);
  reason.set_reason(fmt::format("it has --data-tls {}, and {} has it {}", data_tls ? "on" : "off",
                                peer, data_tls ? "off" : "on"));
  reason.set_way_out("give both daemons the same");
  return reason;
}

absl::Status compare_files(const capsule::NodePaths& paths, const capsule::CapsuleSpec& spec,
                           const api::PrepareReplicaRequest& request,
                           api::PrepareReplicaReply& reply) {
  const std::string root = spec.rootfs().empty() ? "/" : spec.rootfs();
  GW_ASSIGN_OR_RETURN(capsule::CapsuleFiles files,
                      capsule::CapsuleFiles::open_at(root, spec, paths.service(spec.name()),
                                                     HostPid{::getpid()}, file_hashes(paths)));
  capsule::FileCheck check(std::move(files));
  uint64_t id = 0;
  for (const std::string& state : request.used_files())
    GW_RETURN_IF_ERROR(check.offered(++id, state));
  GW_ASSIGN_OR_RETURN(const auto differences, check.differences());
  for (const capsule::FileDifference& each : differences) {
    if (each.own_mount) {
      *reply.add_refusals() = to_refusal(cannot_be_carried(each));
      continue;
    }
    api::FileDifference* one = reply.add_differences();
    one->set_path(escape_non_utf8(each.path));
    one->set_what(escape_non_utf8(each.what));
  }
  const absl::Status saved = check.files().hashes().save();
  if (!saved.ok()) log_warning("hashes of files: {}", message_of(saved));
  return absl::OkStatus();
}

std::vector<migration::Reason> missing_at_source(const MachineFacts& facts,
                                                 const std::string& node) {
  migration::Machine machine;
  for (const auto& [name, feature] : facts.features.all()) {
    if (feature->present) continue;
    auto* missing = machine.add_missing_features();
    missing->set_name(std::string(name));
    missing->set_why(feature->missing);
  }
  migration::Needs needs;
  for (const std::string_view each : kOfSources) needs.add_kernel_features(std::string(each));
  return migration::judge_kernel(needs, machine, node);
}

api::Refusal to_refusal(const migration::Reason& reason) {
  api::Refusal refusal;
  refusal.set_code(reason.code());
  refusal.set_object(reason.object());
  refusal.set_reason(reason.reason());
  refusal.set_way_out(reason.way_out());
  return refusal;
}

}  // namespace godwit::node
