// What the processes of a replica lack, on its way from the mover that knows to the shim that
// serves.
#ifndef GODWIT_PAGES_MISSING_SPACE_H_
#define GODWIT_PAGES_MISSING_SPACE_H_

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "base/ids.h"
#include "base/unique_fd.h"
#include "pages/page_set.h"

namespace godwit::pages {

struct MissingSpace {
  uint64_t id = 0;
  HostPid pid;
  PageSet missing;
};
// kDataLoss: bytes that encode_missing() does not make.
std::string encode_missing(std::span<const MissingSpace> spaces);
absl::StatusOr<std::vector<MissingSpace>> decode_missing(std::string_view bytes);
// The same in a file of memory.
absl::StatusOr<UniqueFd> write_missing(std::span<const MissingSpace> spaces);
absl::StatusOr<std::vector<MissingSpace>> read_missing(int fd);

}  // namespace godwit::pages

#endif  // GODWIT_PAGES_MISSING_SPACE_H_
