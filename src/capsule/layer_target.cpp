#include <dirent.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "base/status.h"
#include "capsule/file_layer.h"
#include "kernel/syscalls.h"

namespace godwit::capsule {
namespace {

constexpr char kOpaque[] = "trusted.overlay.opaque";
constexpr int kMaxDepth = 512;

absl::Status check_path(const std::string& path) {
  if (path.empty()) return absl::OkStatus();
  bool good = path.size() < 65536 && path.find('\0') == std::string::npos;
  for (size_t at = 0; good && at <= path.size();) {
    const size_t end = std::min(path.find('/', at), path.size());
    const std::string part = path.substr(at, end - at);
    good = !part.empty() && part != "." && part != ".." && part.size() <= 255;
    at = end + 1;
  }
  if (good) return absl::OkStatus();
  return absl::DataLossError("layer: a path that cannot be");
}

// openat2(2), Linux 5.6: neither "..", nor a symbolic link, nor a mount leads out.
absl::StatusOr<UniqueFd> open_beneath(int root, const std::string& path, int flags) {
  open_how how{};
  how.flags = static_cast<uint64_t>(flags | O_CLOEXEC | O_NOFOLLOW);
  how.resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_XDEV;
  const char* const name = path.empty() ? "." : path.c_str();
  long fd = -1;
  do {
    fd = ::syscall(SYS_openat2, root, name, &how, sizeof how);
  } while (fd < 0 && (errno == EINTR || errno == EAGAIN));
  if (fd < 0) return errno_status(errno, fmt::format("openat2(layer, \"{}\", {:#o})", name, flags));
  return UniqueFd(static_cast<int>(fd));
}

absl::Status remove_entry(int parent, const std::string& name, int depth) {
  if (::unlinkat(parent, name.c_str(), 0) == 0 || errno == ENOENT) return absl::OkStatus();
  if (errno != EISDIR && errno != EPERM) {
    return errno_status(errno, fmt::format("unlinkat(\"{}\")", name));
  }
  if (depth > kMaxDepth) return absl::ResourceExhaustedError("layer: nested too deeply");
  GW_ASSIGN_OR_RETURN(const UniqueFd dir,
                      kernel::openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW));
  GW_ASSIGN_OR_RETURN(const std::vector<std::string> names,
                      kernel::list_folder(fmt::format("/proc/self/fd/{}", dir.get())));
  for (const std::string& below : names) {
    GW_RETURN_IF_ERROR(remove_entry(dir.get(), below, depth + 1));
  }
  if (::unlinkat(parent, name.c_str(), AT_REMOVEDIR) != 0 && errno != ENOENT) {
    return errno_status(errno, fmt::format("unlinkat(\"{}\", AT_REMOVEDIR)", name));
  }
  return absl::OkStatus();
}

timespec to_timespec(int64_t ns) {
  constexpr int64_t kSecond = 1'000'000'000;
  const int64_t rest = (ns % kSecond + kSecond) % kSecond;
  return {(ns - rest) / kSecond, rest};
}

// One change at one place.
class Change {
 public:
  Change(const LayerChange& change, int root, bool merged)
      : change_(change), root_(root), merged_(merged) {}

  absl::Status apply(std::span<const std::byte> data) {
    GW_RETURN_IF_ERROR(check_path(change_.path()));
    absl::Status status = locate(change_.path(), parent_, name_);
    if (status.ok()) status = dispatch(data);
    // Covered by a mount of the capsule's: no program can see it. A removal below a removed
    // folder: done already.
    if (merged_ && errno_of(status) == EXDEV) return absl::OkStatus();
    if (change_.remove() && (errno_of(status) == ENOENT || errno_of(status) == ENOTDIR)) {
      return absl::OkStatus();
    }
    return annotate(status, fmt::format("layer, \"{}\"", change_.path()));
  }

 private:
  absl::Status locate(const std::string& path, UniqueFd& parent, std::string& name) const {
    const size_t slash = path.rfind('/');
    const std::string_view last =
        std::string_view(path).substr(slash == std::string::npos ? 0 : slash + 1);
    name = last.empty() ? std::string(1, '.') : std::string(last);
    GW_ASSIGN_OR_RETURN(parent,
                        open_beneath(root_, slash == std::string::npos ? "" : path.substr(0, slash),
                                     O_PATH | O_DIRECTORY));
    return absl::OkStatus();
  }

  absl::Status dispatch(std::span<const std::byte> data) {
    if (!change_.has_seal() && change_.path().empty()) {
      return absl::DataLossError("the root of a tree can only be sealed");
    }
    switch (change_.change_case()) {
      case LayerChange::kMake:
        if (change_.make().keep()) return make_missing_folder(change_.make().node());
        return make(change_.make().node(), change_.make().replace());
      case LayerChange::kWrite:
        return write(change_.write(), data);
      case LayerChange::kPunch:
        return punch();
      case LayerChange::kLink:
        return link();
      case LayerChange::kRemove:
        return remove_entry(parent_.get(), name_, 0);
      case LayerChange::kSeal:
        return seal(change_.seal());
      case LayerChange::CHANGE_NOT_SET:
        break;
    }
    return absl::DataLossError("unknown change");
  }

  absl::Status make_missing_folder(const LayerNode& node) {
    struct stat info {};
    if (::fstatat(parent_.get(), name_.c_str(), &info, AT_SYMLINK_NOFOLLOW) == 0) {
      if (S_ISDIR(info.st_mode)) return absl::OkStatus();
      return absl::FailedPreconditionError("is not a folder here");
    }
    if (!S_ISDIR(node.mode())) return absl::DataLossError("a file where a folder must be");
    GW_RETURN_IF_ERROR(make(node, false));
    return seal(node);
  }

  absl::Status make(const LayerNode& node, bool replace) {
    if (replace) GW_RETURN_IF_ERROR(remove_entry(parent_.get(), name_, 0));
    const mode_t type = node.mode() & S_IFMT;
    int result = 0;
    switch (type) {
      case S_IFDIR:
        result = ::mkdirat(parent_.get(), name_.c_str(), 0700);
        if (result == 0 && node.opaque() && !merged_ &&
            ::lsetxattr(path().c_str(), kOpaque, "y", 1, 0) != 0) {
          return errno_status(errno, fmt::format("lsetxattr({})", kOpaque));
        }
        break;
      case S_IFREG:
        return make_file(node, replace);
      case S_IFLNK:
        result = ::symlinkat(node.symlink().c_str(), parent_.get(), name_.c_str());
        break;
      case S_IFCHR:
      case S_IFBLK:
        // A whiteout: in the merged view the name is just not there.
        if (type == S_IFCHR && node.rdev() == 0 && merged_) return absl::OkStatus();
        [[fallthrough]];
      case S_IFIFO:
      case S_IFSOCK:
        result = ::mknodat(parent_.get(), name_.c_str(), type | 0600, node.rdev());
        break;
      default:
        return absl::DataLossError("unknown type of file");
    }
    if (result == 0) return absl::OkStatus();
    if (errno != EEXIST || replace) return errno_status(errno, "make");
    return check_type(node);
  }

  absl::Status check_type(const LayerNode& node) const {
    struct stat info {};
    if (::fstatat(parent_.get(), name_.c_str(), &info, AT_SYMLINK_NOFOLLOW) != 0) {
      return errno_status(errno, "fstatat");
    }
    if ((info.st_mode & S_IFMT) == (node.mode() & S_IFMT)) return absl::OkStatus();
    return absl::DataLossError("another type of file is there");
  }

  absl::Status make_file(const LayerNode& node, bool replace) {
    const int how = O_WRONLY | O_NOFOLLOW | O_NONBLOCK | (replace ? O_CREAT | O_EXCL : 0);
    GW_ASSIGN_OR_RETURN(const UniqueFd fd, kernel::openat(parent_.get(), name_, how, 0600));
    if (node.size() > INT64_MAX || ::ftruncate(fd.get(), static_cast<off_t>(node.size())) != 0) {
      return errno_status(node.size() > INT64_MAX ? EFBIG : errno,
                          fmt::format("ftruncate({})", node.size()));
    }
    return absl::OkStatus();
  }

  absl::StatusOr<UniqueFd> open_file() const {
    GW_ASSIGN_OR_RETURN(UniqueFd fd,
                        kernel::openat(parent_.get(), name_, O_WRONLY | O_NOFOLLOW | O_NONBLOCK));
    struct stat info {};
    if (::fstat(fd.get(), &info) != 0) return errno_status(errno, "fstat");
    if (!S_ISREG(info.st_mode)) return absl::DataLossError("data for what is not a file");
    return fd;
  }

  absl::Status write(uint64_t offset, std::span<const std::byte> data) {
    if (data.size() != change_.length() || offset > INT64_MAX - data.size()) {
      return absl::DataLossError("data of another length than announced");
    }
    GW_ASSIGN_OR_RETURN(const UniqueFd fd, open_file());
    for (size_t at = 0; at < data.size();) {
      const ssize_t n =
          ::pwrite(fd.get(), data.data() + at, data.size() - at, static_cast<off_t>(offset + at));
      if (n < 0 && errno == EINTR) continue;
      if (n <= 0) return errno_status(n == 0 ? ENOSPC : errno, "pwrite");
      at += static_cast<size_t>(n);
    }
    return absl::OkStatus();
  }

  absl::Status punch() {
    const uint64_t offset = change_.punch();
    const uint64_t length = change_.length();
    if (length == 0 || length > INT64_MAX || offset > INT64_MAX - length) {
      return absl::DataLossError("a hole out of bounds");
    }
    GW_ASSIGN_OR_RETURN(const UniqueFd fd, open_file());
    if (::fallocate(fd.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                    static_cast<off_t>(offset), static_cast<off_t>(length)) != 0) {
      return errno_status(errno, "fallocate(PUNCH_HOLE)");
    }
    return absl::OkStatus();
  }

  absl::Status link() {
    GW_RETURN_IF_ERROR(check_path(change_.link()));
    UniqueFd from;
    std::string from_name;
    GW_RETURN_IF_ERROR(locate(change_.link(), from, from_name));
    struct stat source {};
    struct stat there {};
    if (::fstatat(from.get(), from_name.c_str(), &source, AT_SYMLINK_NOFOLLOW) != 0) {
      return errno_status(errno, fmt::format("fstatat(\"{}\")", change_.link()));
    }
    if (::fstatat(parent_.get(), name_.c_str(), &there, AT_SYMLINK_NOFOLLOW) == 0) {
      if (there.st_ino == source.st_ino && there.st_dev == source.st_dev) return absl::OkStatus();
      GW_RETURN_IF_ERROR(remove_entry(parent_.get(), name_, 0));
    }
    if (::linkat(from.get(), from_name.c_str(), parent_.get(), name_.c_str(), 0) != 0) {
      return errno_status(errno, fmt::format("linkat(\"{}\")", change_.link()));
    }
    return absl::OkStatus();
  }

  // By the parent's descriptor: the last part of the path is not followed by the l..xattr calls.
  std::string path() const { return fmt::format("/proc/self/fd/{}/{}", parent_.get(), name_); }

  absl::Status set_xattrs(const LayerNode& node) const {
    char names[65536];
    const std::string full = path();
    const ssize_t length = ::llistxattr(full.c_str(), names, sizeof names);
    if (length < 0) return errno_status(errno, "llistxattr");
    for (ssize_t at = 0; at < length;) {
      const std::string name = &names[at];
      at += static_cast<ssize_t>(name.size()) + 1;
      const bool wanted =
          name.starts_with("trusted.overlay.") ||
          std::any_of(node.xattrs().begin(), node.xattrs().end(),
                      [&](const LayerXattr& xattr) { return xattr.name() == name; });
      if (!wanted && ::lremovexattr(full.c_str(), name.c_str()) != 0 && errno != ENODATA) {
        return errno_status(errno, fmt::format("lremovexattr(\"{}\")", name));
      }
    }
    for (const LayerXattr& xattr : node.xattrs()) {
      if (xattr.name().starts_with("trusted.overlay.")) {
        return absl::DataLossError("an attribute of overlayfs's own");
      }
      if (::lsetxattr(full.c_str(), xattr.name().c_str(), xattr.value().data(),
                      xattr.value().size(), 0) != 0) {
        return errno_status(errno, fmt::format("lsetxattr(\"{}\")", xattr.name()));
      }
    }
    return absl::OkStatus();
  }

  absl::Status seal(const LayerNode& node) {
    if (merged_ && S_ISDIR(node.mode())) {
      // EXDEV for a folder that something is mounted on.
      GW_RETURN_IF_ERROR(open_beneath(parent_.get(), name_ == "." ? "" : name_, O_PATH).status());
    }
    GW_RETURN_IF_ERROR(check_type(node));
    const int parent = parent_.get();
    const char* const name = name_.c_str();
    // chown(2) takes away set-id bits and file capabilities: mode and attributes follow it.
    if (::fchownat(parent, name, node.uid(), node.gid(), AT_SYMLINK_NOFOLLOW) != 0) {
      return errno_status(errno, "fchownat");
    }
    GW_RETURN_IF_ERROR(set_xattrs(node));
    if (!S_ISLNK(node.mode()) && ::fchmodat(parent, name, node.mode() & 07777, 0) != 0) {
      return errno_status(errno, "fchmodat");
    }
    const timespec times[2] = {to_timespec(node.atime_ns()), to_timespec(node.mtime_ns())};
    if (::utimensat(parent, name, times, AT_SYMLINK_NOFOLLOW) != 0) {
      return errno_status(errno, "utimensat");
    }
    return absl::OkStatus();
  }

  const LayerChange& change_;
  int root_;
  bool merged_;
  UniqueFd parent_;
  std::string name_;
};

}  // namespace

absl::StatusOr<LayerTarget> LayerTarget::bare(const ServicePaths& paths) {
  GW_ASSIGN_OR_RETURN(UniqueFd upper, kernel::open(paths.upper(), O_PATH | O_DIRECTORY));
  GW_ASSIGN_OR_RETURN(UniqueFd shm, kernel::open(paths.shm(), O_PATH | O_DIRECTORY));
  return LayerTarget(std::move(upper), std::move(shm), false);
}

absl::StatusOr<LayerTarget> LayerTarget::merged(HostPid init) {
  const std::string root = fmt::format("/proc/{}/root/", init.value);
  GW_ASSIGN_OR_RETURN(UniqueFd upper, kernel::open(root, O_PATH | O_DIRECTORY));
  GW_ASSIGN_OR_RETURN(UniqueFd shm, kernel::open(root + "dev/shm", O_PATH | O_DIRECTORY));
  return LayerTarget(std::move(upper), std::move(shm), true);
}

absl::Status LayerTarget::apply(std::string_view change, std::span<const std::byte> data) {
  LayerChange parsed;
  if (!parsed.ParseFromArray(change.data(), static_cast<int>(change.size()))) {
    return absl::DataLossError("layer: a change that cannot be read");
  }
  if (parsed.tree() != LAYER_UPPER && parsed.tree() != LAYER_SHM) {
    return absl::DataLossError("layer: unknown tree");
  }
  const int root = parsed.tree() == LAYER_UPPER ? upper_.get() : shm_.get();
  return Change(parsed, root, merged_).apply(data);
}

}  // namespace godwit::capsule
