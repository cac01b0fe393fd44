// Seals only ever grow, and a writable mapping cannot be made after some of them: they are added in
// finish(), when memory has been mapped.
#include <fmt/format.h>
#include <sys/mman.h>

#include <cstring>
#include <string>

#include "absl/cleanup/cleanup.h"
#include "kernel/huge_pages.h"
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

// Such a file cannot be written to, only mapped. It is not cut to nothing first, which would give
// up what mappings have reserved.
absl::Status write_huge_pages(int fd, const MemfdState& state) {
  const uint64_t page = state.huge_page_bytes();
  struct stat stat {};
  if (::fstat(fd, &stat) != 0) return errno_status(errno, "fstat(memfd)");
  if (static_cast<uint64_t>(stat.st_size) != state.size() &&
      ::ftruncate(fd, static_cast<off_t>(state.size())) != 0)
    return errno_status(errno, fmt::format("ftruncate(memfd of huge pages, {})", state.size()));
  if (state.size() == 0) return absl::OkStatus();
  void* memory =
      ::mmap(nullptr, state.size(), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
  if (memory == MAP_FAILED)
    return errno_status(errno, fmt::format("mmap(memfd of huge pages, {} bytes)", state.size()));
  const auto unmapped = absl::MakeCleanup([&] { ::munmap(memory, state.size()); });
  auto* bytes = static_cast<std::byte*>(memory);
  const auto punch = [&](uint64_t start, uint64_t end) -> absl::Status {
    if (start < end && ::madvise(bytes + start, end - start, MADV_REMOVE) != 0)
      return errno_status(errno, "madvise(memfd of huge pages, MADV_REMOVE)");
    return absl::OkStatus();
  };
  uint64_t at = 0;
  for (const auto& extent : state.extents()) {
    if (extent.offset() % page != 0 || extent.data().size() != page || extent.offset() < at ||
        extent.offset() > state.size() || page > state.size() - extent.offset())
      return make_error(absl::StatusCode::kDataLoss,
                        "{} bytes at {} in a memfd of {} in huge pages of {}", extent.data().size(),
                        extent.offset(), state.size(), page);
    GW_RETURN_IF_ERROR(punch(at, extent.offset()));
    GW_RETURN_IF_ERROR(kernel::populate_huge_pages(bytes + extent.offset(), page, page));
    std::memcpy(bytes + extent.offset(), extent.data().data(), page);
    at = extent.offset() + page;
  }
  return punch(at, state.size());
}

absl::Status write_content(int fd, const MemfdState& state) {
  if (state.has_content()) {
    GW_ASSIGN_OR_RETURN(const UniqueFd writer, reopen(fd, O_RDWR));
    GW_RETURN_IF_ERROR(state.huge_page_bytes() != 0
                           ? write_huge_pages(writer.get(), state)
                           : write_extents(writer.get(), state.size(), state));
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
    unsigned flags = MFD_ALLOW_SEALING;
    if (state.huge_page_bytes() != 0) {
      if (!kernel::has_huge_pages_of(state.huge_page_bytes()))
        return make_error(absl::StatusCode::kFailedPrecondition,
                          "a memfd has huge pages of {} KiB, which this machine has not",
                          state.huge_page_bytes() >> 10);
      flags |= MFD_HUGETLB | kernel::huge_size_flag(state.huge_page_bytes());
    }
    GW_ASSIGN_OR_RETURN(fd, kernel::memfd_create(state.name(), flags));
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
  if (before.object() != now.object() || before.huge_page_bytes() != now.huge_page_bytes() ||
      before.name() != now.name() || ((before.flags() ^ now.flags()) & ~kSettable) != 0) {
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
