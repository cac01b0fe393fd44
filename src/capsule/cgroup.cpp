#include "capsule/cgroup.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>

#include "base/status.h"
#include "capsule/host_mounts.h"
#include "kernel/syscalls.h"

namespace godwit::capsule {
namespace {

std::string_view field(std::string_view line, int index) {
  size_t at = 0;
  for (; index > 0; --index) {
    at = line.find(' ', at);
    if (at == std::string_view::npos) return {};
    ++at;
  }
  return line.substr(at, line.find(' ', at) - at);
}

std::vector<HostPid> parse_pids(std::string_view text) {
  std::vector<HostPid> pids;
  const char* at = text.data();
  const char* const end = at + text.size();
  while (at < end) {
    pid_t pid = 0;
    const auto parsed = std::from_chars(at, end, pid);
    if (parsed.ec != std::errc()) break;
    // 0 stands for a process of another pid namespace, which ours cannot be.
    if (pid > 0) pids.push_back({pid});
    at = parsed.ptr + 1;
  }
  return pids;
}

}  // namespace

absl::StatusOr<std::string> cgroup2_mount() {
  GW_ASSIGN_OR_RETURN(const std::string text, kernel::read_file("/proc/self/mountinfo"));
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find('\n', at), text.size());
    const std::string_view line(&text[at], end - at);
    at = end + 1;
    const size_t dash = line.find(" - ");
    if (dash == std::string_view::npos) continue;
    if (line.substr(dash + 3).starts_with("cgroup2 ")) return unescape_mount_field(field(line, 4));
  }
  return absl::FailedPreconditionError(
      "no cgroup v2 hierarchy is mounted: mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified");
}

absl::StatusOr<Cgroup> service_cgroup(std::string_view node, std::string_view service) {
  GW_ASSIGN_OR_RETURN(const std::string mount, cgroup2_mount());
  return Cgroup(fmt::format("{}/godwit/{}/{}", mount, node, service));
}

absl::Status Cgroup::create() const {
  for (size_t at = 1; at != std::string::npos;) {
    at = path_.find('/', at + 1);
    const std::string part = path_.substr(0, at);
    if (::mkdir(part.c_str(), 0755) != 0 && errno != EEXIST) {
      return errno_status(errno, fmt::format("mkdir(\"{}\")", part));
    }
  }
  return absl::OkStatus();
}

bool Cgroup::exists() const { return ::access(path_.c_str(), F_OK) == 0; }

absl::StatusOr<UniqueFd> Cgroup::open() const {
  return kernel::open(path_, O_RDONLY | O_DIRECTORY);
}

absl::Status Cgroup::add(HostPid pid) const {
  return kernel::write_file(path_ + "/cgroup.procs", std::to_string(pid.value));
}

absl::Status Cgroup::request_freeze() const {
  return kernel::write_file(path_ + "/cgroup.freeze", "1");
}

absl::Status Cgroup::thaw() const { return kernel::write_file(path_ + "/cgroup.freeze", "0"); }

absl::Status Cgroup::kill() const { return kernel::write_file(path_ + "/cgroup.kill", "1"); }

absl::Status Cgroup::freeze(Deadline deadline) const {
  GW_RETURN_IF_ERROR(request_freeze());
  absl::Status status = wait_frozen(true, deadline);
  if (!status.ok()) {
    // A task in uninterruptible sleep does not freeze: better run on than half a tree held.
    if (const absl::Status back = thaw(); !back.ok()) return annotate(back, message_of(status));
  }
  return status;
}

absl::Status Cgroup::wait_frozen(bool frozen, Deadline deadline) const {
  return wait_event(frozen ? "frozen 1" : "frozen 0", deadline);
}

absl::StatusOr<bool> Cgroup::frozen() const {
  GW_ASSIGN_OR_RETURN(const std::string text, kernel::read_file(path_ + "/cgroup.events"));
  return text.find("frozen 1") != std::string::npos;
}

// kernfs reports a change of cgroup.events by POLLPRI to those who have read it before.
absl::Status Cgroup::wait_event(std::string_view line, Deadline deadline) const {
  const std::string file = path_ + "/cgroup.events";
  GW_ASSIGN_OR_RETURN(const UniqueFd fd, kernel::open(file, O_RDONLY));
  while (true) {
    char text[256];
    const ssize_t n = ::pread(fd.get(), text, sizeof text, 0);
    if (n < 0) return errno_status(errno, fmt::format("pread(\"{}\")", file));
    if (std::string_view(text, static_cast<size_t>(n)).find(line) != std::string_view::npos) {
      return absl::OkStatus();
    }
    if (deadline.passed()) {
      return make_error(absl::StatusCode::kDeadlineExceeded, "{}: no \"{}\" in time", file, line);
    }
    pollfd poll_fd{fd.get(), POLLPRI, 0};
    if (::poll(&poll_fd, 1, deadline.remaining_ms()) < 0 && errno != EINTR) {
      return errno_status(errno, fmt::format("poll(\"{}\")", file));
    }
  }
}

absl::StatusOr<std::vector<HostPid>> Cgroup::read_pids(std::string_view file) const {
  GW_ASSIGN_OR_RETURN(const std::string text, kernel::read_file(fmt::format("{}/{}", path_, file)));
  return parse_pids(text);
}

absl::StatusOr<std::vector<HostPid>> Cgroup::processes() const { return read_pids("cgroup.procs"); }
absl::StatusOr<std::vector<HostPid>> Cgroup::threads() const { return read_pids("cgroup.threads"); }

absl::Status Cgroup::wait_empty(Deadline deadline) const {
  if (!exists()) return absl::OkStatus();
  return wait_event("populated 0", deadline);
}

absl::Status Cgroup::remove(Deadline deadline) const {
  if (!exists()) return absl::OkStatus();
  GW_RETURN_IF_ERROR(wait_empty(deadline));
  GW_ASSIGN_OR_RETURN(const std::vector<std::string> names, kernel::list_folder(path_));
  for (const std::string& name : names) {
    struct stat info {};
    if (::lstat((path_ + "/" + name).c_str(), &info) == 0 && S_ISDIR(info.st_mode)) {
      GW_RETURN_IF_ERROR(child(name).remove(deadline));
    }
  }
  // "populated 0" does not see a dying leader that is not reaped yet: rmdir says EBUSY until then,
  // and no event tells of it.
  while (::rmdir(path_.c_str()) != 0 && errno != ENOENT) {
    if (errno != EBUSY || deadline.passed()) {
      return errno_status(errno, fmt::format("rmdir(\"{}\")", path_));
    }
    ::poll(nullptr, 0, 1);
  }
  return absl::OkStatus();
}

absl::StatusOr<FreezeFiles> FreezeFiles::open(const Cgroup& cgroup) {
  GW_ASSIGN_OR_RETURN(UniqueFd procs, kernel::open(cgroup.path() + "/cgroup.procs", O_RDONLY));
  GW_ASSIGN_OR_RETURN(UniqueFd freeze, kernel::open(cgroup.path() + "/cgroup.freeze", O_WRONLY));
  return FreezeFiles(std::move(procs), std::move(freeze));
}

absl::Status FreezeFiles::write(std::string_view text) const {
  while (::pwrite(freeze_.get(), text.data(), text.size(), 0) < 0)
    if (errno != EINTR) return errno_status(errno, fmt::format("pwrite(cgroup.freeze, {})", text));
  return absl::OkStatus();
}

// From offset 0 on the members are gone through anew (cgroup_procs_start()).
absl::StatusOr<std::vector<HostPid>> FreezeFiles::processes() const {
  std::string text(4096, '\0');
  for (size_t used = 0;;) {
    const ssize_t n =
        ::pread(procs_.get(), text.data() + used, text.size() - used, static_cast<off_t>(used));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return errno_status(errno, "pread(cgroup.procs)");
    if (n == 0) return parse_pids(std::string_view(text).substr(0, used));
    used += static_cast<size_t>(n);
    if (used == text.size()) text.resize(2 * used);
  }
}

}  // namespace godwit::capsule
