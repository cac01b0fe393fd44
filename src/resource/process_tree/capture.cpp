#include <dirent.h>
#include <fcntl.h>
#include <sys/ioctl.h>

#include <algorithm>
#include <charconv>
#include <cstdlib>

#include "absl/cleanup/cleanup.h"
#include "absl/container/flat_hash_set.h"
#include "base/status.h"
#include "kernel/proc/stat.h"
#include "kernel/proc/status.h"
#include "kernel/syscalls.h"
#include "resource/process_tree/process_tree.h"
#include "resource/terminal/terminal.h"

namespace godwit::resource {
namespace {

// include/uapi/linux/nsfs.h, Linux 6.11.
constexpr unsigned long kNsGetPidInPidns = _IOR(0xb7, 0x8, int);
constexpr unsigned long kNsGetPidFromPidns = _IOR(0xb7, 0x6, int);

absl::StatusOr<std::vector<HostPid>> tasks_of(HostPid pid) {
  const std::string path = fmt::format("/proc/{}/task", pid.value);
  DIR* dir = ::opendir(path.c_str());
  if (dir == nullptr) return errno_status(errno, fmt::format("opendir({})", path));
  absl::Cleanup close_dir = [dir] { ::closedir(dir); };
  std::vector<HostPid> tasks;
  while (const dirent* entry = ::readdir(dir)) {
    const int tid = std::atoi(entry->d_name);
    if (tid > 0) tasks.push_back({tid});
  }
  std::sort(tasks.begin(), tasks.end());
  // The leader first: everything that is per process goes through it.
  std::stable_partition(tasks.begin(), tasks.end(), [&](HostPid t) { return t == pid; });
  return tasks;
}

// Processes of the capsule that are in nobody's cgroup.procs: zombies (cgroups(7)). The capsule's
// own /proc lists all of its pids; task/TID/children needs CONFIG_PROC_CHILDREN, which is rare.
absl::StatusOr<std::vector<HostPid>> others_of(HostPid init, std::span<const HostPid> members,
                                               const PidTranslator& translate) {
  absl::flat_hash_set<int32_t> known = {1};
  for (HostPid pid : members) {
    GW_ASSIGN_OR_RETURN(const ImagePid image, translate(pid));
    known.insert(image.value);
  }
  const std::string path = fmt::format("/proc/{}/root/proc", init.value);
  DIR* dir = ::opendir(path.c_str());
  if (dir == nullptr) return errno_status(errno, fmt::format("opendir({})", path));
  absl::Cleanup close_dir = [dir] { ::closedir(dir); };
  std::vector<HostPid> others;
  while (const dirent* entry = ::readdir(dir)) {
    const int32_t pid = std::atoi(entry->d_name);
    if (pid <= 0 || known.contains(pid)) continue;
    const HostPid host = translate.back({pid});
    if (host.value > 0) others.push_back(host);
  }
  return others;
}

struct Builder {
  HostPid init;
  const PidTranslator& translate;
  ProcessTree tree;

  absl::StatusOr<int32_t> parent_of(HostPid ppid) const {
    if (ppid == init) return 1;
    GW_ASSIGN_OR_RETURN(const ImagePid parent, translate(ppid));
    if (parent.value == 0)
      return make_error(absl::StatusCode::kFailedPrecondition,
                        "its parent, process {} of this machine, is outside of the capsule",
                        ppid.value);
    return parent.value;
  }

  absl::Status add(HostPid pid, std::span<const HostPid> tasks) {
    GW_ASSIGN_OR_RETURN(const kernel::TaskStatus status, kernel::read_task_status(pid));
    GW_ASSIGN_OR_RETURN(const kernel::TaskStat stat, kernel::read_task_stat(pid));
    ProcessTreeState::Process state;
    TreeProcess process;
    process.pid = status.image_tgid();
    process.host_pid = pid;
    process.comm = status.name;
    process.zombie = status.state == 'Z' && tasks.size() <= 1;
    state.set_pid(process.pid.value);
    // Of one that is looked at alone nobody's parent matters.
    auto parent = pid == init ? absl::StatusOr<int32_t>(0) : parent_of(status.ppid);
    if (!parent.ok())
      return annotate(parent.status(),
                      fmt::format("process {} ({})", process.pid.value, status.name));
    state.set_parent(*parent);
    state.set_process_group(status.image_pgid().value);
    state.set_session(status.image_sid().value);
    state.set_exit_signal(stat.exit_signal);
    state.set_zombie(process.zombie);
    if (process.zombie) {
      state.set_wait_status(stat.exit_code);
      state.set_name(status.name);
    } else {
      const auto terminal = terminal_of_device(static_cast<uint32_t>(stat.tty_nr));
      if (terminal) state.set_terminal(*terminal + 1);
      for (HostPid tid : tasks) {
        if (tid != pid && kernel::is_kernel_worker(tid)) continue;
        GW_ASSIGN_OR_RETURN(const ImagePid image, translate(tid));
        if (image.value == 0) {  // has just ended
          // Gone and reaped, since a leader stays for its threads.
          if (tid == pid) return errno_status(ESRCH, fmt::format("process {}", pid.value));
          continue;
        }
        process.tasks.push_back({image, tid});
        state.add_threads(image.value);
      }
    }
    *tree.state.add_processes() = std::move(state);
    tree.processes.push_back(std::move(process));
    return absl::OkStatus();
  }
};

bool has_ended(const absl::Status& status) {
  return errno_of(status) == ENOENT || errno_of(status) == ESRCH;
}

}  // namespace

absl::StatusOr<PidTranslator> PidTranslator::of(HostPid init) {
  GW_ASSIGN_OR_RETURN(
      UniqueFd fd, kernel::open(fmt::format("/proc/{}/ns/pid", init.value), O_RDONLY | O_CLOEXEC));
  return PidTranslator(fd.release());
}

absl::StatusOr<ImagePid> PidTranslator::operator()(HostPid tid) const {
  const int result = ::ioctl(namespace_.get(), kNsGetPidInPidns, tid.value);
  if (result > 0) return ImagePid{result};
  if (errno == ESRCH) return ImagePid{0};
  GW_ASSIGN_OR_RETURN(const kernel::TaskStatus status, kernel::read_task_status(tid));
  return status.ns_pid.size() > 1 ? status.image_pid() : ImagePid{0};
}

HostPid PidTranslator::back(ImagePid pid) const {
  const int result = ::ioctl(namespace_.get(), kNsGetPidFromPidns, pid.value);
  return {result > 0 ? result : 0};
}

absl::StatusOr<ProcessTree> capture_process_tree(std::span<const HostPid> members, HostPid init,
                                                 const PidTranslator& translate) {
  Builder builder{init, translate, {}};
  for (HostPid pid : members) {
    auto tasks = tasks_of(pid);
    if (!tasks.ok()) {
      if (has_ended(tasks.status())) continue;
      return tasks.status();
    }
    const absl::Status added = builder.add(pid, *tasks);
    if (!added.ok()) {
      if (has_ended(added)) continue;
      return added;
    }
  }
  GW_ASSIGN_OR_RETURN(const std::vector<HostPid> others, others_of(init, members, translate));
  const auto of_tree = [&](HostPid parent) {
    return parent == init || std::find(members.begin(), members.end(), parent) != members.end();
  };
  for (HostPid pid : others) {
    const auto stat = kernel::read_task_stat(pid);
    // A member that was born after the list was read is in the next one. A zombie of somebody else
    // was not born in the tree (there are such where `init` is no pid 1: node/process_check.h).
    if (!stat.ok() || stat->state != 'Z' || !of_tree(stat->ppid)) continue;
    const HostPid self[] = {pid};
    const absl::Status added = builder.add(pid, self);
    if (!added.ok() && !has_ended(added)) return added;
  }
  // By pid, so that the same tree gives the same bytes.
  auto* list = builder.tree.state.mutable_processes();
  std::sort(list->begin(), list->end(),
            [](const auto& a, const auto& b) { return a.pid() < b.pid(); });
  std::sort(builder.tree.processes.begin(), builder.tree.processes.end(),
            [](const auto& a, const auto& b) { return a.pid < b.pid; });
  return std::move(builder.tree);
}

}  // namespace godwit::resource
