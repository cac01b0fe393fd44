#include "capsule/cpu_limit.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <ctime>
#include <set>

#include "base/status.h"
#include "kernel/proc/mountinfo.h"
#include "kernel/syscalls.h"

namespace godwit::capsule {
namespace {

// Short, so that a program that is held back answers often; longer where the share would be less
// than the kernel takes (min_cfs_quota_period and max_, kernel/sched/core.c).
constexpr int64_t kPeriodUs = 20'000;
constexpr int64_t kLongestPeriodUs = 1'000'000;
constexpr int64_t kLeastQuotaUs = 1'000;
// Processes fork while they are moved.
constexpr int kAttempts = 50;

bool has_word(std::string_view list, char separator, std::string_view word) {
  for (size_t at = 0; at <= list.size();) {
    const size_t end = std::min(list.find(separator, at), list.size());
    if (list.substr(at, end - at) == word) return true;
    at = end + 1;
  }
  return false;
}

// Mount point of the v1 hierarchy with the controller `cpu`; "" if there is none.
absl::StatusOr<std::string> cpu_mount() {
  GW_ASSIGN_OR_RETURN(const auto mounts, kernel::read_mountinfo(HostPid{::getpid()}));
  for (const kernel::Mount& mount : mounts)
    if (mount.type == "cgroup" && mount.has_super_option("cpu")) return mount.point;
  return "";
}

// Of a process in that hierarchy, from its root.
absl::StatusOr<std::string> cpu_group_of(HostPid pid) {
  GW_ASSIGN_OR_RETURN(const std::string text,
                      kernel::read_file(fmt::format("/proc/{}/cgroup", pid.value)));
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find('\n', at), text.size());
    const std::string_view line(&text[at], end - at);
    at = end + 1;
    const size_t first = line.find(':');
    const size_t second = line.find(':', first + 1);
    if (second == std::string_view::npos) continue;
    if (has_word(line.substr(first + 1, second - first - 1), ',', "cpu"))
      return std::string(line.substr(second + 1));
  }
  return make_error(absl::StatusCode::kFailedPrecondition, "/proc/{}/cgroup names no cpu group",
                    pid.value);
}

std::string last_part(const std::string& path) { return path.substr(path.rfind('/') + 1); }

}  // namespace

absl::StatusOr<CpuLimit> CpuLimit::find(const Cgroup& work, std::string_view name) {
  const std::string max = work.path() + "/cpu.max";
  if (::access(max.c_str(), W_OK) == 0) return CpuLimit(work, max, "");
  GW_ASSIGN_OR_RETURN(const std::string mount, cpu_mount());
  if (mount.empty())
    return absl::FailedPreconditionError(
        "the service's cgroup has no cpu.max, and no cgroup v1 hierarchy with the controller cpu "
        "is mounted");
  const std::string own = fmt::format("godwit-{}", name);
  std::set<std::string> groups;
  GW_ASSIGN_OR_RETURN(const std::vector<HostPid> pids, work.processes());
  for (const HostPid pid : pids) {
    auto group = cpu_group_of(pid);
    if (absl::IsNotFound(group.status()) || errno_of(group.status()) == ESRCH) continue;
    GW_RETURN_IF_ERROR(group.status());
    // Limited already, and not lifted.
    if (last_part(*group) == own) group->resize(group->size() - own.size() - 1);
    groups.insert(*group == "/" ? "" : *group);
  }
  if (groups.empty()) return absl::NotFoundError("the service has no processes");
  if (groups.size() > 1)
    return absl::FailedPreconditionError(
        "its processes are in different groups of cgroup v1's controller cpu");
  const std::string parent = mount + *groups.begin();
  if (::access((parent + "/cpu.cfs_quota_us").c_str(), F_OK) != 0 && !groups.begin()->empty())
    return make_error(absl::StatusCode::kFailedPrecondition, "{} has no cpu.cfs_quota_us", parent);
  return CpuLimit(work, "", parent + "/" + own);
}

// All of the service that are not in `to`, as often as it takes.
absl::Status CpuLimit::gather(const std::string& from, const std::string& to) const {
  const std::string procs = to + "/cgroup.procs";
  for (int attempt = 0; attempt < kAttempts; ++attempt) {
    std::set<int32_t> there;
    GW_ASSIGN_OR_RETURN(const std::vector<HostPid> inside, Cgroup(to).processes());
    for (const HostPid pid : inside) there.insert(pid.value);
    std::vector<HostPid> wanted;
    if (from.empty()) {
      GW_ASSIGN_OR_RETURN(wanted, work_.processes());
    } else {
      GW_ASSIGN_OR_RETURN(wanted, Cgroup(from).processes());
    }
    bool moved = false;
    for (const HostPid pid : wanted) {
      if (there.contains(pid.value)) continue;
      moved = true;
      const absl::Status added = kernel::write_file(procs, std::to_string(pid.value));
      if (!added.ok() && errno_of(added) != ESRCH) return added;
    }
    if (!moved) return absl::OkStatus();
  }
  return make_error(absl::StatusCode::kUnavailable,
                    "its processes fork faster than they are moved");
}

absl::Status CpuLimit::set(double cpus) const {
  const double share = std::max(cpus, 1e-3);
  const int64_t period =
      std::clamp(static_cast<int64_t>(static_cast<double>(kLeastQuotaUs) / share), kPeriodUs,
                 kLongestPeriodUs);
  const int64_t quota =
      std::max(kLeastQuotaUs, static_cast<int64_t>(share * static_cast<double>(period)));
  if (!max_.empty()) return kernel::write_file(max_, fmt::format("{} {}", quota, period));
  if (::mkdir(group_.c_str(), 0755) != 0 && errno != EEXIST)
    return errno_status(errno, fmt::format("mkdir({})", group_));
  // Each of the two is checked against the other.
  GW_RETURN_IF_ERROR(kernel::write_file(group_ + "/cpu.cfs_quota_us", "-1"));
  GW_RETURN_IF_ERROR(kernel::write_file(group_ + "/cpu.cfs_period_us", std::to_string(period)));
  GW_RETURN_IF_ERROR(kernel::write_file(group_ + "/cpu.cfs_quota_us", std::to_string(quota)));
  return gather("", group_);
}

absl::Status CpuLimit::release() const {
  if (!max_.empty()) return kernel::write_file(max_, fmt::format("max {}", kPeriodUs));
  if (::access(group_.c_str(), F_OK) != 0) return absl::OkStatus();
  return kernel::write_file(group_ + "/cpu.cfs_quota_us", "-1");
}

absl::Status CpuLimit::lift() const {
  // First, so that they need not wait to be moved.
  GW_RETURN_IF_ERROR(release());
  if (!max_.empty() || ::access(group_.c_str(), F_OK) != 0) return absl::OkStatus();
  const std::string parent = group_.substr(0, group_.rfind('/'));
  for (int attempt = 0;; ++attempt) {
    GW_RETURN_IF_ERROR(gather(group_, parent));
    if (::rmdir(group_.c_str()) == 0 || errno == ENOENT) return absl::OkStatus();
    // A zombie counts until it is reaped.
    if (errno != EBUSY || attempt == kAttempts)
      return errno_status(errno, fmt::format("rmdir({})", group_));
    const timespec moment{0, 2'000'000};
    ::nanosleep(&moment, nullptr);
  }
}

absl::StatusOr<int64_t> CpuLimit::used_ns() const {
  GW_ASSIGN_OR_RETURN(const std::vector<HostPid> pids, work_.processes());
  int64_t sum = 0;
  for (const HostPid pid : pids) {
    clockid_t clock{};
    timespec time{};
    if (::clock_getcpuclockid(pid.value, &clock) != 0 || ::clock_gettime(clock, &time) != 0)
      continue;  // it has ended
    sum += int64_t{time.tv_sec} * 1'000'000'000 + time.tv_nsec;
  }
  return sum;
}

}  // namespace godwit::capsule
