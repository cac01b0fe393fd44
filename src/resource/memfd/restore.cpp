// Seals only ever grow, and a writable mapping cannot be made after some of them: they are added in
// finish(), when memory has been mapped.
#include <fmt/format.h>
#include <sys/mman.h>

#include <string>

#include "resource/file_content.h"
#include "resource/file_description.h"
#include "resource/file_locks/file_locks.h"
#include "resource/memfd/memfd.pb.h"
#include "resource/memfd/memfd_internal.h"
#include "resource/state_codec.h"

namespace godwit::resource {
namespace {

// <linux/fcntl.h> of Linux 6.3.
constexpr uint32_t kSealExec = 0x0020;
static_assert(F_SEAL_FUTURE_WRITE == 0x0010 && F_SEAL_SEAL == 0x0001);

// O_LARGEFILE is set by memfd_create too; what open(2) would act on is left out.
int open_flags(const MemfdState& state) {
  return static_cast<int>(state.flags()) & ~(O_CREAT | O_EXCL | O_TRUNC | O_ASYNC | O_PATH);
}

absl::Status write_content(int fd, const MemfdState& state) {
  if (state.has_content()) {
    GW_ASSIGN_OR_RETURN(const UniqueFd writer, reopen(fd, O_RDWR));
    GW_RETURN_IF_ERROR(write_extents(writer.get(), state.size(), state));
  }
  GW_RETURN_IF_ERROR(set_status_flags(fd, static_cast<int>(state.flags())));
  if (::lseek(fd, state.pos(), SEEK_SET) != state.pos()) {
    return errno_status(errno, fmt::format("lseek(memfd, {})", state.pos()));
  }
  return absl::OkStatus();
}

absl::Status set_owner(int fd, const MemfdState& state) {
  if (::fchown(fd, state.uid(), state.gid()) != 0 || ::fchmod(fd, state.mode() & 07777) != 0) {
    return errno_status(errno, fmt::format("fchown(memfd, {}, {})", state.uid(), state.gid()));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<UniqueFd> MemfdKind::create(uint64_t, std::string_view bytes,
                                           RestoreContext& context) const {
  GW_ASSIGN_OR_RETURN(const auto state, parse_state<MemfdState>(bytes, name()));
  UniqueFd fd;
  for (const uint64_t id : state.others()) {
    const int other = context.description(id);
    if (other < 0) continue;
    GW_ASSIGN_OR_RETURN(fd, reopen(other, open_flags(state)));
    break;
  }
  if (!fd) {
    // Without MFD_ALLOW_SEALING it would have F_SEAL_SEAL, and no other could be added.
    GW_ASSIGN_OR_RETURN(fd, kernel::memfd_create(state.name(), MFD_ALLOW_SEALING));
    GW_RETURN_IF_ERROR(set_owner(fd.get(), state));
    if ((static_cast<int>(state.flags()) & O_ACCMODE) != O_RDWR) {
      GW_ASSIGN_OR_RETURN(fd, reopen(fd.get(), open_flags(state)));
    }
  }
  GW_RETURN_IF_ERROR(write_content(fd.get(), state));
  return fd;
}

absl::StatusOr<bool> MemfdKind::update(int fd, std::string_view before_bytes,
                                       std::string_view now_bytes, RestoreContext&) const {
  GW_ASSIGN_OR_RETURN(const auto before, parse_state<MemfdState>(before_bytes, name()));
  GW_ASSIGN_OR_RETURN(const auto now, parse_state<MemfdState>(now_bytes, name()));
  constexpr uint32_t kSettable = kSettableFlags;
  if (before.object() != now.object() || before.name() != now.name() ||
      ((before.flags() ^ now.flags()) & ~kSettable) != 0) {
    return false;
  }
  GW_RETURN_IF_ERROR(set_owner(fd, now));
  GW_RETURN_IF_ERROR(write_content(fd, now));
  return true;
}

absl::StatusOr<FileKind::Check> MemfdKind::finish(int fd, std::string_view bytes, ImagePid,
                                                  int remote_fd, tracee::Batch& batch,
                                                  RestoreContext&) const {
  GW_ASSIGN_OR_RETURN(const auto state, parse_state<MemfdState>(bytes, name()));
  add_flock_calls(remote_fd, state.flocks(), batch);
  GW_RETURN_IF_ERROR(take_open_file_locks(fd, state.open_file_locks()));
  GW_ASSIGN_OR_RETURN(const int now, kernel::fcntl_int(fd, F_GET_SEALS));
  // F_SEAL_WRITE and F_SEAL_EXEC with a writable mode bring each other; ask for all that is
  // missing.
  const uint32_t missing = state.seals() & ~static_cast<uint32_t>(now);
  if (missing == 0) return Check();
  // Sealing needs a writable description.
  GW_ASSIGN_OR_RETURN(const UniqueFd writer, reopen(fd, O_RDWR));
  GW_RETURN_IF_ERROR(
      kernel::fcntl_int(writer.get(), F_ADD_SEALS, static_cast<int>(missing)).status());
  GW_ASSIGN_OR_RETURN(const int after, kernel::fcntl_int(fd, F_GET_SEALS));
  if (static_cast<uint32_t>(after) != state.seals()) {
    return make_error(absl::StatusCode::kInternal, "memfd \"{}\": seals {:#x}, wanted {:#x}{}",
                      state.name(), after, state.seals(),
                      (state.seals() & kSealExec) != 0 ? " (F_SEAL_EXEC: Linux 6.3)" : "");
  }
  return Check();
}

uint64_t MemfdKind::shared_object(std::string_view bytes) const {
  const auto state = parse_state<MemfdState>(bytes, name());
  return state.ok() ? state->object() : 0;
}

std::string MemfdKind::describe(std::string_view bytes) const {
  const auto state = parse_state<MemfdState>(bytes, name());
  if (!state.ok()) return "memfd (unreadable)";
  return fmt::format("memfd {} of {}, seals {:#x}", state->name(), state->size(), state->seals());
}

}  // namespace godwit::resource
