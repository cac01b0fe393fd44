#include "network/bpf.h"

#include <linux/magic.h>
#include <sys/file.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <filesystem>

#include "base/status.h"
#include "kernel/syscalls.h"

namespace godwit::network::bpf {
namespace {

// struct bpf_link_info of 6.6 up to the part that is read; a kernel without it writes less.
struct TcxLinkInfo {
  uint32_t type;
  uint32_t id;
  uint32_t prog_id;
  uint32_t pad;
  uint32_t ifindex;  // union { struct { __u32 ifindex; __u32 attach_type; } tcx; ... }
  uint32_t attach_type;
};
static_assert(sizeof(TcxLinkInfo) == 24);

uint64_t pointer(const void* p) { return reinterpret_cast<uint64_t>(p); }

// No helper that is for GPL-compatible programs only is needed.
constexpr char kNoLicense[] = "";

// Whoever mounts or unmounts holds the parent folder, so that neither pulls the mount away from
// under the other.
absl::StatusOr<UniqueFd> lock_parent(const std::string& folder) {
  const std::string parent = std::filesystem::path(folder).parent_path().string();
  GW_ASSIGN_OR_RETURN(UniqueFd fd, kernel::open(parent, O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  while (::flock(fd.get(), LOCK_EX) != 0) {
    if (errno != EINTR) return errno_status(errno, fmt::format("flock(\"{}\")", parent));
  }
  return fd;
}

bool is_bpffs(const std::string& folder) {
  struct statfs fs {};
  return ::statfs(folder.c_str(), &fs) == 0 && fs.f_type == BPF_FS_MAGIC;
}

// "maps.debug" and "progs.debug" are the kernel's own; no pin has a dot in its name.
bool has_pins(const std::string& folder) {
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(folder, error)) {
    if (entry.path().filename().string().find('.') == std::string::npos) return true;
  }
  return static_cast<bool>(error);
}

}  // namespace

absl::StatusOr<UniqueFd> load_classifier(const char* name, std::span<const bpf_insn> program) {
  bpf_attr attr{};
  attr.prog_type = BPF_PROG_TYPE_SCHED_CLS;
  return load_program(attr, name, kNoLicense, program);
}

absl::StatusOr<UniqueFd> load(const CgroupHook& hook, const char* name,
                              std::span<const bpf_insn> program) {
  bpf_attr attr{};
  attr.prog_type = hook.program;
  attr.expected_attach_type = hook.attach;
  return load_program(attr, name, kNoLicense, program);
}

absl::StatusOr<UniqueFd> attach_cgroup(int program, int cgroup, const CgroupHook& hook) {
  bpf_attr attr{};
  attr.link_create.prog_fd = static_cast<uint32_t>(program);
  attr.link_create.target_fd = static_cast<uint32_t>(cgroup);
  attr.link_create.attach_type = hook.attach;
  const long fd = command(BPF_LINK_CREATE, attr);
  if (fd < 0) return errno_status(errno, "bpf(BPF_LINK_CREATE, cgroup): CONFIG_CGROUP_BPF");
  return UniqueFd(static_cast<int>(fd));
}

absl::StatusOr<UniqueFd> attach_tcx(int program, int ifindex, uint32_t where) {
  bpf_attr attr{};
  attr.link_create.prog_fd = static_cast<uint32_t>(program);
  attr.link_create.target_ifindex = static_cast<uint32_t>(ifindex);
  attr.link_create.attach_type = where;
  const long fd = command(BPF_LINK_CREATE, attr);
  if (fd < 0) {
    return errno_status(errno, fmt::format("bpf(BPF_LINK_CREATE, TCX {} of link {}): Linux 6.6",
                                           where == kTcxIngress ? "ingress" : "egress", ifindex));
  }
  return UniqueFd(static_cast<int>(fd));
}

absl::StatusOr<int> tcx_link_ifindex(int link) {
  TcxLinkInfo info{};
  bpf_attr attr{};
  attr.info.bpf_fd = static_cast<uint32_t>(link);
  attr.info.info_len = sizeof info;
  attr.info.info = pointer(&info);
  if (command(BPF_OBJ_GET_INFO_BY_FD, attr) != 0) {
    return errno_status(errno, fmt::format("bpf(BPF_OBJ_GET_INFO_BY_FD, {})", link));
  }
  return static_cast<int>(info.ifindex);
}

absl::Status pin(int object, const std::string& path) {
  bpf_attr attr{};
  attr.pathname = pointer(path.c_str());
  attr.bpf_fd = static_cast<uint32_t>(object);
  if (command(BPF_OBJ_PIN, attr) != 0) {
    return errno_status(errno, fmt::format("bpf(BPF_OBJ_PIN, \"{}\")", path));
  }
  return absl::OkStatus();
}

absl::StatusOr<UniqueFd> open_pinned(const std::string& path) {
  bpf_attr attr{};
  attr.pathname = pointer(path.c_str());
  const long fd = command(BPF_OBJ_GET, attr);
  if (fd < 0) return errno_status(errno, fmt::format("bpf(BPF_OBJ_GET, \"{}\")", path));
  return UniqueFd(static_cast<int>(fd));
}

absl::Status mount_bpffs(const std::string& folder) {
  GW_ASSIGN_OR_RETURN(const UniqueFd lock, lock_parent(folder));
  if (::mkdir(folder.c_str(), 0700) != 0 && errno != EEXIST) {
    return errno_status(errno, fmt::format("mkdir(\"{}\")", folder));
  }
  if (is_bpffs(folder)) return absl::OkStatus();
  if (::mount("bpffs", folder.c_str(), "bpf", MS_NOSUID | MS_NODEV | MS_NOEXEC, "mode=0700") != 0) {
    return errno_status(errno, fmt::format("mount(bpffs on \"{}\"): gates are kept there (needs "
                                           "CONFIG_BPF_SYSCALL and CAP_SYS_ADMIN)",
                                           folder));
  }
  return absl::OkStatus();
}

absl::Status unmount_bpffs_if_empty(const std::string& folder) {
  absl::StatusOr<UniqueFd> lock = lock_parent(folder);
  if (!lock.ok()) return absl::OkStatus();  // no parent: nothing there
  if (!is_bpffs(folder) || has_pins(folder)) return absl::OkStatus();
  if (::umount2(folder.c_str(), UMOUNT_NOFOLLOW) != 0) {
    if (errno == EBUSY) return absl::OkStatus();
    return errno_status(errno, fmt::format("umount2(\"{}\")", folder));
  }
  ::rmdir(folder.c_str());
  return absl::OkStatus();
}

}  // namespace godwit::network::bpf
