#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <functional>
#include <set>

#include "base/status.h"
#include "capsule/file_layer.h"
#include "kernel/syscalls.h"

namespace godwit::capsule {
namespace {

constexpr uint64_t kBlock = uint64_t{64} << 10;
constexpr uint64_t kPiece = uint64_t{1} << 20;  // a multiple of kBlock: data of one change
// Never the hash of a block that has data (see hash_of).
constexpr uint64_t kHole = 0;

uint64_t hash_of(const std::byte* data, size_t size) {
  const uint64_t hash = XXH3_64bits(data, size);
  return hash == kHole ? 1 : hash;
}

bool is_zero(const std::byte* data, size_t size) {
  // Every byte equals the one before it, and the first is 0.
  return size == 0 || (data[0] == std::byte{0} && std::memcmp(data, data + 1, size - 1) == 0);
}

// overlayfs(filesystems/overlayfs.rst): hides a name of the layer below. All whiteouts may be
// links of one inode, so they have no identity.
bool is_whiteout(const LayerNode& node) { return S_ISCHR(node.mode()) && node.rdev() == 0; }

bool same_type(const LayerNode& a, const LayerNode& b) {
  return (a.mode() & S_IFMT) == (b.mode() & S_IFMT) && is_whiteout(a) == is_whiteout(b);
}

// Has a process any file mapped MAP_SHARED? A process that goes away meanwhile has not.
absl::StatusOr<bool> any_shared_mapping(const Cgroup& work) {
  GW_ASSIGN_OR_RETURN(const std::vector<HostPid> pids, work.processes());
  for (const HostPid pid : pids) {
    const auto maps = kernel::read_file(fmt::format("/proc/{}/maps", pid.value));
    if (!maps.ok()) continue;
    for (size_t at = 0; at < maps->size();) {
      const size_t end = std::min(maps->find('\n', at), maps->size());
      const std::string_view line(&(*maps)[at], end - at);
      at = end + 1;
      // proc_pid_maps(5): "start-end rwxs offset dev inode path"
      const size_t space = line.find(' ');
      const size_t slash = line.find('/');
      if (space == std::string_view::npos || slash == std::string_view::npos) continue;
      const std::string_view path = line.substr(slash);
      if (line.substr(space + 4, 1) == "s" && !path.starts_with("/memfd:") &&
          !path.starts_with("/dev/zero") && !path.starts_with("/SYSV")) {
        return true;
      }
    }
  }
  return false;
}

}  // namespace

// One tree on its way: what was sent, what is there now.
struct LayerSource::Tree {
  LayerTree tree = LAYER_INVALID;
  const std::string& root;
  const LayerTreeListing& before;
  LayerTreeListing& now;
  int64_t listed_ns = 0;  // `before`
  bool frozen = false;
  const Emit& emit;
  std::set<std::string> replaced = {};          // folders whose content at the destination is void
  std::map<uint64_t, std::string> linked = {};  // inodes that kept their identity under a new name
  std::vector<std::string> seals = {};

  absl::Status send(const std::string& path, LayerChange& change,
                    std::span<const std::byte> data = {}) const {
    change.set_tree(tree);
    change.set_path(path);
    return emit(change.SerializeAsString(), data);
  }

  bool below_replaced(const std::string& path) const {
    for (size_t at = path.find('/'); at != std::string::npos; at = path.find('/', at + 1)) {
      if (replaced.contains(path.substr(0, at))) return true;
    }
    return false;
  }

  // What the destination has at `path`, as far as it is still of use.
  const LayerEntry* old_entry(const std::string& path) const {
    const auto found = before.find(path);
    return found == before.end() || below_replaced(path) ? nullptr : &found->second;
  }

  // The destination has this very inode under this name.
  bool in_place(const std::string& path, const LayerEntry& entry) const {
    const LayerEntry* const old = old_entry(path);
    return old != nullptr && old->inode == entry.inode && same_type(old->node, entry.node);
  }

  absl::Status send_folders();
  absl::Status send_links();
  absl::Status send_removals();
  absl::Status send_seals();
};

absl::Status LayerSource::look() {
  GW_ASSIGN_OR_RETURN(looked_, list_layer(paths_, &last_));
  return absl::OkStatus();
}

absl::StatusOr<LayerStatistics> LayerSource::send_changes(bool frozen, const Emit& emit) {
  statistics_ = {};
  const Emit counting = [&](std::string_view state, std::span<const std::byte> data) {
    ++statistics_.changes;
    statistics_.bytes += data.size();
    return emit(state, data);
  };
  if (!looked_ || !frozen) {
    GW_ASSIGN_OR_RETURN(looked_, list_layer(paths_, &last_));
  }
  LayerListing now = *std::exchange(looked_, std::nullopt);
  // After the listing's time was taken: a store into a mapping made later sets ctime after it.
  write_back_ = !frozen;
  if (write_back_ && work_) {
    GW_ASSIGN_OR_RETURN(write_back_, any_shared_mapping(*work_));
  }
  statistics_.entries = now.upper.size() + now.shm.size();
  GW_RETURN_IF_ERROR(send_tree(LAYER_UPPER, paths_.upper(), last_.upper, now.upper, last_.taken_ns,
                               frozen, counting));
  GW_RETURN_IF_ERROR(
      send_tree(LAYER_SHM, paths_.shm(), last_.shm, now.shm, last_.taken_ns, frozen, counting));
  // Of files that are gone.
  std::set<std::pair<LayerTree, uint64_t>> alive;
  for (const auto& [path, entry] : now.upper) alive.emplace(LAYER_UPPER, entry.inode);
  for (const auto& [path, entry] : now.shm) alive.emplace(LAYER_SHM, entry.inode);
  std::erase_if(hashes_, [&](const auto& known) { return !alive.contains(known.first); });
  last_ = std::move(now);
  return statistics_;
}

// Folders that are new, or that took the place of something else.
absl::Status LayerSource::Tree::send_folders() {
  for (const auto& [path, entry] : now) {
    const auto found = before.find(path);
    if (found == before.end() || !S_ISDIR(found->second.node.mode())) continue;
    const bool keeps = found->second.inode == entry.inode && S_ISDIR(entry.node.mode()) &&
                       found->second.node.opaque() == entry.node.opaque();
    if (!keeps && !path.empty()) replaced.insert(path);
  }
  for (const auto& [path, entry] : now) {
    if (!S_ISDIR(entry.node.mode())) continue;
    const LayerEntry* const old = old_entry(path);
    const bool keeps = path.empty() || (in_place(path, entry) && !replaced.contains(path));
    if (keeps && old != nullptr && surely_unchanged(*old, entry, listed_ns)) continue;
    seals.push_back(path);
    if (keeps) continue;
    LayerChange change;
    *change.mutable_make()->mutable_node() = entry.node;
    change.mutable_make()->set_replace(old != nullptr || entry.node.opaque());
    GW_RETURN_IF_ERROR(send(path, change));
  }
  return absl::OkStatus();
}

// Renamed files and new names of known ones keep their inode at the destination too.
absl::Status LayerSource::Tree::send_links() {
  std::map<uint64_t, const std::string*> names;  // of inodes that the destination has
  for (const auto& [path, entry] : before) {
    if (S_ISDIR(entry.node.mode()) || is_whiteout(entry.node) || below_replaced(path)) continue;
    const auto there = now.find(path);
    // A name that another inode has taken is no way to the old one; one that stays is best.
    if (there == now.end()) {
      names.emplace(entry.inode, &path);
    } else if (there->second.inode == entry.inode) {
      names[entry.inode] = &path;
    }
  }
  for (const auto& [path, entry] : now) {
    if (S_ISDIR(entry.node.mode()) || is_whiteout(entry.node) || in_place(path, entry)) continue;
    const auto known = names.find(entry.inode);
    if (known == names.end()) continue;
    if (!same_type(before.at(*known->second).node, entry.node)) continue;
    LayerChange change;
    change.set_link(*known->second);
    GW_RETURN_IF_ERROR(send(path, change));
    linked.emplace(entry.inode, path);
    seals.push_back(path);
  }
  return absl::OkStatus();
}

absl::Status LayerSource::Tree::send_removals() {
  for (const auto& [path, entry] : before) {
    if (now.contains(path) || below_replaced(path)) continue;
    // Below a folder that is gone as well there is nothing left to remove.
    const size_t slash = path.rfind('/');
    if (slash != std::string::npos && !now.contains(path.substr(0, slash))) continue;
    LayerChange change;
    change.set_remove(true);
    GW_RETURN_IF_ERROR(send(path, change));
  }
  return absl::OkStatus();
}

absl::Status LayerSource::Tree::send_seals() {
  // Deepest first: what is done in a folder sets the folder's times.
  std::sort(seals.begin(), seals.end(), std::greater<>());
  seals.erase(std::unique(seals.begin(), seals.end()), seals.end());
  for (const std::string& path : seals) {
    const LayerEntry& entry = now.at(path);
    if (entry.inode == 0) continue;
    LayerChange change;
    *change.mutable_seal() = entry.node;
    GW_RETURN_IF_ERROR(send(path, change));
  }
  return absl::OkStatus();
}

absl::Status LayerSource::send_tree(LayerTree which, const std::string& root,
                                    const LayerTreeListing& before, LayerTreeListing& now,
                                    int64_t listed_ns, bool frozen, const Emit& emit) {
  Tree tree{which, root, before, now, listed_ns, frozen, emit};
  GW_RETURN_IF_ERROR(tree.send_folders());
  GW_RETURN_IF_ERROR(tree.send_links());
  GW_RETURN_IF_ERROR(tree.send_removals());
  std::map<uint64_t, std::string> first_names;
  for (auto& [path, entry] : now) {
    if (S_ISDIR(entry.node.mode())) continue;
    if (is_whiteout(entry.node)) {
      const LayerEntry* const old = tree.old_entry(path);
      if (old != nullptr && is_whiteout(old->node)) continue;
      LayerChange change;
      *change.mutable_make()->mutable_node() = entry.node;
      change.mutable_make()->set_replace(true);
      GW_RETURN_IF_ERROR(tree.send(path, change));
      continue;
    }
    const bool in_place = tree.in_place(path, entry);
    const auto [first, is_first] = first_names.emplace(entry.inode, path);
    if (!is_first) {
      const auto linked = tree.linked.find(entry.inode);
      if (in_place || (linked != tree.linked.end() && linked->second == path)) continue;
      LayerChange change;
      change.set_link(first->second);
      GW_RETURN_IF_ERROR(tree.send(path, change));
      continue;
    }
    if (in_place && surely_unchanged(*tree.old_entry(path), entry, listed_ns)) continue;
    const bool fresh = !in_place && !tree.linked.contains(entry.inode);
    const absl::Status sent = send_content(tree, path, entry, fresh);
    if (errno_of(sent) == ENOENT && !frozen) {
      // Removed while we looked. Listed with an inode that nothing has, the next round removes it
      // or sends what came in its place.
      entry.inode = 0;
      continue;
    }
    GW_RETURN_IF_ERROR(sent);
    tree.seals.push_back(path);
  }
  return tree.send_seals();
}

absl::Status LayerSource::send_content(Tree& tree, const std::string& path, LayerEntry& entry,
                                       bool fresh) {
  std::vector<uint64_t>& hashes = hashes_[{tree.tree, entry.inode}];
  if (fresh) hashes.clear();
  UniqueFd fd;
  if (S_ISREG(entry.node.mode())) {
    const std::string full = tree.root + "/" + path;
    GW_ASSIGN_OR_RETURN(fd, kernel::open(full, O_RDONLY | O_NOFOLLOW | O_NOATIME));
    // Stores into a shared mapping set ctime only when a clean page is first written: clean them
    // before we look at ctime, or a later store goes unnoticed.
    if (write_back_ &&
        ::sync_file_range(fd.get(), 0, 0,
                          SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE |
                              SYNC_FILE_RANGE_WAIT_AFTER) != 0 &&
        errno != EINVAL && errno != ESPIPE) {
      return errno_status(errno, fmt::format("sync_file_range(\"{}\")", full));
    }
    struct stat info {};
    if (::fstat(fd.get(), &info) != 0) return errno_status(errno, fmt::format("fstat({})", full));
    if (info.st_ino != entry.inode || !S_ISREG(info.st_mode)) {
      return errno_status(ENOENT, full);  // replaced since it was listed
    }
    entry.ctime_ns = int64_t{info.st_ctim.tv_sec} * 1'000'000'000 + info.st_ctim.tv_nsec;
    entry.node.set_mtime_ns(int64_t{info.st_mtim.tv_sec} * 1'000'000'000 + info.st_mtim.tv_nsec);
    entry.node.set_size(static_cast<uint64_t>(info.st_size));
  }
  LayerChange change;
  *change.mutable_make()->mutable_node() = entry.node;
  change.mutable_make()->set_replace(fresh);
  GW_RETURN_IF_ERROR(tree.send(path, change));
  if (!fd) return absl::OkStatus();
  return send_blocks(tree, path, fd.get(), entry.node.size(), hashes);
}

absl::Status LayerSource::send_blocks(Tree& tree, const std::string& path, int fd, uint64_t size,
                                      std::vector<uint64_t>& hashes) {
  // Blocks beyond the former end are holes at the destination, which has cut or extended the file.
  hashes.resize((size + kBlock - 1) / kBlock, kHole);
  std::vector<std::byte> piece(std::min(size, kPiece));
  const auto is_hole = [&](uint64_t from, uint64_t to) {
    const off_t data = ::lseek(fd, static_cast<off_t>(from), SEEK_DATA);
    return data < 0 ? errno == ENXIO : static_cast<uint64_t>(data) >= to;
  };
  // A run of changed blocks of one kind, within a piece.
  struct Run {
    uint64_t from = 0;
    uint64_t to = 0;
    bool hole = false;
  } run;
  uint64_t piece_at = 0;
  const auto flush = [&]() -> absl::Status {
    if (run.from == run.to) return absl::OkStatus();
    LayerChange change;
    change.set_length(run.to - run.from);
    std::span<const std::byte> data;
    if (run.hole) {
      change.set_punch(run.from);
    } else {
      change.set_write(run.from);
      data = {&piece[run.from - piece_at], run.to - run.from};
    }
    run = {};
    return tree.send(path, change, data);
  };
  for (uint64_t at = 0; at < size; at += kPiece) {
    piece_at = at;
    uint64_t end = std::min(size, at + kPiece);
    const bool all_hole = is_hole(at, end);
    if (!all_hole) {
      const ssize_t n = ::pread(fd, piece.data(), end - at, static_cast<off_t>(at));
      if (n < 0) return errno_status(errno, fmt::format("pread({}/{})", tree.root, path));
      end = at + static_cast<uint64_t>(n);  // shorter if it was just cut: a next round sees that
    }
    for (uint64_t from = at; from < end; from += kBlock) {
      const uint64_t to = std::min(end, from + kBlock);
      const std::byte* const data = piece.data() + (from - at);
      const bool hole = all_hole || (is_zero(data, to - from) && is_hole(from, to));
      const uint64_t hash = hole ? kHole : hash_of(data, to - from);
      uint64_t& known = hashes[from / kBlock];
      const bool differs = known != hash;
      known = hash;
      if (!differs || hole != run.hole || run.to != from) GW_RETURN_IF_ERROR(flush());
      if (!differs) continue;
      if (run.from == run.to) run = {from, from, hole};
      run.to = to;
    }
    GW_RETURN_IF_ERROR(flush());
  }
  return absl::OkStatus();
}

}  // namespace godwit::capsule
