#include <fmt/format.h>
#include <sys/sysmacros.h>

#include "resource/device/device.pb.h"
#include "resource/device/device_internal.h"
#include "resource/file_description.h"
#include "resource/state_codec.h"

namespace godwit::resource {

absl::StatusOr<UniqueFd> DeviceKind::create(uint64_t, std::string_view bytes,
                                            RestoreContext& context) const {
  GW_ASSIGN_OR_RETURN(const auto state, parse_state<DeviceState>(bytes, name()));
  const dev_t wanted = makedev(state.major(), state.minor());
  UniqueFd fd;
  GW_RETURN_IF_ERROR(context.in_capsule([&]() -> absl::Status {
    // What it is first, then the open: opening a device can do things.
    GW_ASSIGN_OR_RETURN(const UniqueFd place, kernel::open(state.path(), O_PATH));
    struct stat st {};
    if (::fstat(place.get(), &st) != 0)
      return errno_status(errno, "fstat(\"" + state.path() + "\")");
    if (!S_ISCHR(st.st_mode) || st.st_rdev != wanted) {
      return make_error(absl::StatusCode::kFailedPrecondition, "{}: not device {}:{} here",
                        state.path(), state.major(), state.minor());
    }
    constexpr int kNever = O_CREAT | O_EXCL | O_TRUNC | O_ASYNC | O_PATH;
    GW_ASSIGN_OR_RETURN(
        fd, kernel::open(state.path(), (static_cast<int>(state.flags()) & ~kNever) | O_NOCTTY));
    return absl::OkStatus();
  }));
  return fd;
}

absl::StatusOr<bool> DeviceKind::update(int fd, std::string_view before_bytes,
                                        std::string_view now_bytes, RestoreContext&) const {
  GW_ASSIGN_OR_RETURN(auto before, parse_state<DeviceState>(before_bytes, name()));
  GW_ASSIGN_OR_RETURN(const auto now, parse_state<DeviceState>(now_bytes, name()));
  // One description stays on one device; its file may have been renamed.
  if (before.major() != now.major() || before.minor() != now.minor()) return false;
  GW_RETURN_IF_ERROR(set_status_flags(fd, static_cast<int>(now.flags())));
  return true;
}

absl::StatusOr<FileKind::Check> DeviceKind::finish(int, std::string_view, ImagePid, int,
                                                   tracee::Batch&, RestoreContext&) const {
  return Check();
}

std::string DeviceKind::describe(std::string_view bytes) const {
  const auto state = parse_state<DeviceState>(bytes, name());
  if (!state.ok()) return "device (unreadable)";
  return fmt::format("device {} ({}:{})", state->path(), state->major(), state->minor());
}

}  // namespace godwit::resource
