// Memory that several mappings, processes and descriptors look at, and that has no name in the file
// system by which a husk could open it. Its pages travel in a space of their own.
#ifndef GODWIT_RESOURCE_SHARED_OBJECT_SHARED_OBJECT_H_
#define GODWIT_RESOURCE_SHARED_OBJECT_SHARED_OBJECT_H_

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "base/unique_fd.h"
#include "resource/shared_object/shared_object.pb.h"

namespace godwit::resource {

// SharedObjectState.id. Shmem files that only the kernel knows (shared anonymous memory, memfds):
// the inode number. Of others the same number may stand for another thing: System V segments, and
// files whose name was removed; and that of memory of huge pages is counted apart.
inline constexpr uint64_t kSysvObject = uint64_t{1} << 61;
inline constexpr uint64_t kFileObject = uint64_t{1} << 60;
inline constexpr uint64_t kHugeObject = uint64_t{1} << 59;

inline uint64_t object_of_segment(uint64_t shmid) { return kSysvObject | shmid; }
inline uint64_t object_of_memory(uint64_t inode, uint64_t huge_page_bytes) {
  return huge_page_bytes != 0 ? kHugeObject | inode : inode;
}
inline bool is_segment(uint64_t object) { return (object & kSysvObject) != 0; }
inline int segment_of_object(uint64_t object) { return static_cast<int>(object & ~kSysvObject); }

// Of a file as maps and the links of descriptors show it, " (deleted)" included, with the inode
// number of maps and fdinfo (on overlayfs stat(2) may have another one).
uint64_t object_of_file(std::string_view link, uint64_t inode);

inline constexpr std::string_view kDeletedMark = " (deleted)";
inline std::string_view without_mark(std::string_view link) {
  return link.ends_with(kDeletedMark) ? link.substr(0, link.size() - kDeletedMark.size()) : link;
}

// A regular file without a name. It had this one: links and maps show it again where it is free,
// else what the file system calls such a file. On the file system of its folder if that is there.
struct RemovedFile {
  UniqueFd file;    // for reading and writing
  UniqueFd opened;  // with the flags that were asked for, as its name was there; else none
};
// The caller's thread is in the capsule, whose /proc does not have the caller.
absl::StatusOr<RemovedFile> make_removed_file(const std::string& path, uint32_t mode, uint32_t uid,
                                              uint32_t gid, int flags);

}  // namespace godwit::resource

#endif  // GODWIT_RESOURCE_SHARED_OBJECT_SHARED_OBJECT_H_
