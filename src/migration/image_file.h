// A checkpoint's file: under another name until all of it is on the disk.
#ifndef GODWIT_MIGRATION_IMAGE_FILE_H_
#define GODWIT_MIGRATION_IMAGE_FILE_H_

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/unique_fd.h"

namespace godwit::migration {

std::string partial_image(const std::string& path);
// Mode 0600; what was there is emptied.
absl::StatusOr<UniqueFd> create_image(const std::string& partial);
absl::Status sync_image(int fd, const std::string& partial);
// The name appears only when all of it is on the disk.
absl::Status publish_image(const std::string& partial, const std::string& path);

}  // namespace godwit::migration

#endif  // GODWIT_MIGRATION_IMAGE_FILE_H_
