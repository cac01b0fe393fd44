#include "node/vm_precheck.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>

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
    disks();
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

  void disks() {
    for (const std::string& mark : request_.shared_marks())
      if (::access(mark.c_str(), F_OK) != 0) reply_.add_missing_marks(mark);
    for (const vm::Disk& each : domain_.disks)
      if (!each.source.empty() && each.read_only && ::access(each.source.c_str(), R_OK) != 0)
        add("vm.disk_missing", fmt::format("it has no {} ({})", each.source, each.target),
            "put the same file there, or take the medium out (virsh change-media --eject)");
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
  GW_ASSIGN_OR_RETURN(const uint64_t ram, hypervisor.ram_bytes(domain.uuid));
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

SharedMarks::SharedMarks(const std::string& id, const vm::DomainSpec& domain)
    : id_(id), domain_(domain) {
  for (const vm::Disk& each : domain.disks) {
    if (each.source.empty() || each.read_only || each.kind != "file") continue;
    const std::string path = mark_beside(each.source);
    if (std::find(paths_.begin(), paths_.end(), path) != paths_.end()) continue;
    if (kernel::open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600).ok())
      paths_.push_back(path);
  }
}

SharedMarks::~SharedMarks() {
  for (const std::string& each : paths_) ::unlink(each.c_str());
}

std::string SharedMarks::mark_beside(const std::string& disk) const {
  return disk.substr(0, disk.rfind('/') + 1) + ".godwit-shared-" + id_;
}

std::vector<std::string> SharedMarks::not_shared(const api::PrepareVmReply& reply) const {
  std::vector<std::string> targets;
  for (const vm::Disk& each : domain_.disks) {
    if (each.source.empty() || each.read_only) continue;
    const std::string mark = mark_beside(each.source);
    const bool made = std::find(paths_.begin(), paths_.end(), mark) != paths_.end();
    const bool missing = std::find(reply.missing_marks().begin(), reply.missing_marks().end(),
                                   mark) != reply.missing_marks().end();
    if (!made || missing) targets.push_back(each.target);
  }
  return targets;
}

}  // namespace godwit::node
