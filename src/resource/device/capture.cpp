// Character devices without state of their own: major 1 of devices.txt (mem(4), null(4), full(4),
// random(4)). Terminals of hardware are known, to be refused with a reason.
#include <fmt/format.h>
#include <sys/sysmacros.h>

#include "resource/device/device.h"
#include "resource/device/device.pb.h"
#include "resource/device/device_internal.h"
#include "resource/file_description.h"

namespace godwit::resource {
namespace {

constexpr unsigned kMemoryMajor = 1;

bool stateless(dev_t dev) {
  if (major(dev) != kMemoryMajor) return false;
  const unsigned m = minor(dev);
  return m == 3 || m == 5 || m == 7 || m == 8 || m == 9;  // null, zero, full, random, urandom
}

// Virtual consoles, serial lines, /dev/console and their like. Pseudoterminals, and /dev/tty, are
// another kind.
bool terminal(dev_t dev) {
  const unsigned m = major(dev);
  return m == 4 || (m == 5 && minor(dev) != 0 && minor(dev) != 2);
}

}  // namespace

const FileKind& device_kind() {
  static const DeviceKind kind;
  return kind;
}

bool DeviceKind::recognise(const OpenFile& file) const {
  if (!S_ISCHR(file.stat.st_mode) || (file.status_flags & O_PATH) != 0) return false;
  return stateless(file.stat.st_rdev) || terminal(file.stat.st_rdev);
}

absl::Status DeviceKind::precheck(const OpenFile& file, const CaptureContext&,
                                  std::vector<Refusal>& refusals) const {
  if (terminal(file.stat.st_rdev)) {
    refuse(file, "fd.terminal", "a terminal belongs to this machine",
           "run the service without one, or close the session that opened it", refusals);
    return absl::OkStatus();
  }
  if (!file.link.starts_with('/') || file.link.ends_with(" (deleted)")) {
    refuse(file, "fd.deleted", "its device file has been removed", "open it again by its name",
           refusals);
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> DeviceKind::capture(const OpenFile& file,
                                                const CaptureContext& context) const {
  std::vector<Refusal> refusals;
  GW_RETURN_IF_ERROR(precheck(file, context, refusals));
  GW_RETURN_IF_ERROR(refused_now(refusals));
  DeviceState state;
  state.set_path(file.link);
  state.set_major(major(file.stat.st_rdev));
  state.set_minor(minor(file.stat.st_rdev));
  state.set_flags(static_cast<uint32_t>(file.status_flags));
  return state.SerializeAsString();
}

}  // namespace godwit::resource
