#include "capsule/content_hash.h"

#include <unistd.h>
#include <xxhash.h>

#include <algorithm>
#include <cerrno>
#include <vector>

#include "base/clock.h"
#include "base/status.h"
#include "capsule/small_file.h"
#include "capsule/used_file.pb.h"
#include "kernel/syscalls.h"

namespace godwit::capsule {
namespace {

// Twice the longest timer tick (CONFIG_HZ=100).
constexpr int64_t kTickSlack = 20'000'000;
// Fits a second-level cache, so that what read(2) has copied is hashed from there.
constexpr size_t kPiece = size_t{128} << 10;
// Some 100 bytes each.
constexpr size_t kMostEntries = 20'000;

int64_t to_ns(const timespec& t) { return int64_t{t.tv_sec} * 1'000'000'000 + t.tv_nsec; }

std::string read_boot_id() {
  const auto text = kernel::read_file("/proc/sys/kernel/random/boot_id", 64);
  return text.ok() ? *text : std::string();
}

}  // namespace

FileStamp stamp_of(const struct stat& info) {
  return {info.st_dev, info.st_ino, static_cast<uint64_t>(info.st_size), to_ns(info.st_mtim),
          to_ns(info.st_ctim)};
}

Hasher::Hasher() : state_(XXH3_createState()) { XXH3_128bits_reset(state_.get()); }

void Hasher::Free::operator()(XXH3_state_s* state) const { XXH3_freeState(state); }

void Hasher::update(std::span<const std::byte> bytes) {
  XXH3_128bits_update(state_.get(), bytes.data(), bytes.size());
}

std::string Hasher::value() const {
  XXH128_canonical_t canonical;
  XXH128_canonicalFromHash(&canonical, XXH3_128bits_digest(state_.get()));
  static_assert(sizeof canonical.digest == kHashBytes);
  return {reinterpret_cast<const char*>(canonical.digest), kHashBytes};
}

ContentHashes::ContentHashes(std::string file) : file_(std::move(file)), boot_id_(read_boot_id()) {
  const auto bytes = kernel::read_file(file_);
  KnownHashes saved;
  if (!bytes.ok() || !saved.ParseFromString(*bytes) || saved.boot_id() != boot_id_) return;
  for (const KnownHashes::Entry& entry : saved.entries()) {
    if (entry.hash().size() != kHashBytes) continue;
    known_.emplace(
        FileStamp{entry.device(), entry.inode(), entry.size(), entry.mtime_ns(), entry.ctime_ns()},
        Known{entry.hash(), true});
  }
}

absl::StatusOr<std::string> ContentHashes::of(int fd, const FileStamp& stamp, bool lasting) {
  if (const auto known = known_.find(stamp); known != known_.end()) return known->second.hash;
  const int64_t begin = clock_ns(CLOCK_REALTIME_COARSE);
  Hasher hasher;
  std::vector<std::byte> piece(std::min<uint64_t>(stamp.size, kPiece));
  for (uint64_t at = 0; at < stamp.size;) {
    if (stop_()) return absl::CancelledError("cancelled while files were compared");
    const size_t wanted = std::min<uint64_t>(piece.size(), stamp.size - at);
    const ssize_t n = ::pread(fd, piece.data(), wanted, static_cast<off_t>(at));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return errno_status(errno, fmt::format("pread({}, {} bytes)", fd, wanted));
    if (n == 0) break;  // cut meanwhile: a hash of something else, which nobody asks for again
    hasher.update({piece.data(), static_cast<size_t>(n)});
    at += static_cast<uint64_t>(n);
  }
  ++files_hashed_;
  std::string hash = hasher.value();
  struct stat now {};
  if (::fstat(fd, &now) != 0) return errno_status(errno, fmt::format("fstat({})", fd));
  if (stamp_of(now) != stamp || stamp.ctime_ns >= begin - kTickSlack) return hash;
  if (known_.size() >= kMostEntries) known_.clear();
  known_.emplace(stamp, Known{hash, lasting});
  changed_ = changed_ || lasting;
  return hash;
}

absl::Status ContentHashes::save() {
  if (!changed_) return absl::OkStatus();
  KnownHashes saved;
  saved.set_boot_id(boot_id_);
  for (const auto& [stamp, known] : known_) {
    if (!known.lasting) continue;
    KnownHashes::Entry& entry = *saved.add_entries();
    entry.set_device(stamp.device);
    entry.set_inode(stamp.inode);
    entry.set_size(stamp.size);
    entry.set_mtime_ns(stamp.mtime_ns);
    entry.set_ctime_ns(stamp.ctime_ns);
    entry.set_hash(known.hash);
  }
  GW_RETURN_IF_ERROR(write_small_file(file_, saved.SerializeAsString()));
  changed_ = false;
  return absl::OkStatus();
}

}  // namespace godwit::capsule
