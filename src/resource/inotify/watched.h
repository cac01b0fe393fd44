// What the kernel knows of the watches of an inotify instance that no call tells.
#ifndef GODWIT_RESOURCE_INOTIFY_WATCHED_H_
#define GODWIT_RESOURCE_INOTIFY_WATCHED_H_

#include <sys/types.h>

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kernel/kernel_memory.h"

namespace godwit::resource {

struct WatchedInode {
  kernel::KernelAddress inode;
  dev_t device = 0;                // of its file system, as mountinfo gives it
  std::vector<std::string> names;  // in its file system: "/etc/hosts"; of files several
};

struct InotifyView {
  std::map<int32_t, WatchedInode> watched;  // by watch descriptor
  int32_t next_number = 0;
};

absl::StatusOr<InotifyView> look_at_inotify(int fd, const kernel::KernelMemory& memory);

// The inode of an open file, of an O_PATH descriptor too. Of the file as it was opened: an
// overlay's own.
absl::StatusOr<kernel::KernelAddress> inode_of(int fd, const kernel::KernelMemory& memory);

}  // namespace godwit::resource

#endif  // GODWIT_RESOURCE_INOTIFY_WATCHED_H_
