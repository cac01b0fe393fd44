// Which of the host's file systems below "/" a capsule on the host's root must see besides.
#ifndef GODWIT_CAPSULE_HOST_MOUNTS_H_
#define GODWIT_CAPSULE_HOST_MOUNTS_H_

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace godwit::capsule {

struct HostMount {
  std::string path;
  // MS_* of the mount that a read-only remount has to repeat (mount_namespaces(7)).
  unsigned long locked_flags = 0;
};

// mountinfo(5) text to the mounts of local disk file systems other than "/", in mount order.
std::vector<HostMount> parse_local_disk_mounts(std::string_view mountinfo);
absl::StatusOr<std::vector<HostMount>> local_disk_mounts();

// By the type's name in mountinfo(5).
bool is_local_disk(std::string_view type);

// Fields of mountinfo escape space, tab, newline and backslash as \ooo.
std::string unescape_mount_field(std::string_view text);

}  // namespace godwit::capsule

#endif  // GODWIT_CAPSULE_HOST_MOUNTS_H_
