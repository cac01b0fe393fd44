// What a checkpoint of a domain is made of, and a domain made of one. Of libvirt's own calls none
// saves memory while the guest runs on and leaves it running, so QEMU's monitor is asked (tried
// with QEMU 7.2 and libvirt 9.0):
//
// With "background-snapshot" QEMU stops the guest, writes its devices down, write-protects its
// memory with userfaultfd(2), and lets it run by itself, also one that stood still when it began; a
// page that the guest writes to is sent first. Nothing of it depends on dirty bits
// (vm.tcg_tracking). When the pipe breaks QEMU keeps the protection, and the guest's CPU waits for
// ever (2 of 2); so it is not asked to cancel either: all of it goes out, to whomever.
//
// Without it the guest must stand still. QEMU then gives its disks away ("postmigrate"); "cont"
// takes them back. While it writes its last bytes it does not answer.
//
// libvirt takes what QEMU says of migrations that it has not begun for nothing.
#ifdef GODWIT_LIBVIRT
#include <charconv>
#include <cstdlib>
#include <pugixml.hpp>
#include <sstream>
#include <string_view>

#include "absl/time/clock.h"
#include "base/clock.h"
#include "base/status.h"
#include "vm/domain_change.h"
#include "vm/libvirt_hypervisor.h"

namespace godwit::vm {
namespace {

constexpr absl::Duration kEndWait = absl::Seconds(20);
constexpr absl::Duration kLook = absl::Milliseconds(20);
constexpr char kDescriptor[] = "godwit-checkpoint";
// Of a guest that writes faster than its disk takes it.
constexpr absl::Duration kMergeSilence = absl::Minutes(5);

// What follows "key": in JSON as QEMU writes it, without blanks.
std::string_view after(std::string_view json, std::string_view key) {
  const std::string quoted = fmt::format("\"{}\":", key);
  const size_t at = json.find(quoted);
  return at == std::string_view::npos ? std::string_view() : json.substr(at + quoted.size());
}

uint64_t number(std::string_view json, std::string_view key) {
  const std::string_view text = after(json, key);
  uint64_t value = 0;
  std::from_chars(text.data(), text.data() + text.size(), value);
  return value;
}

std::string text(std::string_view json, std::string_view key) {
  std::string_view found = after(json, key);
  if (!found.starts_with('"')) return "";
  found.remove_prefix(1);
  return std::string(found.substr(0, found.find('"')));
}

// Disks that are not named and only read stay as they are.
std::string snapshot_xml(const std::vector<DivertedDisk>& disks) {
  pugi::xml_document document;
  pugi::xml_node list = document.append_child("domainsnapshot").append_child("disks");
  for (const DivertedDisk& each : disks) {
    pugi::xml_node disk = list.append_child("disk");
    disk.append_attribute("name") = each.target.c_str();
    disk.append_attribute("snapshot") = "external";
    disk.append_attribute("type") = "file";
    disk.append_child("driver").append_attribute("type") = "qcow2";
    disk.append_child("source").append_attribute("file") = each.overlay.c_str();
  }
  std::ostringstream out;
  document.print(out, "", pugi::format_raw);
  return out.str();
}

MemorySending sending_in(std::string_view answer) {
  MemorySending now;
  const std::string status = text(answer, "status");
  if (status == "completed")
    now.state = MemorySending::State::kDone;
  else if (status == "failed" || status == "cancelled" || status.empty() || status == "none")
    now.state = MemorySending::State::kFailed;
  else
    now.state = MemorySending::State::kGoing;
  now.error = text(answer, "error-desc");
  if (now.error.empty() && now.state == MemorySending::State::kFailed)
    now.error = status.empty() ? "none is under way" : status;
  const std::string_view ram = after(answer, "ram");
  now.total = number(ram, "total");
  now.left = number(ram, "remaining");
  now.pages_go = number(ram, "normal") + number(ram, "duplicate") > 0;
  return now;
}

}  // namespace

absl::StatusOr<std::string> LibvirtHypervisor::definition(const std::string& uuid) {
  std::string text;
  GW_RETURN_IF_ERROR(on_domain(uuid, "virDomainGetXMLDesc()", [&](virDomainPtr found) {
    char* got = api_.virDomainGetXMLDesc(found, VIR_DOMAIN_XML_INACTIVE | VIR_DOMAIN_XML_SECURE);
    if (got == nullptr) return -1;
    text = got;
    ::free(got);
    return 0;
  }));
  return text;
}

absl::Status LibvirtHypervisor::pause(const std::string& uuid) {
  return on_domain(uuid, "virDomainSuspend()",
                   [&](virDomainPtr found) { return api_.virDomainSuspend(found); });
}

absl::Status LibvirtHypervisor::set_background(const std::string& uuid, bool on) {
  return ask_qemu(uuid, "migrate-set-capabilities",
                  fmt::format("{{\"capabilities\":[{{\"capability\":\"background-snapshot\","
                              "\"state\":{}}}]}}",
                              on))
      .status();
}

absl::Status LibvirtHypervisor::prepare_sending(const std::string& uuid, int fd) {
  if (api_.qemu_monitor_command_with_files == nullptr)
    return make_error(absl::StatusCode::kUnimplemented,
                      "libvirt here lacks virDomainQemuMonitorCommandWithFiles(); install libvirt "
                      "8.2 or newer");
  // Its default is 128 MiB/s. libvirt sets it anew for each of its own migrations.
  GW_RETURN_IF_ERROR(
      ask_qemu(uuid, "migrate-set-parameters", "{\"max-bandwidth\":1099511627776}").status());
  const std::string given =
      fmt::format("{{\"execute\":\"getfd\",\"arguments\":{{\"fdname\":\"{}\"}}}}", kDescriptor);
  std::string answer;
  GW_RETURN_IF_ERROR(
      on_domain(uuid, "virDomainQemuMonitorCommandWithFiles()", [&](virDomainPtr found) {
        char* said = nullptr;
        const int done = api_.qemu_monitor_command_with_files(found, given.c_str(), 1, &fd, nullptr,
                                                              nullptr, &said, 0);
        if (done == 0 && said != nullptr) answer = said;
        std::free(said);
        return done;
      }));
  if (answer.find("\"error\"") != std::string::npos)
    return make_error(absl::StatusCode::kFailedPrecondition, "QEMU, getfd: {}", answer);
  return absl::OkStatus();
}

absl::Status LibvirtHypervisor::begin_sending(const std::string& uuid) {
  return ask_qemu(uuid, "migrate", fmt::format("{{\"uri\":\"fd:{}\"}}", kDescriptor)).status();
}

absl::StatusOr<MemorySending> LibvirtHypervisor::memory_sending(const std::string& uuid) {
  GW_ASSIGN_OR_RETURN(const std::string answer, ask_qemu(uuid, "query-migrate"));
  return sending_in(answer);
}

absl::Status LibvirtHypervisor::end_sending(const std::string& uuid) {
  uint64_t left = 0;
  for (Deadline silence = Deadline::in(kEndWait);;) {
    GW_ASSIGN_OR_RETURN(const MemorySending now, memory_sending(uuid));
    if (now.state != MemorySending::State::kGoing) break;
    if (now.left != left) silence = Deadline::in(kEndWait);
    left = now.left;
    if (silence.passed())
      return make_error(absl::StatusCode::kDeadlineExceeded, "QEMU does not stop sending memory");
    absl::SleepFor(kLook);
  }
  // What was not begun has it yet. Fine when there is none.
  ask_qemu(uuid, "closefd", fmt::format("{{\"fdname\":\"{}\"}}", kDescriptor)).IgnoreError();
  const absl::Status off = set_background(uuid, false);
  // Of a QEMU before 6.0, which has none.
  const bool unknown = off.message().find("does not accept value") != std::string_view::npos;
  return unknown ? absl::OkStatus() : off;
}

absl::Status LibvirtHypervisor::divert_disks(const std::string& uuid,
                                             const std::vector<DivertedDisk>& disks) {
  const std::string snapshot = snapshot_xml(disks);
  return on_domain(uuid, "virDomainSnapshotCreateXML()", [&](virDomainPtr found) {
    const virDomainSnapshotPtr made = api_.virDomainSnapshotCreateXML(
        found, snapshot.c_str(),
        VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY | VIR_DOMAIN_SNAPSHOT_CREATE_REUSE_EXT |
            VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA | VIR_DOMAIN_SNAPSHOT_CREATE_ATOMIC);
    if (made == nullptr) return -1;
    return api_.virDomainSnapshotFree(made);
  });
}

absl::Status LibvirtHypervisor::merge_disk(const std::string& uuid, const std::string& target) {
  const auto look = [&](virDomainBlockJobInfo& info) {
    int found = 0;
    const absl::Status asked =
        on_domain(uuid, "virDomainGetBlockJobInfo()", [&](virDomainPtr domain) {
          return found = api_.virDomainGetBlockJobInfo(domain, target.c_str(), &info, 0);
        });
    return asked.ok() ? absl::StatusOr<bool>(found == 1) : absl::StatusOr<bool>(asked);
  };
  const auto end = [&](unsigned how) {
    return on_domain(uuid, "virDomainBlockJobAbort()", [&](virDomainPtr domain) {
      return api_.virDomainBlockJobAbort(domain, target.c_str(), how);
    });
  };
  virDomainBlockJobInfo info{};
  GW_ASSIGN_OR_RETURN(const bool left, look(info));
  if (left) GW_RETURN_IF_ERROR(end(0));  // a predecessor's
  GW_RETURN_IF_ERROR(on_domain(uuid, "virDomainBlockCommit()", [&](virDomainPtr domain) {
    return api_.virDomainBlockCommit(domain, target.c_str(), nullptr, nullptr, 0,
                                     VIR_DOMAIN_BLOCK_COMMIT_ACTIVE);
  }));
  unsigned long long before = 0;
  for (Deadline silence = Deadline::in(kMergeSilence);;) {
    GW_ASSIGN_OR_RETURN(const bool there, look(info));
    if (!there)
      return make_error(absl::StatusCode::kUnavailable, "merging {} has ended too early", target);
    // Equal a moment too early, too: then the pivot is refused, and asked for again.
    if (info.cur == info.end && end(VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT).ok()) return absl::OkStatus();
    if (info.cur != before) silence = Deadline::in(kMergeSilence);
    before = info.cur;
    if (silence.passed()) {
      GW_RETURN_IF_ERROR(end(0));
      return make_error(absl::StatusCode::kDeadlineExceeded, "{} is not merged", target);
    }
    absl::SleepFor(kLook);
  }
}

absl::Status LibvirtHypervisor::start_paused(const std::string& uuid) {
  return on_domain(uuid, "virDomainCreateWithFlags()", [&](virDomainPtr found) {
    return api_.virDomainCreateWithFlags(found, VIR_DOMAIN_START_PAUSED);
  });
}

absl::Status LibvirtHypervisor::load(const std::string& path) {
  // Its own: it lasts as long as memory comes.
  GW_ASSIGN_OR_RETURN(const auto connected, Connection::open(api_, uri_of(socket_)));
  return api_.virDomainRestoreFlags(connected->get(), path.c_str(), nullptr,
                                    VIR_DOMAIN_SAVE_PAUSED) != 0
             ? libvirt_error(api_, "virDomainRestoreFlags()")
             : absl::OkStatus();
}

absl::StatusOr<bool> LibvirtHypervisor::loaded(const std::string& uuid) {
  GW_ASSIGN_OR_RETURN(const std::string answer, ask_qemu(uuid, "query-status"));
  return text(answer, "status") != "inmigrate";
}

absl::Status LibvirtHypervisor::unplug(const std::string& uuid) {
  GW_ASSIGN_OR_RETURN(const std::string live, xml(uuid, false));
  GW_ASSIGN_OR_RETURN(const std::vector<std::string> interfaces, unplugged_interfaces(live));
  for (const std::string& each : interfaces)
    GW_RETURN_IF_ERROR(on_domain(uuid, "virDomainUpdateDeviceFlags()", [&](virDomainPtr found) {
      return api_.virDomainUpdateDeviceFlags(found, each.c_str(), VIR_DOMAIN_AFFECT_LIVE);
    }));
  return absl::OkStatus();
}

}  // namespace godwit::vm
#endif
