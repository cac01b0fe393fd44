// Of a duplicate in our own table: which description of the tree it is.
#ifndef GODWIT_RESOURCE_SAME_DESCRIPTION_H_
#define GODWIT_RESOURCE_SAME_DESCRIPTION_H_

#include <sys/stat.h>
#include <unistd.h>

#include <span>

#include "base/status.h"
#include "kernel/syscalls.h"
#include "resource/file_description.h"

namespace godwit::resource {

// `with_inode`: those with the inode of `stat`, which is of `fd`. Its id; 0: none of them.
inline absl::StatusOr<uint64_t> same_description(int fd, const struct stat& stat,
                                                 std::span<const OpenFile* const> with_inode) {
  const HostPid self{::getpid()};
  for (const OpenFile* one : with_inode) {
    // A socket's inode belongs to one description.
    bool same = S_ISSOCK(stat.st_mode);
    if (!same && one->fd >= 0)
      GW_RETURN_IF_ERROR(kernel::kcmp_same_file(self, fd, self, one->fd, same));
    if (same) return one->id;
  }
  return 0;
}

}  // namespace godwit::resource

#endif  // GODWIT_RESOURCE_SAME_DESCRIPTION_H_
