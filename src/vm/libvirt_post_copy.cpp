// Post-copy, and the way back from it. libvirt 9.0 has none. QEMU 7.2 has "migrate_cancel", after
// which the guest's memory here is whole, for nobody else has run; but it works at one place only:
// where QEMU's thread waits for its own limit. In state postcopy-paused it never ends, and where
// that thread sends, it may take the socket that is shut down for a broken link, and pause (both
// seen). So QEMU is led to that place: its connection is broken, if it is not yet, and it resumes
// towards us (resume_answers.h) with a limit at which it sends nothing for the first 100 ms.
//
// libvirt's job is ended by "confirm" as cancelled, by any connection. libvirt that has seen QEMU's
// connection break, or its client's, takes the domain's post-copy for failed, and would keep the
// job; that QEMU resumes puts that right.
#ifdef GODWIT_LIBVIRT
#include <sys/socket.h>

#include <array>
#include <cstdlib>

#include "absl/time/clock.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/status.h"
#include "base/unique_fd.h"
#include "vm/libvirt_hypervisor.h"
#include "vm/resume_answers.h"

namespace godwit::vm {
namespace {

constexpr absl::Duration kCancelWait = absl::Seconds(10);
constexpr absl::Duration kTurnWait = absl::Milliseconds(500);
constexpr absl::Duration kResumeWait = absl::Seconds(5);
constexpr absl::Duration kLastPagesWait = absl::Seconds(3);
constexpr absl::Duration kLook = absl::Milliseconds(20);

// {"return":{...,"status":"postcopy-active",...}}; members of members are named otherwise.
std::string status_in(const std::string& answer) {
  constexpr std::string_view kKey = "\"status\":\"";
  const size_t at = answer.find(kKey);
  if (at == std::string::npos) return "none";
  const size_t begin = at + kKey.size();
  return answer.substr(begin, answer.find('"', begin) - begin);
}

// All has been sent, and only the destination's word is missing that it has it.
bool all_sent(const std::string& answer) {
  return answer.find("\"remaining\":0,") != std::string::npos;
}

bool has_ended(const std::string& status) {
  return status == "cancelled" || status == "completed" || status == "failed" || status == "none";
}

// Whatever it says, until there is no more of it now.
void throw_away(int fd) {
  std::array<char, 65536> some{};
  while (::recv(fd, some.data(), some.size(), MSG_DONTWAIT) > 0) {
  }
}

}  // namespace

absl::Status LibvirtHypervisor::post_copy_possible() {
  if (api_.confirm_migration != nullptr && api_.qemu_monitor_command != nullptr &&
      api_.qemu_monitor_command_with_files != nullptr)
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
                                                        const std::string& arguments, int fd) {
  GW_RETURN_IF_ERROR(post_copy_possible());
  std::string answer;
  GW_RETURN_IF_ERROR(on_domain(uuid, "virDomainQemuMonitorCommand()", [&](virDomainPtr found) {
    char* said = nullptr;
    std::string text = fmt::format("{{\"execute\":\"{}\"", command);
    if (!arguments.empty()) text += fmt::format(",\"arguments\":{}", arguments);
    text += '}';
    const int done = fd < 0 ? api_.qemu_monitor_command(found, text.c_str(), &said, 0)
                            : api_.qemu_monitor_command_with_files(found, text.c_str(), 1, &fd,
                                                                   nullptr, nullptr, &said, 0);
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

// Our end of the stream.
absl::StatusOr<UniqueFd> LibvirtHypervisor::migrate_to_us(const std::string& uuid, bool resume) {
  std::array<int, 2> ends{};
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends.data()) != 0)
    return errno_status(errno, "socketpair(AF_UNIX)");
  UniqueFd ours(ends[0]);
  const UniqueFd its(ends[1]);
  GW_RETURN_IF_ERROR(ask_qemu(uuid, "getfd", "{\"fdname\":\"godwit-back\"}", its.get()).status());
  GW_RETURN_IF_ERROR(
      ask_qemu(uuid, "migrate", fmt::format("{{\"uri\":\"fd:godwit-back\",\"resume\":{}}}", resume))
          .status());
  return ours;
}

// It does not end towards us, however little is left, and sends nothing before it has looked at its
// limit 100 ms later. libvirt puts both right when its job ends.
absl::Status LibvirtHypervisor::limit_post_copy(const std::string& uuid) {
  return ask_qemu(uuid, "migrate-set-parameters",
                  "{\"max-postcopy-bandwidth\":100,\"downtime-limit\":0}")
      .status();
}

// From postcopy-paused.
absl::Status LibvirtHypervisor::cancel_paused(const std::string& uuid) {
  GW_RETURN_IF_ERROR(limit_post_copy(uuid));
  GW_ASSIGN_OR_RETURN(const UniqueFd ours, migrate_to_us(uuid, true));
  GW_RETURN_IF_ERROR(answer_resume(ours.get(), Deadline::in(kResumeWait)));
  return ask_qemu(uuid, "migrate_cancel").status();
}

// Whether libvirt takes the post-copy of a domain that runs for failed.
absl::StatusOr<bool> LibvirtHypervisor::taken_for_failed(const std::string& uuid) {
  int state = 0;
  int reason = 0;
  GW_RETURN_IF_ERROR(on_domain(uuid, "virDomainGetState()", [&](virDomainPtr found) {
    return api_.virDomainGetState(found, &state, &reason, 0);
  }));
  return state == VIR_DOMAIN_RUNNING && reason == VIR_DOMAIN_RUNNING_POSTCOPY_FAILED;
}

// All of it went over before it was called off. libvirt takes a job whose QEMU said "completed" for
// a success, whatever it is told, and would end the domain; and one whose client has gone it would
// keep. So QEMU is led back into post-copy, towards us, from which it can come back.
absl::Status LibvirtHypervisor::post_copy_to_us(const std::string& uuid) {
  GW_RETURN_IF_ERROR(limit_post_copy(uuid));
  // It is not to be done before it has been told to turn: it sends nothing for 100 ms.
  GW_RETURN_IF_ERROR(ask_qemu(uuid, "migrate-set-parameters", "{\"max-bandwidth\":100}").status());
  GW_ASSIGN_OR_RETURN(const UniqueFd ours, migrate_to_us(uuid, false));
  GW_RETURN_IF_ERROR(ask_qemu(uuid, "migrate-start-postcopy").status());
  for (const Deadline deadline = Deadline::in(kCancelWait);;) {
    throw_away(ours.get());
    GW_ASSIGN_OR_RETURN(const std::string answer, ask_qemu(uuid, "query-migrate"));
    const std::string status = status_in(answer);
    if (status == "postcopy-active") break;
    if (has_ended(status) || deadline.passed())
      return make_error(absl::StatusCode::kUnavailable, "QEMU does not go into post-copy: {}",
                        status);
    if (status == "pre-switchover")
      GW_RETURN_IF_ERROR(
          ask_qemu(uuid, "migrate-continue", "{\"state\":\"pre-switchover\"}").status());
    absl::SleepFor(absl::Milliseconds(1));
  }
  return end_post_copy(uuid);
}

absl::Status LibvirtHypervisor::end_post_copy(const std::string& uuid) {
  const Deadline last_pages = Deadline::in(kLastPagesWait);
  for (const Deadline deadline = Deadline::in(kCancelWait);;) {
    GW_ASSIGN_OR_RETURN(const std::string answer, ask_qemu(uuid, "query-migrate"));
    const std::string status = status_in(answer);
    if (has_ended(status)) return absl::OkStatus();
    if (deadline.passed())
      return make_error(absl::StatusCode::kDeadlineExceeded, "QEMU does not cancel: {}", status);
    if (status == "postcopy-paused") {
      GW_RETURN_IF_ERROR(cancel_paused(uuid));
      log_info("QEMU of {} has been brought back from post-copy", uuid);
    } else if (status == "postcopy-active" && (!all_sent(answer) || last_pages.passed())) {
      // Refused where the connection is breaking just now.
      ask_qemu(uuid, "migrate-pause").status().IgnoreError();
    }
    absl::SleepFor(kLook);
  }
}

// Ends libvirt's job. A client whose connection has ended leaves it in a phase after which only the
// confirm of a resumed post-copy is taken.
absl::Status LibvirtHypervisor::confirm_cancelled(const std::string& uuid) {
  constexpr unsigned kFlags = VIR_MIGRATE_LIVE | VIR_MIGRATE_POSTCOPY;
  constexpr unsigned kResumed = VIR_MIGRATE_POSTCOPY_RESUME | VIR_MIGRATE_CHANGE_PROTECTION;
  absl::Status confirmed = absl::OkStatus();
  for (const unsigned flags : {kFlags, kFlags | kResumed}) {
    confirmed = on_domain(uuid, "virDomainMigrateConfirm3Params()", [&](virDomainPtr found) {
      return api_.confirm_migration(found, nullptr, 0, nullptr, 0, flags, 1);
    });
    if (confirmed.ok()) break;
  }
  const auto left = job(uuid);
  if (left.ok() && !left->active) return absl::OkStatus();
  GW_RETURN_IF_ERROR(confirmed);
  return make_error(
      absl::StatusCode::kUnavailable,
      "libvirt has not ended its job, so the machine runs, but cannot be moved; start "
      "libvirt's daemon again, which leaves machines as they are");
}

absl::Status LibvirtHypervisor::come_back(const std::string& uuid) {
  GW_RETURN_IF_ERROR(end_post_copy(uuid));
  // First: of one that stands still libvirt would say that post-copy failed, and keep the job.
  GW_RETURN_IF_ERROR(ask_qemu(uuid, "cont").status());
  GW_ASSIGN_OR_RETURN(const std::string migration, ask_qemu(uuid, "query-migrate"));
  GW_ASSIGN_OR_RETURN(const bool failed, taken_for_failed(uuid));
  if (failed || status_in(migration) == "completed") {
    GW_RETURN_IF_ERROR(post_copy_to_us(uuid));
    GW_RETURN_IF_ERROR(ask_qemu(uuid, "cont").status());
  }
  GW_RETURN_IF_ERROR(confirm_cancelled(uuid));
  // It says that it runs in post-copy, until it stops for another reason.
  GW_ASSIGN_OR_RETURN(const bool said, in_post_copy(uuid));
  if (!said) return absl::OkStatus();
  GW_RETURN_IF_ERROR(on_domain(uuid, "virDomainSuspend()",
                               [&](virDomainPtr found) { return api_.virDomainSuspend(found); }));
  return resume(uuid);
}

}  // namespace godwit::vm
#endif
