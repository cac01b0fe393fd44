#include "capsule/file_offers.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "base/status.h"
#include "kernel/syscalls.h"

namespace godwit::capsule {
namespace {

constexpr uint64_t kPiece = uint64_t{1} << 20;

absl::Status leads_elsewhere(const FileUse& use) {
  return make_error(absl::StatusCode::kFailedPrecondition,
                    "{}: the file that the service has {} is not under this name any more; "
                    "restart the service, so that it uses the new one",
                    use.path, use.mapped ? "mapped" : "open");
}

// Is what the program uses what its path leads to?
absl::Status check_object(const FileUse& use, const FoundFile& found) {
  uint64_t device = use.device;
  uint64_t inode = use.inode;
  if (!use.object.empty()) {
    struct stat info {};
    if (::stat(use.object.c_str(), &info) != 0) {
      // Unmapped, or the process has ended: the next reading is without it.
      if (errno == ENOENT || errno == ESRCH) return absl::OkStatus();
      return errno_status(errno, fmt::format("stat(\"{}\")", use.object));
    }
    device = info.st_dev;
    inode = info.st_ino;
  }
  if (device == found.info.st_dev && inode == found.info.st_ino) return absl::OkStatus();
  return leads_elsewhere(use);
}

LayerChange change_at(std::string_view path) {
  LayerChange change;
  change.set_tree(LAYER_UPPER);
  change.set_path(std::string(path.substr(1)));
  return change;
}

}  // namespace

// True: the replica has to be told.
absl::StatusOr<bool> FileOffers::look(const FileUse& use, bool frozen, Known& known) {
  const bool fresh = known.file.place == FilePlace::kInvalid;
  if (frozen && !fresh) {
    if (known.id == 0) return false;
    struct stat info {};
    if (::fstat(known.file.fd.get(), &info) != 0)
      return errno_status(errno, fmt::format("fstat(\"{}\")", use.path));
    if (stamp_of(info) == stamp_of(known.file.info) && known.state.mapped() >= use.mapped)
      return false;
  }
  auto found = files_.find(use.path);
  if (absl::IsNotFound(found.status())) {
    // Without a name, or about to be gone: the kinds of descriptors say so themselves.
    if (!use.mapped) return false;
    return leads_elsewhere(use);
  }
  GW_RETURN_IF_ERROR(found.status());
  known.file = *std::move(found);
  if (known.file.place != FilePlace::kBelow) return false;
  GW_RETURN_IF_ERROR(check_object(use, known.file));
  UsedFile state;
  state.set_path(use.path);
  state.set_size(static_cast<uint64_t>(known.file.info.st_size));
  state.set_mode(known.file.info.st_mode);
  state.set_uid(known.file.info.st_uid);
  state.set_gid(known.file.info.st_gid);
  state.set_mapped(use.mapped || known.state.mapped());
  GW_ASSIGN_OR_RETURN(*state.mutable_hash(), files_.hash(use.path, known.file));
  const bool changed =
      known.id == 0 || state.SerializeAsString() != known.state.SerializeAsString();
  known.state = std::move(state);
  return changed;
}

absl::StatusOr<std::vector<uint64_t>> FileOffers::update(std::span<const FileUse> uses, bool frozen,
                                                         const FileSink& sink) {
  ++pass_;
  std::vector<uint64_t> asked;
  for (const FileUse& use : uses) {
    Known& known = known_[use.path];
    GW_ASSIGN_OR_RETURN(const bool tell, look(use, frozen, known));
    known.seen = pass_;
    if (known.file.place != FilePlace::kBelow) {
      // Written since it was told: it is the layer's now.
      if (known.id != 0) GW_RETURN_IF_ERROR(sink.removed(known.id));
      known.id = 0;
      continue;
    }
    if (!tell) continue;
    if (known.id == 0) known.id = next_id_++;
    GW_RETURN_IF_ERROR(sink.section(known.id, known.state.SerializeAsString()));
    asked.push_back(known.id);
  }
  for (auto at = known_.begin(); at != known_.end();) {
    if (at->second.seen == pass_) {
      ++at;
      continue;
    }
    if (at->second.id != 0) GW_RETURN_IF_ERROR(sink.removed(at->second.id));
    at = known_.erase(at);
  }
  return asked;
}

absl::Status FileOffers::carry(std::span<const WantedFile> wanted, const FileSink& sink) {
  for (const WantedFile& one : wanted) {
    const auto found = std::find_if(known_.begin(), known_.end(), [&](const auto& entry) {
      return entry.second.id == one.id && one.id != 0;
    });
    if (found == known_.end())
      return make_error(absl::StatusCode::kDataLoss,
                        "the destination asks for file {}, which it was not told of", one.id);
    Known& known = found->second;
    std::string hash;
    uint64_t size = 0;
    GW_RETURN_IF_ERROR(annotate(send_content(known, one.in_place, hash, size, sink),
                                fmt::format("carry {}", found->first)));
    ++carried_;
    if (hash == known.state.hash() && size == known.state.size()) continue;
    // It is being written at this moment: what was sent is what the replica must have.
    known.state.set_hash(hash);
    known.state.set_size(size);
    GW_RETURN_IF_ERROR(sink.section(known.id, known.state.SerializeAsString()));
  }
  return absl::OkStatus();
}

absl::Status FileOffers::send_content(const Known& known, bool in_place, std::string& hash,
                                      uint64_t& size, const FileSink& sink) {
  const std::string& path = known.state.path();
  const auto send = [&](const LayerChange& change, std::span<const std::byte> data = {}) {
    return sink.blocks(change.SerializeAsString(), data);
  };
  GW_ASSIGN_OR_RETURN(const auto folders, files_.folders_to(path));
  for (const auto& [folder, node] : folders) {
    LayerChange change = change_at(folder);
    *change.mutable_make()->mutable_node() = node;
    change.mutable_make()->set_keep(true);
    GW_RETURN_IF_ERROR(send(change));
  }
  GW_ASSIGN_OR_RETURN(LayerNode node, files_.node_of(known.file));
  const auto make = [&](uint64_t bytes, bool replace) {
    LayerChange change = change_at(path);
    *change.mutable_make()->mutable_node() = node;
    change.mutable_make()->mutable_node()->set_size(bytes);
    change.mutable_make()->set_replace(replace);
    return send(change);
  };
  // Through 0, so that what is not sent is a hole.
  GW_RETURN_IF_ERROR(make(0, !in_place));
  size = known.state.size();
  GW_RETURN_IF_ERROR(make(size, false));
  GW_ASSIGN_OR_RETURN(const UniqueFd fd, files_.open_to_read(known.file));
  Hasher hasher;
  std::vector<std::byte> piece(std::min(size, kPiece));
  for (uint64_t at = 0; at < size;) {
    const size_t length = std::min<uint64_t>(kPiece, size - at);
    const ssize_t n = ::pread(fd.get(), piece.data(), length, static_cast<off_t>(at));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return errno_status(errno, fmt::format("pread({} bytes at {})", length, at));
    if (n == 0) {
      // Cut meanwhile.
      size = at;
      GW_RETURN_IF_ERROR(make(size, false));
      break;
    }
    const std::span<const std::byte> data(piece.data(), static_cast<size_t>(n));
    hasher.update(data);
    const bool zero =
        std::all_of(data.begin(), data.end(), [](std::byte byte) { return byte == std::byte{0}; });
    if (!zero) {
      LayerChange change = change_at(path);
      change.set_write(at);
      change.set_length(data.size());
      GW_RETURN_IF_ERROR(send(change, data));
    }
    at += data.size();
  }
  hash = hasher.value();
  LayerChange seal = change_at(path);
  *seal.mutable_seal() = node;
  return send(seal);
}

absl::Status FileOffers::warm(std::span<const FileUse> uses) {
  for (const FileUse& use : uses) {
    const auto found = files_.find(use.path);
    if (!found.ok() || found->place != FilePlace::kBelow) continue;
    GW_RETURN_IF_ERROR(files_.hash(use.path, *found).status());
  }
  return absl::OkStatus();
}

}  // namespace godwit::capsule
