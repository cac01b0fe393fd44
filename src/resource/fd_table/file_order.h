// Tells apart open file descriptions that share one inode: every open of /dev/null, all eventfds.
//
// Facts: kcmp(2) KCMP_FILE gives "less, equal, greater" of the kernel's own (obfuscated) pointers,
// an order that stays as long as the files do; one call costs 1.1 us here. So n of them are told
// apart by n log n calls, and by 2 n or fewer when the order of an earlier reading is known: each
// is looked for where it was before. A wrong hint costs calls, never the result.
#ifndef GODWIT_RESOURCE_FD_TABLE_FILE_ORDER_H_
#define GODWIT_RESOURCE_FD_TABLE_FILE_ORDER_H_

#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "base/ids.h"

namespace godwit::resource {

// Where each descriptor's file stood among those of its inode.
using FileRanks = absl::flat_hash_map<std::pair<ImagePid, int>, uint32_t>;

// The files of one inode that are known so far, in the kernel's order.
class FileOrder {
 public:
  struct File {
    int fd = -1;       // a duplicate of ours, open for as long as this object is used
    size_t index = 0;  // the caller's
  };

  // The same description as `fd`'s; none: `fd` is new and is added with `index`. `rank`: where it
  // stood at an earlier reading.
  absl::StatusOr<std::optional<size_t>> find_or_add(int fd, size_t index,
                                                    std::optional<uint32_t> rank);
  // Ascending.
  const std::vector<File>& files() const { return files_; }

 private:
  std::vector<File> files_;
  std::vector<uint32_t> ranks_;  // of files_; never descending
};

}  // namespace godwit::resource

#endif  // GODWIT_RESOURCE_FD_TABLE_FILE_ORDER_H_
