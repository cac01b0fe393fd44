#include <fmt/format.h>
#include <sys/eventfd.h>

#include "resource/eventfd/eventfd.pb.h"
#include "resource/eventfd/eventfd_internal.h"
#include "resource/file_description.h"
#include "resource/state_codec.h"

namespace godwit::resource {
namespace {

// More reads of 1 than this: a new eventfd is cheaper.
constexpr uint64_t kMaxReads = 64;

absl::Status add(int fd, uint64_t value) {
  if (value == 0) return absl::OkStatus();
  // Never blocks: the sum is a count that an eventfd had.
  if (::eventfd_write(fd, value) != 0) {
    return errno_status(errno, fmt::format("eventfd_write({}, {})", fd, value));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<UniqueFd> EventfdKind::create(uint64_t, std::string_view bytes,
                                             RestoreContext&) const {
  GW_ASSIGN_OR_RETURN(const auto state, parse_state<EventfdState>(bytes, name()));
  if (state.count() == UINT64_MAX) {
    return make_error(absl::StatusCode::kDataLoss, "eventfd: no count can be {}", state.count());
  }
  UniqueFd fd(::eventfd(0, EFD_CLOEXEC | (state.semaphore() ? EFD_SEMAPHORE : 0)));
  if (!fd) return errno_status(errno, "eventfd()");
  GW_RETURN_IF_ERROR(add(fd.get(), state.count()));
  GW_RETURN_IF_ERROR(set_status_flags(fd.get(), static_cast<int>(state.flags())));
  return fd;
}

absl::StatusOr<bool> EventfdKind::update(int fd, std::string_view before_bytes,
                                         std::string_view now_bytes, RestoreContext&) const {
  GW_ASSIGN_OR_RETURN(const auto before, parse_state<EventfdState>(before_bytes, name()));
  GW_ASSIGN_OR_RETURN(const auto now, parse_state<EventfdState>(now_bytes, name()));
  if (before.semaphore() != now.semaphore() || now.count() == UINT64_MAX) return false;
  uint64_t count = before.count();
  if (now.count() < count) {
    // A read takes all, or 1 of a semaphore; the count is above 0, so it does not block.
    const uint64_t reads = now.semaphore() ? count - now.count() : 1;
    if (reads > kMaxReads) return false;
    for (uint64_t i = 0; i < reads; ++i) {
      eventfd_t taken = 0;
      if (::eventfd_read(fd, &taken) != 0) {
        return errno_status(errno, fmt::format("eventfd_read({})", fd));
      }
      count -= taken;
    }
  }
  if (count > now.count()) return false;
  GW_RETURN_IF_ERROR(add(fd, now.count() - count));
  GW_RETURN_IF_ERROR(set_status_flags(fd, static_cast<int>(now.flags())));
  return true;
}

absl::StatusOr<FileKind::Check> EventfdKind::finish(int, std::string_view, ImagePid, int,
                                                    tracee::Batch&, RestoreContext&) const {
  return Check();
}

std::string EventfdKind::describe(std::string_view bytes) const {
  const auto state = parse_state<EventfdState>(bytes, name());
  if (!state.ok()) return "eventfd (unreadable)";
  return fmt::format("eventfd{} count {}", state->semaphore() ? " semaphore" : "", state->count());
}

}  // namespace godwit::resource
