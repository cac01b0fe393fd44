// Post-copy, and the way back from it. libvirt 9.0 has none, and QEMU 7.2 only as long as its
// connection to the destination lives: "migrate_cancel" in state postcopy-active ends in
// "cancelled" once that is closed, and the guest's memory here is whole, for nobody else has run;
// in state postcopy-paused it ends never (both tried). So whoever closes that connection first asks
// QEMU, and libvirt's job is ended by "confirm" as cancelled, while the connection of its client
// stands: without it libvirt keeps the job for ever.
#ifdef GODWIT_LIBVIRT
#include <cstdlib>

#include "absl/time/clock.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/status.h"
#include "vm/libvirt_hypervisor.h"

namespace godwit::vm {
namespace {

constexpr absl::Duration kCancelWait = absl::Seconds(10);
constexpr absl::Duration kTurnWait = absl::Milliseconds(500);
constexpr absl::Duration kSettle = absl::Milliseconds(400);
constexpr absl::Duration kLook = absl::Milliseconds(20);

// {"return":{...,"status":"postcopy-active",...}}; members of members are named otherwise.
std::string status_in(const std::string& answer) {
  constexpr std::string_view kKey = "\"status\":\"";
  const size_t at = answer.find(kKey);
  if (at == std::string::npos) return "none";
  const size_t begin = at + kKey.size();
  return answer.substr(begin, answer.find('"', begin) - begin);
}

bool has_ended(const std::string& status) {
  return status == "cancelled" || status == "completed" || status == "failed" || status == "none";
}

}  // namespace

absl::Status LibvirtHypervisor::post_copy_possible() {
  if (api_.confirm_migration != nullptr && api_.qemu_monitor_command != nullptr)
    return absl::OkStatus();
  return make_error(absl::StatusCode::kUnimplemented,
                    "libvirt here lacks virDomainMigrateConfirm3Params() or libvirt-qemu.so.0, "
                    "without which there is no way back from post-copy; install libvirt 9.0");
}

absl::Status LibvirtHypervisor::start_post_copy(const std::string& uuid) {
  return on_domain(uuid, "virDomainMigrateStartPostCopy()", [&](virDomainPtr found) {
    return api_.virDomainMigrateStartPostCopy(found, 0);
  });
}

absl::StatusOr<bool> LibvirtHypervisor::in_post_copy(const std::string& uuid) {
  const Deadline deadline = Deadline::in(kTurnWait);
  for (;;) {
    int state = 0;
    int reason = 0;
    GW_RETURN_IF_ERROR(on_domain(uuid, "virDomainGetState()", [&](virDomainPtr found) {
      return api_.virDomainGetState(found, &state, &reason, 0);
    }));
    if (state == VIR_DOMAIN_RUNNING)
      return reason == VIR_DOMAIN_RUNNING_POSTCOPY || reason == VIR_DOMAIN_RUNNING_POSTCOPY_FAILED;
    if (state != VIR_DOMAIN_PAUSED) return false;
    if (reason == VIR_DOMAIN_PAUSED_POSTCOPY || reason == VIR_DOMAIN_PAUSED_POSTCOPY_FAILED)
      return true;
    // Stopped just now, and on its way there perhaps.
    if (reason != VIR_DOMAIN_PAUSED_MIGRATION || deadline.passed()) return false;
    absl::SleepFor(kLook);
  }
}

absl::StatusOr<std::string> LibvirtHypervisor::ask_qemu(const std::string& uuid,
                                                        const std::string& command,
                                                        const std::string& arguments) {
  GW_RETURN_IF_ERROR(post_copy_possible());
  std::string answer;
  GW_RETURN_IF_ERROR(on_domain(uuid, "virDomainQemuMonitorCommand()", [&](virDomainPtr found) {
    char* said = nullptr;
    std::string text = fmt::format("{{\"execute\":\"{}\"", command);
    if (!arguments.empty()) text += fmt::format(",\"arguments\":{}", arguments);
    text += '}';
    const int done = api_.qemu_monitor_command(found, text.c_str(), &said, 0);
    if (done == 0 && said != nullptr) answer = said;
    std::free(said);
    return done;
  }));
  if (answer.find("\"error\"") != std::string::npos)
    return make_error(absl::StatusCode::kFailedPrecondition, "QEMU, {}: {}", command, answer);
  return answer;
}

// libvirt that is started again ends the block job, and leaves the nodes (9.0).
void LibvirtHypervisor::drop_mirrors(const std::string& uuid, const std::vector<Disk>& disks) {
  const auto nodes = ask_qemu(uuid, "query-named-block-nodes", "{\"flat\":true}");
  if (!nodes.ok()) return;
  for (const Disk& each : disks)
    for (const char* layer : {"format", "storage"}) {
      const std::string name = fmt::format("\"migration-{}-{}\"", each.target, layer);
      if (nodes->find("\"node-name\":" + name) == std::string::npos) continue;
      const absl::Status dropped =
          ask_qemu(uuid, "blockdev-del", fmt::format("{{\"node-name\":{}}}", name)).status();
      if (!dropped.ok()) log_warning("{}", message_of(dropped));
    }
}

absl::Status LibvirtHypervisor::come_back(const std::string& uuid,
                                          const std::function<void()>& drain,
                                          const std::function<void()>& cut) {
  GW_ASSIGN_OR_RETURN(const std::string migration, ask_qemu(uuid, "query-migrate"));
  const std::string status = status_in(migration);
  if (status == "postcopy-paused" || status.starts_with("postcopy-recover"))
    return make_error(absl::StatusCode::kFailedPrecondition,
                      "QEMU's connection broke in post-copy ({}), from which it has no way back; "
                      "its memory is whole, but only QEMU at the destination could take it",
                      status);
  if (!has_ended(status)) {
    // QEMU 7.2 shuts its socket down before it notes that it cancels. Its thread that waits for
    // room in there would take that for a broken link, and pause for ever. So it is to wait for its
    // own limit instead, in steps of 100 ms.
    GW_RETURN_IF_ERROR(
        ask_qemu(uuid, "migrate-set-parameters", "{\"max-postcopy-bandwidth\":4096}").status());
    drain();
    absl::SleepFor(kSettle);
    GW_RETURN_IF_ERROR(ask_qemu(uuid, "migrate_cancel").status());
  }
  cut();
  for (const Deadline deadline = Deadline::in(kCancelWait);;) {
    GW_ASSIGN_OR_RETURN(const std::string now, ask_qemu(uuid, "query-migrate"));
    if (has_ended(status_in(now))) break;
    if (deadline.passed())
      return make_error(absl::StatusCode::kDeadlineExceeded, "QEMU does not cancel: {}",
                        status_in(now));
    absl::SleepFor(kLook);
  }
  GW_RETURN_IF_ERROR(ask_qemu(uuid, "cont").status());
  return on_domain(uuid, "virDomainMigrateConfirm3Params()", [&](virDomainPtr found) {
    return api_.confirm_migration(found, nullptr, 0, nullptr, 0,
                                  VIR_MIGRATE_LIVE | VIR_MIGRATE_POSTCOPY, 1);
  });
}

}  // namespace godwit::vm
#endif
