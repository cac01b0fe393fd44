#ifndef GODWIT_CLI_LAB_FILE_H_
#define GODWIT_CLI_LAB_FILE_H_

#include <string>

#include "absl/status/status.h"

namespace godwit::cli {

// A small file of the lab's, for root alone; one that is there is replaced.
absl::Status write_lab_file(const std::string& path, const std::string& text);

}  // namespace godwit::cli

#endif  // GODWIT_CLI_LAB_FILE_H_
