// Files of a capsule by the paths that its programs know them by, and where each of them lies.
//
//   below    the node's root or --rootfs, seen through the overlay, or another of the node's disks
//            that is bound read-only: the destination has its own, which must be the same
//   layer    the writable layer and /dev/shm: travels
//   shared   under --bind: the same storage at both ends
//   other    /proc, /sys, /dev, what the program mounted itself: not files that could be compared
#ifndef GODWIT_CAPSULE_CAPSULE_FILES_H_
#define GODWIT_CAPSULE_CAPSULE_FILES_H_

#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/ids.h"
#include "base/unique_fd.h"
#include "capsule/capsule.pb.h"
#include "capsule/content_hash.h"
#include "capsule/file_layer.pb.h"
#include "capsule/paths.h"

namespace godwit::capsule {

enum class FilePlace { kInvalid, kBelow, kLayer, kShared, kOther };

struct FoundFile {
  UniqueFd fd;  // O_PATH
  struct stat info {};
  FilePlace place = FilePlace::kInvalid;
  bool on_root = false;  // not on a mount of its own
};

class CapsuleFiles {
 public:
  // `hashes`: ContentHashes' file.
  static absl::StatusOr<CapsuleFiles> open(const CapsuleSpec& spec, const ServicePaths& paths,
                                           HostPid init, std::string hashes);
  // With another folder as root than init's, for a capsule that is not there yet, say. `init`: in
  // whose mount namespace it is.
  static absl::StatusOr<CapsuleFiles> open_at(const std::string& root, const CapsuleSpec& spec,
                                              const ServicePaths& paths, HostPid init,
                                              std::string hashes);

  // kNotFound when there is nothing, or a symbolic link on the way: programs' paths, as the kernel
  // tells them, have none.
  absl::StatusOr<FoundFile> find(const std::string& path);
  absl::StatusOr<std::string> hash(const std::string& path, const FoundFile& file);
  // A descriptor to read it by.
  absl::StatusOr<UniqueFd> open_to_read(const FoundFile& file) const;
  // What LayerTarget needs to make it anew.
  absl::StatusOr<LayerNode> node_of(const FoundFile& file) const;
  // Of the folders that lead to `path`, outermost first, "/" left out.
  absl::StatusOr<std::vector<std::pair<std::string, LayerNode>>> folders_to(
      const std::string& path);

  ContentHashes& hashes() { return hashes_; }

 private:
  struct MountKind {
    FilePlace place = FilePlace::kOther;
    bool root = false;
  };
  CapsuleFiles(const CapsuleSpec& spec, ServicePaths paths, HostPid init, std::string hashes)
      : spec_(spec), paths_(std::move(paths)), init_(init), hashes_(std::move(hashes)) {}
  absl::StatusOr<MountKind> kind_of_mount(uint64_t id);

  CapsuleSpec spec_;
  ServicePaths paths_;
  HostPid init_;
  UniqueFd root_;  // of the capsule
  uint64_t root_mount_ = 0;
  UniqueFd below_;  // what the overlay has as its lower layer
  std::map<uint64_t, MountKind> mounts_;
  ContentHashes hashes_;
};

// Absolute, and nothing but names: as the kernel's d_path() gives it.
bool is_plain_path(std::string_view path);

}  // namespace godwit::capsule

#endif  // GODWIT_CAPSULE_CAPSULE_FILES_H_
