// Whether a description's file can be opened again by the name that /proc shows of it.
#ifndef GODWIT_RESOURCE_FILE_NAME_H_
#define GODWIT_RESOURCE_FILE_NAME_H_

#include <sys/stat.h>

#include <algorithm>

#include "kernel/proc/mountinfo.h"
#include "resource/file_description.h"

namespace godwit::resource {

// Does the path lead to this very file, inside the capsule?
inline absl::StatusOr<bool> path_leads_here(const OpenFile& file, const CaptureContext& context) {
  bool same = false;
  GW_RETURN_IF_ERROR(context.in_capsule([&]() -> absl::Status {
    struct stat st {};
    same = ::lstat(file.link.c_str(), &st) == 0 && st.st_dev == file.stat.st_dev &&
           st.st_ino == file.stat.st_ino;
    return absl::OkStatus();
  }));
  return same;
}

inline absl::StatusOr<bool> mount_is_of_capsule(const kernel::FdInfo& info,
                                                const CaptureContext& context) {
  GW_ASSIGN_OR_RETURN(const auto mounts, kernel::read_mountinfo(context.init_pid()));
  return std::any_of(mounts.begin(), mounts.end(),
                     [&](const kernel::Mount& m) { return m.id == info.mnt_id; });
}

}  // namespace godwit::resource

#endif  // GODWIT_RESOURCE_FILE_NAME_H_
