#include "process/left_over.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <string>

#include "base/fault_point.h"
#include "base/status.h"
#include "kernel/proc/maps.h"
#include "kernel/syscalls.h"
#include "process/timeouts.h"
#include "resource/rseq/rseq.h"
#include "tracee/batch.h"
#include "tracee/freeze.h"

namespace godwit::process {
namespace {

using tracee::StubArea;

constexpr size_t kTableBytes = 4096;

bool ours(uint64_t address) {
  return address >= StubArea::kPlaces.value && address < StubArea::kPlacesEnd.value;
}

struct LeftOver {
  std::vector<kernel::Mapping> areas;
  bool home = false;
  std::vector<int> descriptors;
  bool nothing() const { return areas.empty() && !home && descriptors.empty(); }
};

// Those of its descriptors that are a userfaultfd.
absl::StatusOr<std::vector<int>> userfaultfds_of(HostPid pid) {
  std::vector<int> numbers;
  GW_ASSIGN_OR_RETURN(const auto names, kernel::list_folder(fmt::format("/proc/{}/fd", pid.value)));
  for (const std::string& name : names) {
    const auto link = kernel::readlinkat(AT_FDCWD, fmt::format("/proc/{}/fd/{}", pid.value, name));
    if (!link.ok() || *link != "anon_inode:[userfaultfd]") continue;
    int number = -1;
    std::from_chars(name.data(), name.data() + name.size(), number);
    numbers.push_back(number);
  }
  return numbers;
}

// One on which nobody has called UFFDIO_API: ours is taken out and closed before that. (fdinfo's
// "API:" line has the features in its second field, 0 until then: fs/userfaultfd.c. The precheck
// refuses programs that have one of their own.)
bool is_stray(HostPid pid, int number) {
  const auto info = kernel::read_file(fmt::format("/proc/{}/fdinfo/{}", pid.value, number), 4096);
  if (!info.ok()) return false;
  const size_t api = info->find("API:\t");
  const size_t features = api == std::string::npos ? api : info->find(':', api + 5);
  return features != std::string::npos && info->compare(features, 3, ":0:") == 0;
}

bool is_copy(std::span<const UniqueFd> ours, HostPid pid, int number) {
  return std::any_of(ours.begin(), ours.end(), [&](const UniqueFd& one) {
    bool same = false;
    return kernel::kcmp_same_file(HostPid{::getpid()}, one.get(), pid, number, same).ok() && same;
  });
}

absl::StatusOr<LeftOver> find_left_over(HostPid pid, std::span<const UniqueFd> trackers) {
  LeftOver found;
  GW_ASSIGN_OR_RETURN(const auto maps, kernel::read_maps(pid));
  for (const kernel::Mapping& mapping : maps)
    if (ours(mapping.start)) found.areas.push_back(mapping);
  const auto home = StubArea::used_home(pid);
  // No vDSO: it is starting a program, in new memory that nobody has been in.
  if (!home.ok() && !absl::IsNotFound(home.status())) return home.status();
  found.home = home.value_or(false);
  GW_ASSIGN_OR_RETURN(found.descriptors, userfaultfds_of(pid));
  std::erase_if(found.descriptors, [&](int number) {
    return !is_stray(pid, number) && !is_copy(trackers, pid, number);
  });
  return found;
}

// A task that the mover's death let go is still in the stub, or in a handler of the program's that
// interrupted it there and has its frame on the area. Both are a matter of moments.
absl::StatusOr<bool> some_are_inside(const tracee::StoppedProcess& process) {
  for (const tracee::StoppedTask& task : process.tasks) {
    GW_ASSIGN_OR_RETURN(const tracee::Registers registers, task.registers());
    if (ours(registers.rip) || ours(registers.rsp) ||
        StubArea::at_home(process.pid, RemoteAddress{registers.rip}))
      return true;
  }
  return false;
}

absl::StatusOr<tracee::FrozenTree> stop_outside(HostPid pid) {
  const Deadline deadline = Deadline::in(kTargetTimeout);
  for (;;) {
    GW_ASSIGN_OR_RETURN(
        tracee::FrozenTree tree,
        tracee::stop_tree(
            [pid]() -> absl::StatusOr<std::vector<HostPid>> { return std::vector<HostPid>{pid}; },
            deadline));
    bool inside = false;
    for (const tracee::StoppedProcess& process : tree.processes) {
      GW_ASSIGN_OR_RETURN(const bool some, some_are_inside(process));
      inside = inside || some;
    }
    if (!inside) return tree;
    tracee::release_tree(std::move(tree));
    if (deadline.passed())
      return make_error(absl::StatusCode::kDeadlineExceeded,
                        "process {} does not leave the stub of a mover that was killed", pid.value);
    ::poll(nullptr, 0, 1);
  }
}

absl::Status clean(HostPid pid, ImagePid image_pid, std::span<const UniqueFd> ours) {
  GW_ASSIGN_OR_RETURN(const LeftOver before, find_left_over(pid, ours));
  if (before.nothing()) return absl::OkStatus();
  GW_ASSIGN_OR_RETURN(tracee::FrozenTree tree, stop_outside(pid));
  if (tree.processes.empty() || tree.processes[0].tasks.empty())
    return errno_status(ESRCH, fmt::format("stop process {}", pid.value));
  tracee::StoppedTask& task = tree.processes[0].tasks[0];
  for (tracee::StoppedTask& each : tree.processes[0].tasks)
    GW_RETURN_IF_ERROR(resource::leave_critical_section(each).status());
  // As it is now that nothing of it runs; the area of this visit is not among them.
  GW_ASSIGN_OR_RETURN(const LeftOver found, find_left_over(pid, ours));
  GW_ASSIGN_OR_RETURN(StubArea area, StubArea::map(task, image_pid, kTableBytes));
  const absl::Status removed = [&]() -> absl::Status {
    FAULT_POINT("source.left_over");
    tracee::RemoteSyscalls calls = area.single_calls(task);
    for (const kernel::Mapping& each : found.areas)
      GW_RETURN_IF_ERROR(
          calls.must(SYS_munmap, {each.start, each.end - each.start, 0, 0, 0, 0}).status());
    for (const int number : found.descriptors)
      GW_RETURN_IF_ERROR(
          calls.must(SYS_close, {static_cast<uint64_t>(number), 0, 0, 0, 0, 0}).status());
    return calls.finish();
  }();
  absl::Status first = removed;
  // Puts the vDSO's page back as well.
  first.Update(area.unmap(task));
  return first;
}

}  // namespace

absl::StatusOr<std::vector<int>> copies_of(std::span<const UniqueFd> ours, HostPid pid) {
  auto numbers = userfaultfds_of(pid);
  if (errno_of(numbers.status()) == ENOENT || errno_of(numbers.status()) == ESRCH)
    return std::vector<int>();
  if (numbers.ok())
    std::erase_if(*numbers, [&](int number) { return !is_copy(ours, pid, number); });
  return numbers;
}

absl::Status remove_left_over(const std::vector<HostPid>& members,
                              const resource::PidTranslator& translate,
                              std::span<const UniqueFd> ours) {
  absl::Status first;
  for (const HostPid pid : members) {
    const auto image_pid = translate(pid);
    absl::Status cleaned = image_pid.ok() ? clean(pid, *image_pid, ours) : image_pid.status();
    // One that has ended took it along.
    if (errno_of(cleaned) == ESRCH || errno_of(cleaned) == ENOENT) continue;
    first.Update(annotate(cleaned, fmt::format("process {}", pid.value)));
  }
  return first;
}

}  // namespace godwit::process
