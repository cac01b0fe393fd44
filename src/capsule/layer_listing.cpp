#include "capsule/layer_listing.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <memory>
#include <string_view>

#include "base/clock.h"
#include "base/status.h"
#include "base/unique_fd.h"
#include "kernel/syscalls.h"

namespace godwit::capsule {
namespace {

constexpr std::string_view kOverlay = "trusted.overlay.";
// Twice the longest timer tick (CONFIG_HZ=100).
constexpr int64_t kTickSlack = 20'000'000;
constexpr int kMaxDepth = 512;

int64_t to_ns(const timespec& t) { return int64_t{t.tv_sec} * 1'000'000'000 + t.tv_nsec; }

class Scanner {
 public:
  Scanner(std::string root, const LayerTreeListing* before, int64_t listed_ns,
          LayerTreeListing& out)
      : root_(std::move(root)), before_(before), listed_ns_(listed_ns), out_(out) {}

  absl::Status run() {
    GW_ASSIGN_OR_RETURN(UniqueFd root, kernel::open(root_, O_RDONLY | O_DIRECTORY | O_NOFOLLOW));
    struct stat info {};
    if (::fstat(root.get(), &info) != 0)
      return errno_status(errno, fmt::format("fstat({})", root_));
    device_ = info.st_dev;
    GW_RETURN_IF_ERROR(add("", info));
    return folder(std::move(root), "", 0);
  }

 private:
  absl::Status folder(UniqueFd fd, const std::string& prefix, int depth) {
    if (depth > kMaxDepth) {
      return make_error(absl::StatusCode::kResourceExhausted, "{}/{}: nested too deeply", root_,
                        prefix);
    }
    const int number = fd.get();
    struct Close {
      void operator()(DIR* dir) const { ::closedir(dir); }
    };
    const std::unique_ptr<DIR, Close> dir(::fdopendir(fd.release()));
    if (!dir) return errno_status(errno, fmt::format("fdopendir({}/{})", root_, prefix));
    while (true) {
      errno = 0;
      const dirent* const entry = ::readdir(dir.get());
      if (entry == nullptr) {
        if (errno == 0) return absl::OkStatus();
        return errno_status(errno, fmt::format("readdir({}/{})", root_, prefix));
      }
      const std::string name = entry->d_name;
      if (name == "." || name == "..") continue;
      struct stat info {};
      if (::fstatat(number, name.c_str(), &info, AT_SYMLINK_NOFOLLOW) != 0) {
        if (errno == ENOENT) continue;  // removed meanwhile: the service runs
        return errno_status(errno, fmt::format("fstatat({}/{}/{})", root_, prefix, name));
      }
      // A mount in the layer is somebody else's.
      if (info.st_dev != device_) continue;
      const std::string path = prefix.empty() ? name : prefix + "/" + name;
      const absl::Status added = add(path, info);
      if (errno_of(added) == ENOENT) continue;
      GW_RETURN_IF_ERROR(added);
      if (!S_ISDIR(info.st_mode)) continue;
      auto below = kernel::openat(number, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW);
      if (errno_of(below.status()) == ENOENT) continue;
      GW_RETURN_IF_ERROR(below.status());
      GW_RETURN_IF_ERROR(folder(*std::move(below), path, depth + 1));
    }
  }

  absl::Status add(const std::string& path, const struct stat& info) {
    LayerEntry entry;
    entry.inode = info.st_ino;
    entry.links = info.st_nlink;
    entry.ctime_ns = to_ns(info.st_ctim);
    LayerNode& node = entry.node;
    if (S_ISREG(info.st_mode)) node.set_size(static_cast<uint64_t>(info.st_size));
    if (before_ != nullptr) {
      const auto old = before_->find(path);
      if (old != before_->end() && surely_unchanged(old->second, entry, listed_ns_)) {
        node = old->second.node;
        node.set_atime_ns(to_ns(info.st_atim));
        out_.emplace_hint(out_.end(), path, std::move(entry));
        return absl::OkStatus();
      }
    }
    node.set_mode(info.st_mode);
    node.set_uid(info.st_uid);
    node.set_gid(info.st_gid);
    node.set_mtime_ns(to_ns(info.st_mtim));
    node.set_atime_ns(to_ns(info.st_atim));
    if (S_ISCHR(info.st_mode) || S_ISBLK(info.st_mode)) node.set_rdev(info.st_rdev);
    const std::string full = path.empty() ? root_ : root_ + "/" + path;
    if (S_ISLNK(info.st_mode)) {
      GW_ASSIGN_OR_RETURN(*node.mutable_symlink(), kernel::readlinkat(AT_FDCWD, full));
    }
    GW_RETURN_IF_ERROR(xattrs(full, node));
    out_.emplace(path, std::move(entry));
    return absl::OkStatus();
  }

  absl::Status xattrs(const std::string& full, LayerNode& node) {
    const ssize_t length = ::llistxattr(full.c_str(), names_.data(), names_.size());
    if (length < 0) return errno_status(errno, fmt::format("llistxattr(\"{}\")", full));
    std::vector<std::string> names;
    for (size_t at = 0; at < static_cast<size_t>(length);) {
      names.emplace_back(&names_[at]);
      at += names.back().size() + 1;
    }
    std::sort(names.begin(), names.end());
    for (const std::string& name : names) {
      const ssize_t n = ::lgetxattr(full.c_str(), name.c_str(), value_.data(), value_.size());
      if (n < 0) {
        return errno_status(errno, fmt::format("lgetxattr(\"{}\", \"{}\")", full, name));
      }
      const std::string_view value(value_.data(), static_cast<size_t>(n));
      if (!name.starts_with(kOverlay)) {
        LayerXattr& xattr = *node.add_xattrs();
        xattr.set_name(name);
        xattr.set_value(std::string(value));
        continue;
      }
      const std::string_view own = std::string_view(name).substr(kOverlay.size());
      if (own == "opaque") {
        node.set_opaque(true);
      } else if (own == "redirect" || own == "metacopy" || own == "whiteout") {
        return make_error(absl::StatusCode::kFailedPrecondition,
                          "{}: has {}, which a layer of ours never gets", full, name);
      }
      // origin, impure, nlink, uuid: handles of this machine's inodes, made anew elsewhere.
    }
    return absl::OkStatus();
  }

  std::string root_;
  const LayerTreeListing* before_;
  int64_t listed_ns_;
  LayerTreeListing& out_;
  dev_t device_ = 0;
  // XATTR_LIST_MAX and XATTR_SIZE_MAX of linux/limits.h.
  std::vector<char> names_ = std::vector<char>(65536);
  std::vector<char> value_ = std::vector<char>(65536);
};

}  // namespace

absl::StatusOr<LayerListing> list_layer(const ServicePaths& paths, const LayerListing* before) {
  LayerListing listing;
  listing.taken_ns = clock_ns(CLOCK_REALTIME_COARSE);
  const int64_t listed_ns = before != nullptr ? before->taken_ns : 0;
  GW_RETURN_IF_ERROR(
      Scanner(paths.upper(), before ? &before->upper : nullptr, listed_ns, listing.upper).run());
  GW_RETURN_IF_ERROR(
      Scanner(paths.shm(), before ? &before->shm : nullptr, listed_ns, listing.shm).run());
  return listing;
}

bool surely_unchanged(const LayerEntry& before, const LayerEntry& now, int64_t listed_ns) {
  return before.inode == now.inode && before.ctime_ns == now.ctime_ns &&
         before.node.size() == now.node.size() && before.links == now.links &&
         before.ctime_ns < listed_ns - kTickSlack;
}

}  // namespace godwit::capsule
