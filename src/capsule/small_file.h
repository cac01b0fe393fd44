// Small files that are there whole or not at all.
#ifndef GODWIT_CAPSULE_SMALL_FILE_H_
#define GODWIT_CAPSULE_SMALL_FILE_H_

#include <string>
#include <string_view>

#include "absl/status/status.h"

namespace godwit::capsule {

// Writes beside `path` and renames over it.
absl::Status write_small_file(const std::string& path, std::string_view bytes);

}  // namespace godwit::capsule

#endif  // GODWIT_CAPSULE_SMALL_FILE_H_
