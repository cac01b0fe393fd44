// The destination's half of the comparison of files below the writable layer: nothing of a replica
// may be mapped or opened while a file that it uses is missing here, or is another one.
#ifndef GODWIT_CAPSULE_FILE_CHECK_H_
#define GODWIT_CAPSULE_FILE_CHECK_H_

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "capsule/capsule_files.h"
#include "capsule/file_offers.h"
#include "capsule/used_file.pb.h"

namespace godwit::capsule {

// A file that is not as the source has it.
struct FileDifference {
  uint64_t id = 0;
  std::string path;
  std::string what;        // "is missing here", "is another one here: 120 bytes, not 200"
  bool own_mount = false;  // it lies where the layer cannot have a copy
};

class FileCheck {
 public:
  explicit FileCheck(CapsuleFiles files) : files_(std::move(files)) {}

  // A section "file", new or changed. Bytes from a peer: checked.
  absl::Status offered(uint64_t id, std::string_view state);
  void withdrawn(uint64_t id) { offers_.erase(id); }

  // Compares what has not been compared yet.
  absl::StatusOr<std::vector<FileDifference>> differences();
  // How the source is to send what differs.
  WantedFile want(const FileDifference& difference);

  CapsuleFiles& files() { return files_; }

 private:
  struct Offer {
    UsedFile state;
    bool equal = false;
    // An earlier content of it is mapped by a replica's process.
    bool in_use = false;
    UniqueFd fd;  // keeps the name at this inode in the overlay's cache
  };
  absl::StatusOr<std::string> compare(Offer& offer, bool& own_mount);

  CapsuleFiles files_;
  std::map<uint64_t, Offer> offers_;
  bool pending_ = false;       // some have not been compared, or differ
  std::set<std::string> own_;  // paths that were asked for: the layer's copies
};

}  // namespace godwit::capsule

#endif  // GODWIT_CAPSULE_FILE_CHECK_H_
