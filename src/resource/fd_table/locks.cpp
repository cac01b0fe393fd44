// Record locks (fcntl(2), F_SETLK), which belong to a process.
#include "kernel/proc/locks.h"

#include <sys/stat.h>

#include "base/status.h"
#include "kernel/proc/fdinfo.h"
#include "resource/fd_table/fd_table.h"
#include "resource/file_locks/file_locks.h"

namespace godwit::resource {

// One look at the machine's list tells who has any; seldom anybody has.
absl::Status Descriptors::read_locks() {
  GW_ASSIGN_OR_RETURN(const auto owners, kernel::record_lock_owners());
  absl::flat_hash_map<uint64_t, size_t> by_id;
  for (const FdHolder& holder : processes_) {
    if (!owners.contains(holder.host_tgid)) continue;
    if (by_id.empty())
      for (size_t i = 0; i < descriptions_.size(); ++i) by_id.emplace(descriptions_[i].file.id, i);
    FdTableState& table = tables_[holder.tgid];
    for (const auto& entry : table.entries()) {
      OpenFile& file = descriptions_[by_id.at(entry.description())].file;
      if (!S_ISREG(file.stat.st_mode) && !S_ISDIR(file.stat.st_mode)) continue;
      const auto info = kernel::read_fdinfo(holder.host_tgid, entry.fd());
      if (!info.ok()) continue;  // closed meanwhile: in the freeze nothing closes
      GW_ASSIGN_OR_RETURN(const FileLocks locks, process_locks(*info));
      for (const FileLock& lock : locks) {
        auto* added = table.add_locks();
        added->set_fd(entry.fd());
        *added->mutable_lock() = lock;
        file.process_locks = true;
      }
    }
  }
  return absl::OkStatus();
}

}  // namespace godwit::resource
