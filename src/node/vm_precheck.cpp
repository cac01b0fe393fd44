#include "node/vm_precheck.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <map>

#include "base/status.h"
#include "kernel/syscalls.h"
#include "network/netlink.h"
#include "node/machine.h"
#include "node/node.h"
#include "node/vms.h"

namespace godwit::node {
namespace {

// QEMU's own, beside the guest's memory.
constexpr uint64_t kMemoryMargin = uint64_t{128} << 20;

class VmJudge {
 public:
  VmJudge(Node& node, vm::Hypervisor& hypervisor, const vm::DomainSpec& domain,
          const api::PrepareVmRequest& request, api::PrepareVmReply& reply)
      : node_(node), hypervisor_(hypervisor), domain_(domain), request_(request), reply_(reply) {}

  absl::Status judge() {
    GW_RETURN_IF_ERROR(name_is_free());
    GW_RETURN_IF_ERROR(machine());
    GW_RETURN_IF_ERROR(room());
    GW_RETURN_IF_ERROR(bridges());
    GW_RETURN_IF_ERROR(disks());
    const auto tls = judge_data_tls(node_.config().name, node_.config().data_tls, request_.source(),
                                    request_.data_tls());
    if (tls) *reply_.add_refusals() = to_refusal(*tls);
    return absl::OkStatus();
  }

 private:
  void add(const char* code, std::string reason, std::string way_out) {
    *reply_.add_refusals() = to_refusal(
        vm_reason(code, "node " + node_.config().name, std::move(reason), std::move(way_out)));
  }

  absl::Status name_is_free() {
    const auto named = hypervisor_.uuid_of(domain_.name);
    const auto same = hypervisor_.state(domain_.uuid);
    if (named.ok() || same.ok())
      add("vm.exists",
          fmt::format("its libvirt has a domain with this {} already",
                      named.ok() ? "name" : "uuid"),
          fmt::format("remove that one (virsh undefine {}), if it is an old copy", domain_.name));
    if (!named.ok() && !absl::IsNotFound(named.status())) return named.status();
    if (!same.ok() && !absl::IsNotFound(same.status())) return same.status();
    return absl::OkStatus();
  }

  absl::Status machine() {
    const auto found = hypervisor_.capabilities(domain_);
    if (absl::IsUnavailable(found.status())) return found.status();
    if (!found.ok()) {
      add("vm.machine",
          fmt::format("its hypervisor has no machine {} for {} by {} ({}): {}", domain_.machine,
                      domain_.arch, domain_.emulator, domain_.emulation,
                      message_of(found.status())),
          "install the same or a newer QEMU there; KVM needs /dev/kvm");
      return absl::OkStatus();
    }
    if (found->most_cpus > 0 && domain_.cpus > found->most_cpus)
      add("vm.machine",
          fmt::format("its machine {} has at most {} CPUs, this one has {}", domain_.machine,
                      found->most_cpus, domain_.cpus),
          "choose another node");
    if (domain_.cpu_xml.empty()) return absl::OkStatus();
    const auto fits = hypervisor_.cpu_fits(domain_);
    if (absl::IsUnavailable(fits.status())) return fits.status();
    // Under emulation there is nothing to compare with: the model alone counts.
    const bool unknown = !fits.ok();
    const bool named = std::find(found->cpu_models.begin(), found->cpu_models.end(),
                                 domain_.cpu_model) != found->cpu_models.end();
    if (unknown ? !named : !*fits)
      add("vm.cpu",
          fmt::format("its hypervisor cannot give the CPU that the machine has ({})",
                      domain_.cpu_model.empty() ? domain_.cpu_mode : domain_.cpu_model),
          "choose a node with at least the same CPU, or give the machine an older <cpu> model and "
          "start it again");
    return absl::OkStatus();
  }

  absl::Status room() {
    if (request_.stopped()) return absl::OkStatus();
    GW_ASSIGN_OR_RETURN(const MachineFacts* facts, node_.machine_facts());
    GW_ASSIGN_OR_RETURN(const migration::Machine machine,
                        describe_machine(*facts, node_.services().paths()));
    const uint64_t needed = domain_.memory_bytes + kMemoryMargin;
    if (machine.memory_available() < needed)
      add("memory.room",
          fmt::format("it has {} MiB of memory to give, the machine needs {} MiB",
                      machine.memory_available() >> 20, needed >> 20),
          "end something there, or choose another node");
    return absl::OkStatus();
  }

  absl::Status bridges() {
    GW_ASSIGN_OR_RETURN(network::Netlink netlink, network::Netlink::open());
    for (const vm::Interface& each : domain_.interfaces) {
      if (each.bridge.empty()) continue;
      const auto found = netlink.ifindex_of(each.bridge);
      if (absl::IsNotFound(found.status()))
        add("vm.bridge",
            fmt::format("it has no bridge {}, which the interface {} is on", each.bridge, each.mac),
            "make the bridge there, on the same segment");
      else
        GW_RETURN_IF_ERROR(found.status());
    }
    return absl::OkStatus();
  }

  absl::Status disks() {
    std::map<std::string, uint64_t> needed;  // by folder
    for (const api::VmDisk& each : request_.disks()) {
      if (!each.mark().empty() && ::access(each.mark().c_str(), F_OK) == 0) continue;
      reply_.add_copied_disks(each.target());
      GW_RETURN_IF_ERROR(can_be_made(each, needed[each.path().substr(0, each.path().rfind('/'))]));
    }
    for (const vm::Disk& each : domain_.disks)
      if (!each.source.empty() && each.read_only && ::access(each.source.c_str(), R_OK) != 0)
        add("vm.disk_missing", fmt::format("it has no {} ({})", each.source, each.target),
            "put the same file there, or take the medium out (virsh change-media --eject)");
    return absl::OkStatus();
  }

  // `needed`: in its folder, with those before.
  absl::Status can_be_made(const api::VmDisk& disk, uint64_t& needed) {
    const std::string& self = node_.config().name;
    const auto refuse = [&](const char* code, std::string reason, std::string way_out) {
      *reply_.add_refusals() = to_refusal(vm_reason(code, fmt::format("disk {}", disk.target()),
                                                    std::move(reason), std::move(way_out)));
      return absl::OkStatus();
    };
    const auto named = [&](const vm::Disk& each) { return each.target == disk.target(); };
    const auto found = std::find_if(domain_.disks.begin(), domain_.disks.end(), named);
    if (found == domain_.disks.end() || found->source != disk.path())
      return make_error(absl::StatusCode::kInvalidArgument, "the XML has no disk {} of {}",
                        disk.target(), disk.path());
    const bool format = disk.format() == "qcow2" || disk.format() == "raw";
    if (request_.stopped() || found->kind != "file" || found->shareable || !format)
      return refuse("vm.disk_not_shared",
                    fmt::format("{} does not see it, and only disks of a machine that runs are "
                                "copied, in files of their own (qcow2, raw)",
                                self),
                    "put it on storage that both nodes have mounted at the same place, or let the "
                    "machine run");
    if (found->backed)
      return refuse(
          "vm.disk_backed",
          fmt::format("{} does not see it, and it is a difference from another file", self),
          "make it one file (virsh blockpull), or put all of them on shared storage");
    const auto exists = hypervisor_.disk_exists(disk.path());
    if (absl::IsNotFound(exists.status()))
      return refuse("vm.disk_folder",
                    fmt::format("libvirt of {} has no such folder for it: {}", self,
                                message_of(exists.status())),
                    "make the folder there");
    GW_RETURN_IF_ERROR(exists.status());
    if (*exists)
      return refuse(
          "vm.disk_exists",
          fmt::format("{} has a file {} already, which is not this one", self, disk.path()),
          "remove that one there, if it is an old copy");
    GW_ASSIGN_OR_RETURN(const uint64_t room, hypervisor_.room_for(disk.path()));
    needed += disk.allocated();
    if (room < needed)
      return refuse("vm.disk_room",
                    fmt::format("{} has room for {} MiB in its folder, and {} MiB are to come",
                                self, room >> 20, needed >> 20),
                    "make room there");
    return absl::OkStatus();
  }

  Node& node_;
  vm::Hypervisor& hypervisor_;
  const vm::DomainSpec& domain_;
  const api::PrepareVmRequest& request_;
  api::PrepareVmReply& reply_;
};

}  // namespace

migration::Reason vm_reason(const char* code, std::string object, std::string reason,
                            std::string way_out) {
  migration::Reason one;
  one.set_code(code);
  one.set_object(std::move(object));
  one.set_reason(std::move(reason));
  one.set_way_out(std::move(way_out));
  return one;
}

absl::StatusOr<std::vector<migration::Reason>> unmovable_parts(vm::Hypervisor& hypervisor,
                                                               const vm::DomainSpec& domain,
                                                               bool running) {
  std::vector<migration::Reason> reasons;
  for (const vm::HostDevice& each : domain.host_devices)
    reasons.push_back(vm_reason("vm.host_device", each.what,
                                fmt::format("{} is this node's own and cannot go along", each.name),
                                "detach it (virsh detach-device), and attach another one there"));
  GW_ASSIGN_OR_RETURN(const int snapshots, hypervisor.snapshots(domain.uuid));
  if (snapshots > 0)
    reasons.push_back(vm_reason("vm.snapshots", domain.name,
                                fmt::format("libvirt keeps {} snapshots of it here, which would "
                                            "not know the other node's files",
                                            snapshots),
                                "delete them, with --metadata their descriptions only (virsh "
                                "snapshot-delete)"));
  if (!running) return reasons;
  const auto job = hypervisor.job(domain.uuid);
  if (job.ok() && job->active)
    reasons.push_back(vm_reason("vm.job", domain.name,
                                "libvirt is at work on it (a backup, a snapshot, a migration)",
                                "wait for its end, or stop it (virsh domjobabort)"));
  return reasons;
}

absl::StatusOr<std::optional<migration::Reason>> misses_writes(vm::Hypervisor& hypervisor,
                                                               const vm::DomainSpec& domain) {
  constexpr int kRightSince = 9;
  constexpr uint64_t kBlock = 64 * 4096;
  if (domain.emulation == "kvm" || vm::machine_version(domain.machine) >= kRightSince)
    return std::nullopt;
  // What is more than libvirt has given it is its whole RAM: none of it is in the balloon.
  GW_ASSIGN_OR_RETURN(const vm::MemoryFigures memory, hypervisor.memory(domain.uuid));
  const uint64_t ram = memory.ram_bytes;
  if (ram > domain.memory_bytes && ram % kBlock != 0 && !domain.video) return std::nullopt;
  return vm_reason("vm.tcg_tracking", domain.name,
                   fmt::format("it is emulated, without KVM, on a machine ({}) of a QEMU before "
                               "9.0, which does not see all that a guest writes while it is "
                               "copied: its memory would be damaged",
                               domain.machine),
                   "--strategy cold, KVM (<domain type='kvm'>), or a machine type of QEMU 9.0 or "
                   "newer");
}

absl::Status judge_vm(Node& node, const api::PrepareVmRequest& request,
                      api::PrepareVmReply& reply) {
  const auto hypervisor = node.vms().hypervisor();
  absl::Status judged = hypervisor.status();
  if (judged.ok()) {
    GW_ASSIGN_OR_RETURN(const vm::DomainSpec domain, vm::parse_domain(request.xml()));
    if (domain.uuid != request.uuid() || domain.name != request.name())
      return make_error(absl::StatusCode::kInvalidArgument, "the XML is of {} ({}), not of {} ({})",
                        domain.name, domain.uuid, request.name(), request.uuid());
    judged = VmJudge(node, **hypervisor, domain, request, reply).judge();
  }
  if (!absl::IsUnavailable(judged) && !absl::IsUnimplemented(judged)) return judged;
  *reply.add_refusals() = to_refusal(
      vm_reason("vm.libvirt", "node " + node.config().name, std::string(message_of(judged)),
                "install and start libvirt there (libvirt-daemon-system)"));
  return absl::OkStatus();
}

std::vector<vm::Disk> written_disks(const vm::DomainSpec& domain) {
  std::vector<vm::Disk> disks;
  for (const vm::Disk& each : domain.disks)
    if (!each.source.empty() && !each.read_only) disks.push_back(each);
  return disks;
}

SharedMarks::SharedMarks(const std::string& id, const vm::DomainSpec& domain) : id_(id) {
  for (const vm::Disk& each : written_disks(domain)) {
    const std::string path = path_beside(each);
    if (each.kind != "file" || std::find(paths_.begin(), paths_.end(), path) != paths_.end())
      continue;
    if (kernel::open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600).ok())
      paths_.push_back(path);
  }
}

SharedMarks::~SharedMarks() {
  for (const std::string& each : paths_) ::unlink(each.c_str());
}

std::string SharedMarks::path_beside(const vm::Disk& disk) const {
  return disk.source.substr(0, disk.source.rfind('/') + 1) + ".godwit-shared-" + id_;
}

std::string SharedMarks::beside(const vm::Disk& disk) const {
  const std::string path = path_beside(disk);
  return std::find(paths_.begin(), paths_.end(), path) == paths_.end() ? "" : path;
}

}  // namespace godwit::node
