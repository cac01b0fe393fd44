// memfd_create(2). Its link is "/memfd:NAME (deleted)"; fcntl(F_GET_SEALS) tells it from a removed
// file that was called so.
#include <fmt/format.h>

#include <algorithm>
#include <string>

#include "kernel/huge_pages.h"
#include "resource/file_content.h"
#include "resource/file_description.h"
#include "resource/file_locks/file_locks.h"
#include "resource/memfd/memfd.h"
#include "resource/memfd/memfd.pb.h"
#include "resource/memfd/memfd_internal.h"
#include "resource/shared_object/shared_object.h"

namespace godwit::resource {
namespace {

constexpr std::string_view kPrefix = "/memfd:";
constexpr std::string_view kDeleted = " (deleted)";

absl::Status check_state(const OpenFile& file, const kernel::FdInfo& info,
                         std::vector<Refusal>& refusals) {
  GW_RETURN_IF_ERROR(refuse_lease(file, info, refusals));
  // st_blocks counts what is there; holes cost nothing.
  const uint64_t bytes = static_cast<uint64_t>(file.stat.st_blocks) * 512;
  if (bytes > kMaxContentBytes) {
    refuse(file, "memfd.size",
           fmt::format("it has {} bytes of content; up to {} are carried", bytes, kMaxContentBytes),
           "use a smaller one", refusals);
  }
  return absl::OkStatus();
}

// The pages that are there: lseek(2) does not know the holes of such a file.
absl::Status read_huge_pages(int fd, MemfdState& state) {
  const uint64_t page = state.huge_page_bytes();
  GW_ASSIGN_OR_RETURN(const std::vector<bool> there,
                      kernel::huge_pages_there(fd, state.size(), page));
  for (size_t i = 0; i < there.size(); ++i) {
    if (!there[i]) continue;
    auto& extent = *state.add_extents();
    extent.set_offset(i * page);
    extent.mutable_data()->resize(page);
    for (uint64_t done = 0; done < page;) {
      const ssize_t n = ::pread(fd, extent.mutable_data()->data() + done, page - done,
                                static_cast<off_t>(i * page + done));
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) return errno_status(errno, fmt::format("pread({}, a huge page)", fd));
      if (n == 0) break;  // cut short by a running program
      done += static_cast<uint64_t>(n);
    }
  }
  return absl::OkStatus();
}

}  // namespace

const FileKind& memfd_kind() {
  static const MemfdKind kind;
  return kind;
}

bool MemfdKind::recognise(const OpenFile& file) const {
  return S_ISREG(file.stat.st_mode) && file.stat.st_nlink == 0 && file.link.starts_with(kPrefix) &&
         file.link.ends_with(kDeleted) && (file.status_flags & O_PATH) == 0 &&
         ::fcntl(file.fd, F_GET_SEALS) >= 0;
}

// Nobody outside of the tree has it open: its locks are nobody else's.
absl::Status MemfdKind::precheck(const OpenFile& file, const CaptureContext&,
                                 std::vector<Refusal>& refusals) const {
  GW_ASSIGN_OR_RETURN(const kernel::FdInfo info, fdinfo_of(file));
  return check_state(file, info, refusals);
}

absl::StatusOr<std::string> MemfdKind::capture(const OpenFile& file,
                                               const CaptureContext& context) const {
  GW_ASSIGN_OR_RETURN(const kernel::FdInfo info, fdinfo_of(file));
  std::vector<Refusal> refusals;
  GW_RETURN_IF_ERROR(check_state(file, info, refusals));
  GW_RETURN_IF_ERROR(refused_now(refusals));
  GW_ASSIGN_OR_RETURN(const int seals, kernel::fcntl_int(file.fd, F_GET_SEALS));
  MemfdState state;
  state.set_name(
      file.link.substr(kPrefix.size(), file.link.size() - kPrefix.size() - kDeleted.size()));
  state.set_flags(static_cast<uint32_t>(file.status_flags));
  state.set_pos(::lseek(file.fd, 0, SEEK_CUR));
  state.set_size(static_cast<uint64_t>(file.stat.st_size));
  state.set_seals(static_cast<uint32_t>(seals));
  state.set_mode(file.stat.st_mode & 07777);
  state.set_uid(file.stat.st_uid);
  state.set_gid(file.stat.st_gid);
  state.set_huge_page_bytes(kernel::huge_page_bytes_of(file.fd));
  state.set_object(object_of_memory(file.stat.st_ino, state.huge_page_bytes()));
  GW_ASSIGN_OR_RETURN(DescriptionLocks locks, description_locks(info));
  *state.mutable_open_file_locks() = std::move(locks.open_file);
  *state.mutable_flocks() = std::move(locks.flock);
  std::vector<uint64_t> others;
  for (const OpenFile* f : context.with_inode(file.stat.st_dev, file.stat.st_ino)) {
    if (f->id != file.id && (f->status_flags & O_PATH) == 0) others.push_back(f->id);
  }
  std::sort(others.begin(), others.end());
  state.mutable_others()->Add(others.begin(), others.end());
  state.set_has_content(others.empty() || file.id < others.front());
  if (state.has_content()) {
    GW_ASSIGN_OR_RETURN(const UniqueFd reader, reopen(file.fd, O_RDONLY));
    GW_RETURN_IF_ERROR(state.huge_page_bytes() != 0
                           ? read_huge_pages(reader.get(), state)
                           : read_extents(reader.get(), state.size(), state));
  }
  return state.SerializeAsString();
}

}  // namespace godwit::resource
