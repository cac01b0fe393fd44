#include "network/netns.h"

#include <fcntl.h>
#include <sched.h>
#include <sys/file.h>
#include <sys/mount.h>
#include <sys/stat.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <thread>

#include "base/log.h"
#include "base/status.h"
#include "kernel/syscalls.h"

namespace godwit::network {
namespace {

constexpr char kFolder[] = "/run/netns";

std::string path_of(const std::string& name) { return fmt::format("{}/{}", kFolder, name); }

// Two labs of one machine may make and delete names at the same time: /run itself is the lock.
absl::StatusOr<UniqueFd> lock_names() {
  GW_ASSIGN_OR_RETURN(UniqueFd run, kernel::open("/run", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  while (::flock(run.get(), LOCK_EX) != 0) {
    if (errno != EINTR) return errno_status(errno, "flock(/run)");
  }
  return run;
}

// /run/netns is mounted on itself and shared, as ip-netns(8) does, so that names that come and go
// do so in every mount namespace that has a copy.
absl::Status prepare_folder() {
  if (::mkdir(kFolder, 0755) != 0 && errno != EEXIST) {
    return errno_status(errno, fmt::format("mkdir(\"{}\")", kFolder));
  }
  if (::mount("", kFolder, "none", MS_SHARED | MS_REC, nullptr) == 0) return absl::OkStatus();
  if (errno != EINVAL) return errno_status(errno, fmt::format("mount(\"{}\", shared)", kFolder));
  if (::mount(kFolder, kFolder, "none", MS_BIND | MS_REC, nullptr) != 0) {
    return errno_status(errno, fmt::format("mount(\"{0}\" on \"{0}\")", kFolder));
  }
  if (::mount("", kFolder, "none", MS_SHARED | MS_REC, nullptr) != 0) {
    return errno_status(errno, fmt::format("mount(\"{}\", shared)", kFolder));
  }
  return absl::OkStatus();
}

bool valid_name(const std::string& name) {
  return !name.empty() && name.size() < 200 && name[0] != '.' &&
         name.find('/') == std::string::npos;
}

}  // namespace

absl::StatusOr<UniqueFd> current_netns() {
  return kernel::open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC);
}

absl::StatusOr<UniqueFd> open_named_netns(const std::string& name) {
  return kernel::open(path_of(name), O_RDONLY | O_CLOEXEC);
}

absl::StatusOr<NetnsScope> NetnsScope::enter(int netns_fd) {
  GW_ASSIGN_OR_RETURN(UniqueFd back, current_netns());
  if (::setns(netns_fd, CLONE_NEWNET) != 0) {
    return errno_status(errno, fmt::format("setns({}, CLONE_NEWNET)", netns_fd));
  }
  return NetnsScope(std::move(back));
}

absl::StatusOr<NetnsScope> NetnsScope::enter_named(const std::string& name) {
  GW_ASSIGN_OR_RETURN(UniqueFd fd, open_named_netns(name));
  return enter(fd.get());
}

NetnsScope::~NetnsScope() {
  if (!back_) return;
  if (::setns(back_.get(), CLONE_NEWNET) != 0) {
    log_error("setns back to the own network namespace failed: errno {}", errno);
    std::abort();
  }
}

absl::StatusOr<UniqueFd> create_anonymous_netns() {
  // A thread of its own, so that the caller's namespace is never in doubt.
  absl::StatusOr<UniqueFd> result;
  std::thread([&result] {
    if (::unshare(CLONE_NEWNET) != 0) {
      result = errno_status(errno, "unshare(CLONE_NEWNET)");
    } else {
      result = current_netns();
    }
  }).join();
  return result;
}

absl::Status create_named_netns(const std::string& name) {
  if (!valid_name(name)) {
    return make_error(absl::StatusCode::kInvalidArgument, "\"{}\": not a name for a namespace",
                      name);
  }
  GW_ASSIGN_OR_RETURN(const UniqueFd lock, lock_names());
  GW_RETURN_IF_ERROR(prepare_folder());
  const std::string path = path_of(name);
  GW_ASSIGN_OR_RETURN(const UniqueFd file,
                      kernel::open(path, O_RDONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0));
  absl::Status status;
  absl::StatusOr<UniqueFd> netns = create_anonymous_netns();
  if (!netns.ok()) {
    status = netns.status();
  } else {
    const std::string source = fmt::format("/proc/self/fd/{}", netns->get());
    if (::mount(source.c_str(), path.c_str(), "none", MS_BIND, nullptr) != 0) {
      status = errno_status(errno, fmt::format("mount(netns on \"{}\")", path));
    }
  }
  if (!status.ok()) ::unlink(path.c_str());
  return status;
}

absl::Status delete_named_netns(const std::string& name) {
  if (!valid_name(name)) {
    return make_error(absl::StatusCode::kInvalidArgument, "\"{}\": not a name for a namespace",
                      name);
  }
  GW_ASSIGN_OR_RETURN(const UniqueFd lock, lock_names());
  const std::string path = path_of(name);
  // EINVAL: a file without a mount, left by somebody who died between the two.
  while (::umount2(path.c_str(), MNT_DETACH | UMOUNT_NOFOLLOW) == 0) {
  }
  if (errno != EINVAL && errno != ENOENT) {
    return errno_status(errno, fmt::format("umount2(\"{}\")", path));
  }
  if (::unlink(path.c_str()) != 0 && errno != ENOENT) {
    return errno_status(errno, fmt::format("unlink(\"{}\")", path));
  }
  std::error_code error;
  if (std::filesystem::is_empty(kFolder, error) && !error) {
    ::umount2(kFolder, UMOUNT_NOFOLLOW);  // busy or not a mount: stays as it is
    ::rmdir(kFolder);
  }
  return absl::OkStatus();
}

std::vector<std::string> named_netns(const std::string& prefix) {
  std::vector<std::string> names;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(kFolder, error)) {
    const std::string name = entry.path().filename().string();
    if (name.starts_with(prefix)) names.push_back(name);
  }
  std::sort(names.begin(), names.end());
  return names;
}

absl::Status write_net_sysctl(const std::string& key, const std::string& value) {
  return kernel::write_file("/proc/sys/net/" + key, value);
}

absl::Status write_net_sysctl_if_present(const std::string& key, const std::string& value) {
  const absl::Status status = write_net_sysctl(key, value);
  return errno_of(status) == ENOENT ? absl::OkStatus() : status;
}

}  // namespace godwit::network
