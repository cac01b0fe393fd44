// The source's half of the comparison of files below the writable layer: which a service has open
// or mapped, as sections for the replica, and their content where the replica lacks it.
//
//   update()   sections of files that are new or have changed; gives their ids
//   carry()    what the destination asked for, as changes of the file layer
//
// Contents are hashed in the rounds; in the freeze only what was not there before it. One thread.
#ifndef GODWIT_CAPSULE_FILE_OFFERS_H_
#define GODWIT_CAPSULE_FILE_OFFERS_H_

#include <cstdint>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "capsule/capsule_files.h"
#include "capsule/used_file.pb.h"

namespace godwit::capsule {

// A file that a process has open or mapped.
struct FileUse {
  std::string path;
  bool mapped = false;
  std::string object;  // stat(2) of this gives the file itself; empty: these say it
  uint64_t device = 0;
  uint64_t inode = 0;
};

struct FileSink {
  std::function<absl::Status(uint64_t id, std::string_view state)> section;
  std::function<absl::Status(uint64_t id)> removed;
  // As LayerSource::Emit.
  std::function<absl::Status(std::string_view, std::span<const std::byte>)> blocks;
};

// `in_place`: the destination has a copy of its own, whose inode is in use.
struct WantedFile {
  uint64_t id = 0;
  bool in_place = false;
};

class FileOffers {
 public:
  explicit FileOffers(CapsuleFiles files) : files_(std::move(files)) {}

  // Brings the replica's list to `uses`: one for each path. `frozen`: the last time.
  absl::StatusOr<std::vector<uint64_t>> update(std::span<const FileUse> uses, bool frozen,
                                               const FileSink& sink);
  absl::Status carry(std::span<const WantedFile> wanted, const FileSink& sink);
  // Hashes what is in use now, so that the freeze of a move without rounds need not.
  absl::Status warm(std::span<const FileUse> uses);

  CapsuleFiles& files() { return files_; }
  uint64_t carried() const { return carried_; }

 private:
  struct Known {
    uint64_t id = 0;  // 0: nothing to compare
    FoundFile file;
    UsedFile state;
    uint64_t seen = 0;
  };
  absl::StatusOr<bool> look(const FileUse& use, bool frozen, Known& known);
  absl::Status send_content(const Known& known, bool in_place, std::string& hash, uint64_t& size,
                            const FileSink& sink);

  CapsuleFiles files_;
  std::map<std::string, Known> known_;
  uint64_t next_id_ = 1;
  uint64_t pass_ = 0;
  uint64_t carried_ = 0;
};

}  // namespace godwit::capsule

#endif  // GODWIT_CAPSULE_FILE_OFFERS_H_
