// What follows when a virtual machine's checkpoint or restore has ended, by itself or with the
// daemon. Repeatable, from the start, by another daemon.
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>

#include "base/log.h"
#include "base/status.h"
#include "kernel/syscalls.h"
#include "migration/image_file.h"
#include "node/node.h"
#include "node/vm_restore.h"
#include "node/vms.h"

namespace godwit::node {
namespace {

bool exists(const std::string& path) { return ::access(path.c_str(), F_OK) == 0; }

bool uses(const absl::StatusOr<std::string>& xml, const std::string& path) {
  if (!xml.ok()) return false;
  const auto spec = vm::parse_domain(*xml);
  return spec.ok() && std::any_of(spec->disks.begin(), spec->disks.end(),
                                  [&](const vm::Disk& each) { return each.source == path; });
}

// Brings what was written to overlays into the disks below them.
absl::Status merge_overlays(vm::Hypervisor& hypervisor, const api::MigrationJournal& entry) {
  const std::string& uuid = entry.vm_uuid();
  bool started = false;
  absl::Status done = absl::OkStatus();
  for (const api::VmOverlay& each : entry.vm_overlays()) {
    // Of a stopped one, as of one that runs, what it has now.
    if (!uses(hypervisor.xml(uuid, false), each.path())) continue;
    GW_ASSIGN_OR_RETURN(const vm::DomainState state, hypervisor.state(uuid));
    // Only a QEMU can merge; it need not run its guest for that.
    if (state == vm::DomainState::kStopped) {
      GW_RETURN_IF_ERROR(hypervisor.start_paused(uuid));
      started = true;
    }
    done = hypervisor.merge_disk(uuid, each.target());
    if (!done.ok()) break;
  }
  if (started) done.Update(hypervisor.destroy(uuid));
  return done;
}

absl::Status remove_overlays(vm::Hypervisor& hypervisor, const api::MigrationJournal& entry) {
  const auto live = hypervisor.xml(entry.vm_uuid(), false);
  const auto definition = hypervisor.definition(entry.vm_uuid());
  const bool gone = absl::IsNotFound(live.status());
  if (!live.ok() && !gone) return live.status();
  for (const api::VmOverlay& each : entry.vm_overlays()) {
    if (gone) {
      const auto left = hypervisor.disk_exists(each.path());
      if (left.ok() && *left)
        log_error(
            "{} has gone while its disk {} was saved: what it wrote last is in {}, and belongs "
            "into the disk (qemu-img commit)",
            entry.service(), each.target(), each.path());
      continue;
    }
    if (uses(live, each.path()) || uses(definition, each.path()))
      return make_error(absl::StatusCode::kUnavailable, "{} is in use yet", each.path());
    GW_RETURN_IF_ERROR(hypervisor.remove_disk(each.path()));
  }
  return absl::OkStatus();
}

// It has no other place than the file now.
absl::Status take_down(vm::Hypervisor& hypervisor, Node& node, const api::MigrationJournal& entry) {
  const std::string& uuid = entry.vm_uuid();
  node.vms().let_go(entry.service());
  GW_RETURN_IF_ERROR(hypervisor.destroy(uuid));
  GW_RETURN_IF_ERROR(hypervisor.undefine(uuid));
  for (const std::string& each : entry.vm_disks()) GW_RETURN_IF_ERROR(hypervisor.remove_disk(each));
  // Last: from then on it may be restored, anywhere.
  const auto found = node.records().service(entry.service());
  if (!found.ok() && !absl::IsNotFound(found.status())) return found.status();
  const bool ours = found.ok() && found->record.owner() == node.config().name &&
                    found->record.vm().uuid() == uuid;
  return ours ? node.vms().remove(entry.service(), false) : absl::OkStatus();
}

absl::Status let_run(vm::Hypervisor& hypervisor, const std::string& uuid) {
  const auto state = hypervisor.state(uuid);
  if (absl::IsNotFound(state.status())) return absl::OkStatus();
  GW_RETURN_IF_ERROR(state.status());
  if (*state != vm::DomainState::kPaused) return absl::OkStatus();
  return hypervisor.resume(uuid);
}

}  // namespace

absl::Status Vms::settle_local(const api::MigrationJournal& entry) {
  return entry.vm_restore() ? settle_restore(entry) : settle_checkpoint(entry);
}

absl::Status Vms::settle_checkpoint(api::MigrationJournal entry) {
  GW_ASSIGN_OR_RETURN(const auto hypervisor, hypervisor());
  const std::string partial = migration::partial_image(entry.vm_file());
  const std::string& uuid = entry.vm_uuid();
  if (entry.vm_ends() && !exists(partial) && exists(entry.vm_file())) {
    GW_RETURN_IF_ERROR(take_down(*hypervisor, node_, entry));
    return node_.journal().remove(entry);
  }
  if (entry.vm_ends()) {
    // Before the file goes, whose absence would say the contrary.
    entry.set_vm_ends(false);
    GW_RETURN_IF_ERROR(node_.journal().write(entry));
  }
  // First: it may be what keeps the guest from writing.
  if (::unlink(partial.c_str()) != 0 && errno != ENOENT)
    log_warning("{}", message_of(errno_status(errno, fmt::format("unlink({})", partial))));
  const auto state = hypervisor->state(uuid);
  if (!state.ok() && !absl::IsNotFound(state.status())) return state.status();
  if (state.ok() && *state != vm::DomainState::kStopped)
    GW_RETURN_IF_ERROR(hypervisor->end_sending(uuid));
  if (state.ok()) {
    GW_RETURN_IF_ERROR(let_run(*hypervisor, uuid));
    GW_RETURN_IF_ERROR(merge_overlays(*hypervisor, entry));
  }
  GW_RETURN_IF_ERROR(remove_overlays(*hypervisor, entry));
  GW_RETURN_IF_ERROR(take_on(entry.service(), uuid));
  return node_.journal().remove(entry);
}

absl::Status Vms::settle_restore(const api::MigrationJournal& entry) {
  GW_ASSIGN_OR_RETURN(const auto hypervisor, hypervisor());
  const std::string& uuid = entry.vm_uuid();
  const std::string fifo = vm_fifo(node_.config().vm_sockets, entry.id());
  // A libvirt that waits in open(2) for somebody to write sees an end.
  { const auto woken = kernel::open(fifo, O_WRONLY | O_NONBLOCK | O_CLOEXEC); }
  ::unlink(fifo.c_str());
  auto found = node_.records().service(entry.service());
  if (!found.ok() && !absl::IsNotFound(found.status())) return found.status();
  const bool ours = found.ok() && found->record.owner() == node_.config().name &&
                    found->record.has_vm() && found->record.vm().uuid() == uuid;
  if (ours && found->record.state() != api::SERVICE_CREATING) {
    const auto xml = hypervisor->xml(uuid, false);
    const auto spec = xml.ok() ? vm::parse_domain(*xml) : xml.status();
    if (spec.ok()) GW_RETURN_IF_ERROR(connect_plugged(*spec));
    GW_RETURN_IF_ERROR(let_run(*hypervisor, uuid));
    GW_RETURN_IF_ERROR(take_on(entry.service(), uuid));
    return node_.journal().remove(entry);
  }
  GW_RETURN_IF_ERROR(hypervisor->destroy(uuid));
  GW_RETURN_IF_ERROR(hypervisor->undefine(uuid));
  for (const std::string& each : entry.vm_disks())
    GW_RETURN_IF_ERROR(hypervisor->remove_disk(each));
  if (ours) GW_RETURN_IF_ERROR(remove(entry.service(), false));
  return node_.journal().remove(entry);
}

}  // namespace godwit::node
