// Files and folders by path. The link of /proc/PID/fd/N is relative to the reader's root if the
// mount is below it, else to the root of the mount's own namespace: as the capsule's root is the
// root of its mount namespace (pivot_root), what we read is what the capsule sees. That does not
// hold for a mount of ours (a descriptor passed in from outside) or a detached one: such a mount is
// not in the capsule's mountinfo.
#include <fmt/format.h>
#include <linux/magic.h>
#include <sys/vfs.h>

#include <algorithm>
#include <string>

#include "kernel/huge_pages.h"
#include "resource/file_content.h"
#include "resource/file_description.h"
#include "resource/file_locks/file_locks.h"
#include "resource/file_name.h"
#include "resource/regular_file/regular_file.h"
#include "resource/regular_file/regular_file.pb.h"
#include "resource/regular_file/regular_file_internal.h"
#include "resource/shared_object/shared_object.h"

namespace godwit::resource {
namespace {

bool is_path_only(const OpenFile& file) { return (file.status_flags & O_PATH) != 0; }

// d_path() says so of a name that was removed; a file may also really be called that.
bool says_deleted(const OpenFile& file) { return file.link.ends_with(kDeletedMark); }

// A regular file with no name left anywhere: its content can be carried.
bool unnamed(const OpenFile& file) {
  return S_ISREG(file.stat.st_mode) && file.stat.st_nlink == 0 && !is_path_only(file);
}

// /proc/12/task/13/...: husks get their threads after their descriptors. (/proc/12/... can be
// opened again: a husk has the pid and the memory of its process.)
bool of_a_thread(const OpenFile& file) {
  struct statfs fs {};
  return file.link.starts_with("/proc/") && file.link.find("/task/") != std::string::npos &&
         ::fstatfs(file.fd, &fs) == 0 && fs.f_type == PROC_SUPER_MAGIC;
}

// What is always looked at, also in the freeze.
absl::Status check_state(const OpenFile& file, const kernel::FdInfo& info,
                         const CaptureContext& context, std::vector<Refusal>& refusals) {
  GW_RETURN_IF_ERROR(refuse_lease(file, info, refusals));
  GW_RETURN_IF_ERROR(refuse_shared_locks(file, info, context, refusals));
  if (kernel::huge_page_bytes_of(file.fd) != 0)
    refuse(file, "fd.hugetlbfs", "it is a file of huge pages (hugetlbfs), which are not carried",
           "use huge pages without a file: MAP_HUGETLB, MFD_HUGETLB or SHM_HUGETLB", refusals);
  if (of_a_thread(file)) {
    refuse(file, "fd.proc", "it is a file of a thread in /proc",
           "let the program open it when it reads it", refusals);
  }
  if (file.stat.st_nlink == 0 && !unnamed(file)) {
    refuse(file, "fd.deleted",
           "it has been removed, and only regular files are carried without a name", "close it",
           refusals);
  } else if (unnamed(file) && static_cast<uint64_t>(file.stat.st_size) > kMaxContentBytes) {
    refuse(file, "fd.deleted",
           fmt::format("it has been removed and is {} bytes long; up to {} are carried",
                       file.stat.st_size, kMaxContentBytes),
           "give it a name (link it), or close it", refusals);
  }
  return absl::OkStatus();
}

absl::Status set_unnamed(const OpenFile& file, const CaptureContext& context,
                         RegularFileState& state) {
  RegularFileState::Unnamed& u = *state.mutable_unnamed();
  u.set_inode(file.stat.st_ino);
  u.set_mode(file.stat.st_mode & 07777);
  u.set_uid(file.stat.st_uid);
  u.set_gid(file.stat.st_gid);
  std::vector<uint64_t> others;
  for (const OpenFile* f : context.with_inode(file.stat.st_dev, file.stat.st_ino)) {
    if (f->id != file.id && !is_path_only(*f)) others.push_back(f->id);
  }
  std::sort(others.begin(), others.end());
  u.mutable_others()->Add(others.begin(), others.end());
  u.set_has_content(others.empty() || file.id < others.front());
  if (!u.has_content()) return absl::OkStatus();
  // The program's own may be write-only, and its offset is not ours to move.
  GW_ASSIGN_OR_RETURN(const UniqueFd reader, reopen(file.fd, O_RDONLY));
  return read_extents(reader.get(), state.size(), u);
}

}  // namespace

const FileKind& regular_file_kind() {
  static const RegularFileKind kind;
  return kind;
}

bool RegularFileKind::recognise(const OpenFile& file) const {
  if (!file.link.starts_with('/')) return false;
  if (is_path_only(file)) return true;
  // memfds, and the shared memory of mappings, look like removed files of that name.
  const bool in_memory = file.stat.st_nlink == 0 && file.link.starts_with("/memfd:");
  return S_ISDIR(file.stat.st_mode) || (S_ISREG(file.stat.st_mode) && !in_memory);
}

absl::Status RegularFileKind::precheck(const OpenFile& file, const CaptureContext& context,
                                       std::vector<Refusal>& refusals) const {
  GW_ASSIGN_OR_RETURN(const kernel::FdInfo info, fdinfo_of(file));
  const size_t before = refusals.size();
  GW_RETURN_IF_ERROR(check_state(file, info, context, refusals));
  if (refusals.size() != before || unnamed(file)) return absl::OkStatus();
  GW_ASSIGN_OR_RETURN(const bool ours, mount_is_of_capsule(info, context));
  if (!ours) {
    refuse(file, "fd.outside", "it is on a mount that the service does not have",
           "name its folder with --bind and open it there", refusals);
    return absl::OkStatus();
  }
  GW_ASSIGN_OR_RETURN(const bool here, path_leads_here(file, context));
  if (!here) {
    refuse(file, says_deleted(file) ? "fd.deleted" : "fd.hidden",
           says_deleted(file) ? "its name has been removed while it has another one"
                              : "its path leads to another file (renamed over, or mounted over)",
           "close it, or open it again by a name that it has", refusals);
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> RegularFileKind::capture(const OpenFile& file,
                                                     const CaptureContext& context) const {
  GW_ASSIGN_OR_RETURN(const kernel::FdInfo info, fdinfo_of(file));
  if (context.final()) {
    std::vector<Refusal> refusals;
    GW_RETURN_IF_ERROR(check_state(file, info, context, refusals));
    if (says_deleted(file) && !unnamed(file)) {
      GW_ASSIGN_OR_RETURN(const bool here, path_leads_here(file, context));
      if (!here) {
        refuse(file, "fd.deleted", "its name has been removed", "close it", refusals);
      }
    }
    GW_RETURN_IF_ERROR(refused_now(refusals));
  }
  RegularFileState state;
  state.set_type(file.stat.st_mode & S_IFMT);
  state.set_flags(static_cast<uint32_t>(file.status_flags));
  state.set_pos(is_path_only(file) ? -1 : ::lseek(file.fd, 0, SEEK_CUR));
  if (S_ISREG(file.stat.st_mode)) state.set_size(static_cast<uint64_t>(file.stat.st_size));
  state.set_path(file.link);
  GW_ASSIGN_OR_RETURN(DescriptionLocks locks, description_locks(info));
  *state.mutable_open_file_locks() = std::move(locks.open_file);
  *state.mutable_flocks() = std::move(locks.flock);
  if (unnamed(file)) {
    GW_RETURN_IF_ERROR(set_unnamed(file, context, state));
    state.mutable_unnamed()->set_object(object_of_file(file.link, info.ino));
  }
  return state.SerializeAsString();
}

}  // namespace godwit::resource
