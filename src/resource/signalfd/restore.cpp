#include <fmt/format.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "resource/file_description.h"
#include "resource/signalfd/signalfd.pb.h"
#include "resource/signalfd/signalfd_internal.h"
#include "resource/state_codec.h"

namespace godwit::resource {
namespace {

// fd -1 makes one. The raw call: glibc's sigset_t is larger, and hides its two own signals.
absl::StatusOr<int> set_mask(int fd, uint64_t mask) {
  const long result = ::syscall(SYS_signalfd4, fd, &mask, sizeof mask, fd < 0 ? SFD_CLOEXEC : 0);
  if (result < 0) return errno_status(errno, fmt::format("signalfd4({}, {:#x})", fd, mask));
  return static_cast<int>(result);
}

}  // namespace

absl::StatusOr<UniqueFd> SignalfdKind::create(uint64_t, std::string_view bytes,
                                              RestoreContext&) const {
  GW_ASSIGN_OR_RETURN(const auto state, parse_state<SignalfdState>(bytes, name()));
  GW_ASSIGN_OR_RETURN(const int raw, set_mask(-1, state.mask()));
  UniqueFd fd(raw);
  GW_RETURN_IF_ERROR(set_status_flags(fd.get(), static_cast<int>(state.flags())));
  return fd;
}

absl::StatusOr<bool> SignalfdKind::update(int fd, std::string_view, std::string_view now,
                                          RestoreContext&) const {
  GW_ASSIGN_OR_RETURN(const auto state, parse_state<SignalfdState>(now, name()));
  GW_RETURN_IF_ERROR(set_mask(fd, state.mask()).status());
  GW_RETURN_IF_ERROR(set_status_flags(fd, static_cast<int>(state.flags())));
  return true;
}

absl::StatusOr<FileKind::Check> SignalfdKind::finish(int, std::string_view, ImagePid, int,
                                                     tracee::Batch&, RestoreContext&) const {
  return Check();
}

std::string SignalfdKind::describe(std::string_view bytes) const {
  const auto state = parse_state<SignalfdState>(bytes, name());
  if (!state.ok()) return "signalfd (unreadable)";
  return fmt::format("signalfd mask {:#x}", state->mask());
}

}  // namespace godwit::resource
