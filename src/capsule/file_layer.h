// The writable layer's transfer: LayerSource tells what changed since it was asked last, in an
// order in which LayerTarget can apply it. The first time that is everything.
//
//   folders; links of what was renamed; removals; files with content; metadata, deepest first
//
// While the service runs the target is a bare layer that is mounted nowhere; once the replica's
// overlay is mounted it is the merged view (changing an upper folder below a mounted overlay is
// undefined, Documentation/filesystems/overlayfs.rst). Then a whiteout is a removal, and a changed
// file keeps its inode, so that descriptors that are open on it already stay right.
//
// Not carried: ctime, and st_dev and st_ino as programs see them; inode flags (chattr); content
// of files that have no name any more.
#ifndef GODWIT_CAPSULE_FILE_LAYER_H_
#define GODWIT_CAPSULE_FILE_LAYER_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/ids.h"
#include "base/unique_fd.h"
#include "capsule/cgroup.h"
#include "capsule/file_layer.pb.h"
#include "capsule/layer_listing.h"
#include "capsule/paths.h"

namespace godwit::capsule {

struct LayerStatistics {
  uint64_t entries = 0;  // in the layer
  uint64_t changes = 0;  // sent
  uint64_t bytes = 0;    // of content
};

class LayerSource {
 public:
  // Takes the bytes of a LayerChange and, with `write`, its data (valid during the call only).
  using Emit = std::function<absl::Status(std::string_view, std::span<const std::byte>)>;

  // `work` names the processes that may have files of the layer mapped; without it every file is
  // taken as mapped, which costs a write-back each.
  explicit LayerSource(ServicePaths paths, std::optional<Cgroup> work = std::nullopt)
      : paths_(std::move(paths)), work_(std::move(work)) {}

  // What changed since the last call. `frozen` says that nobody writes any more: only then is the
  // result exact; before, a file that changes while it is read is sent again the next time.
  absl::StatusOr<LayerStatistics> send_changes(bool frozen, const Emit& emit);
  // Lists the layer for the next send_changes(), which must be a frozen one: from any thread, with
  // nobody writing any more.
  absl::Status look();

 private:
  struct Tree;
  absl::Status send_tree(LayerTree tree, const std::string& root, const LayerTreeListing& before,
                         LayerTreeListing& now, int64_t listed_ns, bool frozen, const Emit& emit);
  absl::Status send_content(Tree& tree, const std::string& path, LayerEntry& entry, bool fresh);
  absl::Status send_blocks(Tree& tree, const std::string& path, int fd, uint64_t size,
                           std::vector<uint64_t>& hashes);

  ServicePaths paths_;
  std::optional<Cgroup> work_;
  bool write_back_ = true;  // in this call
  LayerListing last_;
  std::optional<LayerListing> looked_;
  // XXH3 of every block of a file as it was sent, by tree and inode: only changed ones are sent
  // again. 8 bytes per 64 KiB.
  std::map<std::pair<LayerTree, uint64_t>, std::vector<uint64_t>> hashes_;
  LayerStatistics statistics_;
};

class LayerTarget {
 public:
  // A layer that is not mounted: whiteouts and opaque folders are written as overlayfs keeps them.
  static absl::StatusOr<LayerTarget> bare(const ServicePaths& paths);
  // The replica's own view, by /proc/<init>/root.
  static absl::StatusOr<LayerTarget> merged(HostPid init);

  // Bytes from a peer: checked; a path cannot lead out of the layer, through links or otherwise.
  absl::Status apply(std::string_view change, std::span<const std::byte> data);

 private:
  LayerTarget(UniqueFd upper, UniqueFd shm, bool is_merged)
      : upper_(std::move(upper)), shm_(std::move(shm)), merged_(is_merged) {}
  UniqueFd upper_;
  UniqueFd shm_;
  bool merged_;
};

}  // namespace godwit::capsule

#endif  // GODWIT_CAPSULE_FILE_LAYER_H_
