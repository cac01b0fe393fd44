// Hashes of files' contents, remembered for as long as a file is surely unchanged.
//
// Any change of content sets ctime, but kernels before 6.13 only to the last timer tick: what was
// changed just before it was hashed is hashed again the next time. A store into a shared mapping
// of a page that was dirty already sets nothing: whoever changes a program's files so while they
// are in use changes them under the program itself.
//
// XXH3-128 finds every difference that is not made on purpose, at the speed of memory. It is not
// meant against forgery: who can write below a service's layer is root on that node, and nodes
// trust each other.
#ifndef GODWIT_CAPSULE_CONTENT_HASH_H_
#define GODWIT_CAPSULE_CONTENT_HASH_H_

#include <sys/stat.h>

#include <compare>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>

#include "absl/status/statusor.h"

// XXH3_state_t of xxhash.h.
struct XXH3_state_s;

namespace godwit::capsule {

inline constexpr size_t kHashBytes = 16;

// A version of a file.
struct FileStamp {
  uint64_t device = 0;
  uint64_t inode = 0;
  uint64_t size = 0;
  int64_t mtime_ns = 0;
  int64_t ctime_ns = 0;
  auto operator<=>(const FileStamp&) const = default;
};
FileStamp stamp_of(const struct stat& info);

class Hasher {
 public:
  Hasher();
  void update(std::span<const std::byte> bytes);
  std::string value() const;  // kHashBytes

 private:
  struct Free {
    void operator()(XXH3_state_s* state) const;
  };
  std::unique_ptr<XXH3_state_s, Free> state_;
};

class ContentHashes {
 public:
  // `file`: what an earlier mover of this node has saved; missing, damaged or of another boot:
  // nothing is known.
  explicit ContentHashes(std::string file);

  // Large files take a while: of() ends with kCancelled when this says so.
  void stop_when(std::function<bool()> stop) { stop_ = std::move(stop); }

  // Of the first `stamp.size` bytes of `fd`, a readable descriptor of the file that has `stamp`.
  // `lasting`: the number of its device means the same for the next mover (not so that of an
  // overlay).
  absl::StatusOr<std::string> of(int fd, const FileStamp& stamp, bool lasting);
  // For the next mover, if there is anything new. Two at the same time: one of them wins.
  absl::Status save();

  uint64_t files_hashed() const { return files_hashed_; }

 private:
  std::string file_;
  std::string boot_id_;
  struct Known {
    std::string hash;
    bool lasting = false;
  };
  std::map<FileStamp, Known> known_;
  bool changed_ = false;
  uint64_t files_hashed_ = 0;
  std::function<bool()> stop_ = [] { return false; };
};

}  // namespace godwit::capsule

#endif  // GODWIT_CAPSULE_CONTENT_HASH_H_
