// Record locks (fcntl(2), F_SETLK), which belong to a process.
#include "kernel/proc/locks.h"

#include <sys/stat.h>

#include "base/status.h"
#include "kernel/proc/fdinfo.h"
#include "resource/fd_table/fd_table.h"
#include "resource/file_locks/file_locks.h"

namespace godwit::resource {

std::vector<Descriptors::Lockable> Descriptors::lockable() const {
  if (seen_lockable_) return *seen_lockable_;
  absl::flat_hash_map<uint64_t, size_t> by_id;
  for (size_t i = 0; i < descriptions_.size(); ++i) by_id.emplace(descriptions_[i].file.id, i);
  std::vector<Lockable> all;
  for (const FdHolder& holder : processes_)
    for (const auto& entry : table(holder.tgid).entries()) {
      const size_t index = by_id.at(entry.description());
      const mode_t mode = descriptions_[index].file.stat.st_mode;
      if (S_ISREG(mode) || S_ISDIR(mode))
        all.push_back({holder.tgid, holder.host_tgid, entry.fd(), index});
    }
  return all;
}

// Reading the machine's list of locks waits until every CPU has noticed: locks_start() in
// fs/locks.c takes a per-CPU semaphore for writing, 6 to 11 ms when nobody did just before. A few
// descriptors are asked one by one, in microseconds.
absl::Status Descriptors::read_locks() {
  constexpr size_t kFew = 256;
  std::vector<Lockable> all = lockable();
  if (all.size() > kFew) {
    GW_ASSIGN_OR_RETURN(const auto owners, kernel::record_lock_owners());
    std::erase_if(all, [&](const Lockable& one) { return !owners.contains(one.host_tgid); });
  }
  for (const Lockable& one : all) {
    const auto info = kernel::read_fdinfo(one.host_tgid, one.fd);
    if (!info.ok()) continue;  // closed meanwhile: in the freeze nothing closes
    GW_ASSIGN_OR_RETURN(const FileLocks locks, process_locks(*info));
    for (const FileLock& lock : locks) {
      auto* added = tables_[one.tgid].add_locks();
      added->set_fd(one.fd);
      *added->mutable_lock() = lock;
      descriptions_[one.description].file.process_locks = true;
    }
  }
  return absl::OkStatus();
}

}  // namespace godwit::resource
