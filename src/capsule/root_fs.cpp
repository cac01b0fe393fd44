#include "capsule/root_fs.h"

#include <fcntl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "base/status.h"
#include "base/unique_fd.h"
#include "capsule/host_mounts.h"
#include "kernel/syscalls.h"

namespace godwit::capsule {
namespace {

absl::Status mount_at(const char* source, const std::string& target, const char* type,
                      unsigned long flags, const char* data = nullptr) {
  if (::mount(source, target.c_str(), type, flags, data) == 0) return absl::OkStatus();
  return errno_status(
      errno, fmt::format("mount(\"{}\", \"{}\", {}, {:#x}, \"{}\")", source, target,
                         type != nullptr ? type : "-", flags, data != nullptr ? data : ""));
}

// A host path that is bound later, opened before anything covers it.
struct BindSource {
  UniqueFd fd;
  bool directory = false;
  std::string target;  // in the capsule
};

absl::StatusOr<std::vector<BindSource>> open_binds(const CapsuleSpec& spec) {
  std::vector<BindSource> sources;
  for (const Bind& bind : spec.binds()) {
    BindSource source;
    GW_ASSIGN_OR_RETURN(source.fd, kernel::open(bind.host_path(), O_PATH));
    struct stat info {};
    if (::fstat(source.fd.get(), &info) != 0) return errno_status(errno, bind.host_path());
    source.directory = S_ISDIR(info.st_mode);
    source.target = bind.capsule_path();
    sources.push_back(std::move(source));
  }
  return sources;
}

// Parents and the mount point itself, inside `root`. Symbolic links in the way are refused: they
// would lead out of the capsule's tree before pivot_root.
absl::Status make_mount_point(const std::string& root, const std::string& path, bool directory) {
  for (size_t at = 1; at != std::string::npos;) {
    at = path.find('/', at + 1);
    const std::string part = root + path.substr(0, at);
    const bool last = at == std::string::npos;
    struct stat info {};
    if (::lstat(part.c_str(), &info) == 0) {
      if (S_ISLNK(info.st_mode)) {
        return make_error(absl::StatusCode::kInvalidArgument,
                          "{}: is a symbolic link in the capsule: name the path it leads to",
                          path.substr(0, at));
      }
      if (!last || S_ISDIR(info.st_mode) == directory) continue;
      return make_error(absl::StatusCode::kInvalidArgument,
                        "{}: one of host and capsule path is a folder, the other is not", path);
    }
    if (last && !directory) {
      const UniqueFd fd(::open(part.c_str(), O_CREAT | O_WRONLY | O_CLOEXEC, 0644));
      if (!fd) return errno_status(errno, fmt::format("open(\"{}\", O_CREAT)", part));
    } else if (::mkdir(part.c_str(), 0755) != 0) {
      return errno_status(errno, fmt::format("mkdir(\"{}\")", part));
    }
  }
  return absl::OkStatus();
}

absl::Status mount_overlay(const RootPlan& plan) {
  const std::string lower = plan.spec->rootfs().empty() ? "/" : plan.spec->rootfs();
  // overlayfs splits its options at ',' and lowerdir at ':'.
  for (const std::string& path : {lower, plan.paths.dir}) {
    if (path.find_first_of(",:\\\"") != std::string::npos) {
      return make_error(absl::StatusCode::kInvalidArgument,
                        "{}: a path with one of , : \\ \" cannot be a layer of overlayfs", path);
    }
  }
  // The three options keep the upper folder complete in itself: no redirects, no metadata-only
  // copies, no index of the lower's inodes, so a copy of it is the layer.
  const std::string options =
      fmt::format("lowerdir={},upperdir={},workdir={},redirect_dir=nofollow,index=off,metacopy=off",
                  lower, plan.paths.upper(), plan.paths.work());
  absl::Status status = mount_at("godwit", plan.paths.root(), "overlay", 0, options.c_str());
  if (errno_of(status) == EINVAL) {
    return annotate(status, fmt::format("the file system of {} cannot hold a writable layer (it "
                                        "needs extended attributes trusted.*, as on ext4, xfs, "
                                        "btrfs, tmpfs): choose another state folder",
                                        plan.paths.layer()));
  }
  return status;
}

absl::Status mount_dev(const std::string& root, const ServicePaths& paths) {
  const std::string dev = root + "/dev";
  GW_RETURN_IF_ERROR(make_mount_point(root, "/dev", true));
  GW_RETURN_IF_ERROR(
      mount_at("tmpfs", dev, "tmpfs", MS_NOSUID | MS_STRICTATIME, "mode=755,size=65536k"));
  struct Node {
    const char* name;
    unsigned minor;
    unsigned major;
  };
  // Documentation/admin-guide/devices.txt
  for (const Node node : {Node{"null", 3, 1}, Node{"zero", 5, 1}, Node{"full", 7, 1},
                          Node{"random", 8, 1}, Node{"urandom", 9, 1}, Node{"tty", 0, 5}}) {
    const std::string path = dev + "/" + node.name;
    if (::mknod(path.c_str(), S_IFCHR | 0666, makedev(node.major, node.minor)) != 0 ||
        ::chmod(path.c_str(), 0666) != 0) {
      return errno_status(errno, fmt::format("mknod(\"{}\")", path));
    }
  }
  for (const char* name : {"pts", "shm", "mqueue"}) {
    if (::mkdir((dev + "/" + name).c_str(), 0755) != 0) {
      return errno_status(errno, fmt::format("mkdir(\"{}/{}\")", dev, name));
    }
  }
  // gid 5 is "tty" on Debian and its relatives.
  GW_RETURN_IF_ERROR(mount_at("devpts", dev + "/pts", "devpts", MS_NOSUID | MS_NOEXEC,
                              "newinstance,ptmxmode=0666,mode=620,gid=5"));
  GW_RETURN_IF_ERROR(mount_at(paths.shm().c_str(), dev + "/shm", nullptr, MS_BIND));
  // Not every kernel has POSIX message queues.
  const absl::Status mqueue =
      mount_at("mqueue", dev + "/mqueue", "mqueue", MS_NOSUID | MS_NODEV | MS_NOEXEC);
  if (!mqueue.ok() && errno_of(mqueue) != ENODEV) return mqueue;
  const std::pair<const char*, const char*> links[] = {{"pts/ptmx", "ptmx"},
                                                       {"/proc/self/fd", "fd"},
                                                       {"/proc/self/fd/0", "stdin"},
                                                       {"/proc/self/fd/1", "stdout"},
                                                       {"/proc/self/fd/2", "stderr"}};
  for (const auto& [to, name] : links) {
    if (::symlink(to, (dev + "/" + name).c_str()) != 0) {
      return errno_status(errno, fmt::format("symlink(\"{}\", \"{}/{}\")", to, dev, name));
    }
  }
  return absl::OkStatus();
}

// Replaces what is at `path`, be it a link to somewhere in /run.
absl::Status write_etc_file(const std::string& path, std::string_view text) {
  if (::unlink(path.c_str()) != 0 && errno != ENOENT) {
    return errno_status(errno, fmt::format("unlink(\"{}\")", path));
  }
  const UniqueFd fd(::open(path.c_str(), O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0644));
  if (!fd) return errno_status(errno, fmt::format("open(\"{}\", O_CREAT)", path));
  if (::write(fd.get(), text.data(), text.size()) != static_cast<ssize_t>(text.size())) {
    return errno_status(errno, fmt::format("write(\"{}\")", path));
  }
  return absl::OkStatus();
}

// The host's resolvers. systemd-resolved's stub listens on the host's loopback only, which is not
// the capsule's: then its real servers.
std::string resolv_conf() {
  auto text = kernel::read_file("/etc/resolv.conf", 65536);
  if (text.ok() && text->find("127.0.0.53") != std::string::npos) {
    auto real = kernel::read_file("/run/systemd/resolve/resolv.conf", 65536);
    if (real.ok()) return *std::move(real);
  }
  return text.ok() ? *std::move(text) : std::string();
}

absl::Status write_etc(const std::string& root, const CapsuleSpec& spec, const std::string& host) {
  const std::string etc = root + "/etc";
  if (::mkdir(etc.c_str(), 0755) != 0 && errno != EEXIST) {
    return errno_status(errno, fmt::format("mkdir(\"{}\")", etc));
  }
  std::string hosts = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n";
  for (const Address& address : spec.addresses()) {
    hosts += fmt::format("{}\t{}\n", address.ip(), host);
  }
  if (spec.addresses().empty()) hosts += fmt::format("127.0.1.1\t{}\n", host);
  GW_RETURN_IF_ERROR(write_etc_file(etc + "/hosts", hosts));
  GW_RETURN_IF_ERROR(write_etc_file(etc + "/hostname", host + "\n"));
  return write_etc_file(etc + "/resolv.conf", resolv_conf());
}

absl::Status bring_host_mounts(const std::string& root, const std::vector<HostMount>& host_mounts) {
  for (const HostMount& mount : host_mounts) {
    const std::string target = root + mount.path;
    struct stat info {};
    if (::lstat(target.c_str(), &info) != 0 || !S_ISDIR(info.st_mode)) continue;
    GW_RETURN_IF_ERROR(mount_at(mount.path.c_str(), target, nullptr, MS_BIND));
    GW_RETURN_IF_ERROR(mount_at(mount.path.c_str(), target, nullptr,
                                MS_BIND | MS_REMOUNT | MS_RDONLY | mount.locked_flags));
  }
  return absl::OkStatus();
}

absl::Status cover(const std::string& root, const std::vector<std::string>& masked) {
  for (const std::string& path : masked) {
    struct stat info {};
    if (::lstat((root + path).c_str(), &info) != 0 || !S_ISDIR(info.st_mode)) continue;
    GW_RETURN_IF_ERROR(mount_at("tmpfs", root + path, "tmpfs",
                                MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC,
                                "mode=555,size=4k,nr_inodes=2"));
  }
  return absl::OkStatus();
}

absl::Status pivot(const std::string& root) {
  if (::chdir(root.c_str()) != 0) return errno_status(errno, fmt::format("chdir(\"{}\")", root));
  // pivot_root(2), "pivot_root(".", ".")": the old root ends up on top of the new one and is
  // detached from there.
  if (::syscall(SYS_pivot_root, ".", ".") != 0) {
    return errno_status(errno, fmt::format("pivot_root(\"{}\")", root));
  }
  if (::umount2(".", MNT_DETACH) != 0) return errno_status(errno, "umount2(old root)");
  if (::chdir("/") != 0) return errno_status(errno, "chdir(\"/\")");
  return absl::OkStatus();
}

}  // namespace

absl::Status check_root(const CapsuleSpec& spec) {
  for (const Bind& bind : spec.binds()) {
    for (const std::string& path : {bind.host_path(), bind.capsule_path()}) {
      if (!path.starts_with("/") || path.find("/../") != std::string::npos ||
          path.ends_with("/..") || path.find("//") != std::string::npos) {
        return make_error(absl::StatusCode::kInvalidArgument,
                          "bind {}:{}: both must be absolute paths without ..", bind.host_path(),
                          bind.capsule_path());
      }
    }
    if (bind.capsule_path() == "/") {
      return absl::InvalidArgumentError("bind onto \"/\": use --rootfs");
    }
    if (::access(bind.host_path().c_str(), F_OK) != 0) {
      return errno_status(errno, fmt::format("bind {}", bind.host_path()));
    }
  }
  if (spec.rootfs().empty()) return absl::OkStatus();
  struct stat info {};
  if (::stat(spec.rootfs().c_str(), &info) != 0) {
    return errno_status(errno, fmt::format("rootfs {}", spec.rootfs()));
  }
  if (!spec.rootfs().starts_with("/") || !S_ISDIR(info.st_mode)) {
    return make_error(absl::StatusCode::kInvalidArgument,
                      "rootfs {}: must be the absolute path of a folder", spec.rootfs());
  }
  return absl::OkStatus();
}

absl::Status enter_root(const RootPlan& plan) {
  const std::string root = plan.paths.root();
  const std::string host =
      plan.spec->hostname().empty() ? plan.spec->name() : plan.spec->hostname();
  // Nothing of what follows may reach the host's mount table.
  GW_RETURN_IF_ERROR(mount_at("none", "/", nullptr, MS_REC | MS_PRIVATE));
  GW_ASSIGN_OR_RETURN(const std::vector<BindSource> binds, open_binds(*plan.spec));
  std::vector<HostMount> host_mounts;
  if (plan.spec->rootfs().empty()) {
    GW_ASSIGN_OR_RETURN(host_mounts, local_disk_mounts());
  }
  GW_RETURN_IF_ERROR(mount_overlay(plan));
  GW_RETURN_IF_ERROR(bring_host_mounts(root, host_mounts));
  GW_RETURN_IF_ERROR(cover(root, plan.masked));
  GW_RETURN_IF_ERROR(make_mount_point(root, "/proc", true));
  GW_RETURN_IF_ERROR(make_mount_point(root, "/sys", true));
  GW_RETURN_IF_ERROR(mount_at("proc", root + "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC));
  GW_RETURN_IF_ERROR(
      mount_at("sysfs", root + "/sys", "sysfs", MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_RDONLY));
  GW_RETURN_IF_ERROR(mount_dev(root, plan.paths));
  if (plan.write_etc) GW_RETURN_IF_ERROR(write_etc(root, *plan.spec, host));
  for (const BindSource& bind : binds) {
    GW_RETURN_IF_ERROR(make_mount_point(root, bind.target, bind.directory));
    const std::string source = fmt::format("/proc/self/fd/{}", bind.fd.get());
    GW_RETURN_IF_ERROR(mount_at(source.c_str(), root + bind.target, nullptr, MS_BIND | MS_REC));
  }
  GW_RETURN_IF_ERROR(pivot(root));
  if (::sethostname(host.c_str(), host.size()) != 0) {
    return errno_status(errno, fmt::format("sethostname(\"{}\")", host));
  }
  return absl::OkStatus();
}

}  // namespace godwit::capsule
