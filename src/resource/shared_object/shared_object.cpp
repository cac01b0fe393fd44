#include "resource/shared_object/shared_object.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include <algorithm>

#include "base/status.h"
#include "kernel/syscalls.h"

namespace godwit::resource {

uint64_t object_of_file(std::string_view link, uint64_t inode) {
  const uint64_t hash = XXH3_64bits_withSeed(link.data(), link.size(), inode);
  return kFileObject | (hash & (kFileObject - 1));
}

absl::StatusOr<RemovedFile> make_removed_file(const std::string& path, uint32_t mode, uint32_t uid,
                                              uint32_t gid, int flags) {
  const std::string folder = path.substr(0, std::max<size_t>(1, path.rfind('/')));
  struct stat before {};
  const bool known = ::stat(folder.c_str(), &before) == 0;
  RemovedFile made;
  auto file = kernel::open(path, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
  if (file.ok()) {
    auto opened = kernel::open(path, flags);
    if (::unlink(path.c_str()) != 0)
      return errno_status(errno, fmt::format("unlink(\"{}\")", path));
    GW_ASSIGN_OR_RETURN(made.opened, std::move(opened));
    // The program changed the folder long ago.
    const timespec times[2] = {before.st_atim, before.st_mtim};
    if (known) ::utimensat(AT_FDCWD, folder.c_str(), times, 0);
  } else {
    for (const std::string& place : {folder, std::string("/tmp"), std::string("/")}) {
      file = kernel::open(place, O_RDWR | O_TMPFILE | O_CLOEXEC, 0600);
      if (file.ok()) break;
    }
  }
  GW_ASSIGN_OR_RETURN(made.file, std::move(file));
  if (::fchown(made.file.get(), uid, gid) != 0 || ::fchmod(made.file.get(), mode & 07777) != 0)
    return errno_status(errno, fmt::format("fchown({}, {}, {})", path, uid, gid));
  return made;
}

}  // namespace godwit::resource
