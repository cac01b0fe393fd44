// openat2(2), Linux 5.6: a path below a root without symbolic links on the way. statx(2): a
// file's mount (STATX_MNT_ID, Linux 5.8). An overlay shows size, times and (modulo the file
// system's index in its high bits) the inode number of the file below, under a device number of its
// own (Documentation/filesystems/overlayfs.rst, "Inode properties").
#include "capsule/capsule_files.h"

#include <fcntl.h>
#include <linux/openat2.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>

#include "base/status.h"
#include "capsule/host_mounts.h"
#include "kernel/proc/mountinfo.h"
#include "kernel/syscalls.h"

namespace godwit::capsule {
namespace {

absl::StatusOr<UniqueFd> open_below(int root, std::string_view path, uint64_t resolve) {
  open_how how{};
  how.flags = O_PATH | O_NOFOLLOW | O_CLOEXEC;
  how.resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS | resolve;
  const std::string relative(path.substr(1));
  long fd = -1;
  do {
    fd = ::syscall(SYS_openat2, root, relative.empty() ? "." : relative.c_str(), &how, sizeof how);
  } while (fd < 0 && (errno == EINTR || errno == EAGAIN));
  if (fd >= 0) return UniqueFd(static_cast<int>(fd));
  if (errno == ENOTDIR || errno == ELOOP)
    return make_error(absl::StatusCode::kNotFound, "{}: no such file", path);
  return errno_status(errno, fmt::format("openat2(\"{}\", O_PATH)", path));
}

absl::StatusOr<uint64_t> mount_of(int fd, const std::string& path) {
  struct statx extra {};
  if (::statx(fd, "", AT_EMPTY_PATH, STATX_MNT_ID, &extra) != 0)
    return errno_status(errno, fmt::format("statx(\"{}\", STATX_MNT_ID)", path));
  return extra.stx_mnt_id;
}

absl::StatusOr<struct stat> stat_of(int fd) {
  struct stat info {};
  if (::fstat(fd, &info) != 0) return errno_status(errno, fmt::format("fstat({})", fd));
  return info;
}

bool is_or_is_below(std::string_view path, std::string_view folder) {
  while (folder.size() > 1 && folder.ends_with('/')) folder.remove_suffix(1);
  return path == folder ||
         (path.starts_with(folder) && path.size() > folder.size() && path[folder.size()] == '/');
}

absl::Status add_xattrs(int fd, LayerNode& node) {
  // XATTR_LIST_MAX and XATTR_SIZE_MAX of linux/limits.h. By way of /proc: fd is an O_PATH one.
  std::vector<char> names(65536);
  std::vector<char> value(65536);
  const std::string path = fmt::format("/proc/self/fd/{}", fd);
  const ssize_t length = ::listxattr(path.c_str(), names.data(), names.size());
  if (length < 0) return errno_status(errno, "listxattr");
  std::vector<std::string> sorted;
  for (size_t at = 0; at < static_cast<size_t>(length);) {
    sorted.emplace_back(&names[at]);
    at += sorted.back().size() + 1;
  }
  std::sort(sorted.begin(), sorted.end());
  for (const std::string& name : sorted) {
    if (name.starts_with("trusted.overlay.")) continue;
    const ssize_t n = ::getxattr(path.c_str(), name.c_str(), value.data(), value.size());
    if (n < 0 && errno == ENODATA) continue;
    if (n < 0) return errno_status(errno, fmt::format("getxattr(\"{}\")", name));
    LayerXattr& xattr = *node.add_xattrs();
    xattr.set_name(name);
    xattr.set_value(std::string(value.data(), static_cast<size_t>(n)));
  }
  return absl::OkStatus();
}

}  // namespace

bool is_plain_path(std::string_view path) {
  if (!path.starts_with('/') || path.size() > 65535 || path.find('\0') != std::string_view::npos)
    return false;
  for (size_t at = 1; at <= path.size();) {
    const size_t end = std::min(path.find('/', at), path.size());
    const std::string_view part = path.substr(at, end - at);
    if (part.empty() || part == "." || part == ".." || part.size() > 255) return false;
    at = end + 1;
  }
  return true;
}

absl::StatusOr<CapsuleFiles> CapsuleFiles::open(const CapsuleSpec& spec, const ServicePaths& paths,
                                                HostPid init, std::string hashes) {
  return open_at(fmt::format("/proc/{}/root", init.value), spec, paths, init, std::move(hashes));
}

absl::StatusOr<CapsuleFiles> CapsuleFiles::open_at(const std::string& root, const CapsuleSpec& spec,
                                                   const ServicePaths& paths, HostPid init,
                                                   std::string hashes) {
  CapsuleFiles files(spec, paths, init, std::move(hashes));
  GW_ASSIGN_OR_RETURN(files.root_, kernel::open(root, O_PATH | O_DIRECTORY));
  GW_ASSIGN_OR_RETURN(files.root_mount_, mount_of(files.root_.get(), root));
  GW_ASSIGN_OR_RETURN(files.below_, kernel::open(spec.rootfs().empty() ? "/" : spec.rootfs(),
                                                 O_PATH | O_DIRECTORY));
  return files;
}

absl::StatusOr<CapsuleFiles::MountKind> CapsuleFiles::kind_of_mount(uint64_t id) {
  if (const auto known = mounts_.find(id); known != mounts_.end()) return known->second;
  GW_ASSIGN_OR_RETURN(const std::vector<kernel::Mount> mounts, kernel::read_mountinfo(init_));
  for (const kernel::Mount& mount : mounts) {
    MountKind kind;
    const auto binds = spec_.binds();
    const bool bound = std::any_of(binds.begin(), binds.end(), [&](const Bind& bind) {
      return is_or_is_below(mount.point, bind.capsule_path());
    });
    if (bound)
      kind.place = FilePlace::kShared;
    else if (static_cast<uint64_t>(mount.id) == root_mount_)
      kind = {FilePlace::kBelow, true};
    else if (mount.point == "/dev/shm")
      kind.place = FilePlace::kLayer;
    else if (is_local_disk(mount.type))
      kind.place = FilePlace::kBelow;
    mounts_.insert_or_assign(static_cast<uint64_t>(mount.id), kind);
  }
  // A mount that came and went since: nothing that could be compared.
  return mounts_[id];
}

absl::StatusOr<FoundFile> CapsuleFiles::find(const std::string& path) {
  if (!is_plain_path(path))
    return make_error(absl::StatusCode::kInvalidArgument, "{}: not a path of a file", path);
  FoundFile found;
  GW_ASSIGN_OR_RETURN(found.fd, open_below(root_.get(), path, 0));
  GW_ASSIGN_OR_RETURN(found.info, stat_of(found.fd.get()));
  GW_ASSIGN_OR_RETURN(const uint64_t mount_id, mount_of(found.fd.get(), path));
  GW_ASSIGN_OR_RETURN(const MountKind kind, kind_of_mount(mount_id));
  found.place = S_ISREG(found.info.st_mode) ? kind.place : FilePlace::kOther;
  found.on_root = kind.root;
  if (found.place != FilePlace::kBelow || !found.on_root) return found;
  struct stat upper {};
  if (::lstat((paths_.upper() + path).c_str(), &upper) == 0 && S_ISREG(upper.st_mode))
    found.place = FilePlace::kLayer;
  return found;
}

absl::StatusOr<UniqueFd> CapsuleFiles::open_to_read(const FoundFile& file) const {
  return kernel::open(fmt::format("/proc/self/fd/{}", file.fd.get()), O_RDONLY | O_NOATIME);
}

absl::StatusOr<std::string> CapsuleFiles::hash(const std::string& path, const FoundFile& file) {
  if (!file.on_root || file.place != FilePlace::kBelow) {
    GW_ASSIGN_OR_RETURN(const UniqueFd fd, open_to_read(file));
    return hashes_.of(fd.get(), stamp_of(file.info), file.place == FilePlace::kBelow);
  }
  // By the file below itself, whose device number lasts. The overlay may still show an older one
  // under this name, which programs have mapped while the node was upgraded.
  auto own = open_below(below_.get(), path, RESOLVE_NO_XDEV);
  if (own.ok()) {
    FoundFile below;
    below.fd = *std::move(own);
    GW_ASSIGN_OR_RETURN(below.info, stat_of(below.fd.get()));
    const FileStamp a = stamp_of(file.info);
    const FileStamp b = stamp_of(below.info);
    if (S_ISREG(below.info.st_mode) && a.size == b.size && a.mtime_ns == b.mtime_ns &&
        a.ctime_ns == b.ctime_ns && (a.inode & UINT32_MAX) == (b.inode & UINT32_MAX)) {
      GW_ASSIGN_OR_RETURN(const UniqueFd fd, open_to_read(below));
      return hashes_.of(fd.get(), b, true);
    }
  }
  GW_ASSIGN_OR_RETURN(const UniqueFd fd, open_to_read(file));
  return hashes_.of(fd.get(), stamp_of(file.info), false);
}

absl::StatusOr<LayerNode> CapsuleFiles::node_of(const FoundFile& file) const {
  GW_ASSIGN_OR_RETURN(const struct stat info, stat_of(file.fd.get()));
  const FileStamp stamp = stamp_of(info);
  LayerNode node;
  node.set_mode(info.st_mode);
  node.set_uid(info.st_uid);
  node.set_gid(info.st_gid);
  if (S_ISREG(info.st_mode)) node.set_size(stamp.size);
  node.set_mtime_ns(stamp.mtime_ns);
  node.set_atime_ns(int64_t{info.st_atim.tv_sec} * 1'000'000'000 + info.st_atim.tv_nsec);
  GW_RETURN_IF_ERROR(add_xattrs(file.fd.get(), node));
  return node;
}

absl::StatusOr<std::vector<std::pair<std::string, LayerNode>>> CapsuleFiles::folders_to(
    const std::string& path) {
  std::vector<std::pair<std::string, LayerNode>> folders;
  for (size_t at = path.find('/', 1); at != std::string::npos; at = path.find('/', at + 1)) {
    const std::string folder = path.substr(0, at);
    FoundFile found;
    GW_ASSIGN_OR_RETURN(found.fd, open_below(root_.get(), folder, 0));
    GW_ASSIGN_OR_RETURN(LayerNode node, node_of(found));
    folders.emplace_back(folder, std::move(node));
  }
  return folders;
}

}  // namespace godwit::capsule
