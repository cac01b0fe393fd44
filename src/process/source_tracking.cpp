// Prepares processes of the source for what is asked of them while they run: the stub's area, a
// tracker of their pages.
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <utility>

#include "base/clock.h"
#include "base/fault_point.h"
#include "base/status.h"
#include "kernel/proc/stat.h"
#include "kernel/proc/status.h"
#include "kernel/syscalls.h"
#include "pages/uffd_tracker.h"
#include "pages/whole_tracker.h"
#include "process/left_over.h"
#include "process/source.h"
#include "process/timeouts.h"
#include "resource/rseq/rseq.h"
#include "tracee/memory.h"
#include "tracee/remote_syscalls.h"

namespace godwit::process {
namespace {

constexpr size_t kAreaBytes = size_t{128} << 10;
constexpr size_t kCodeBytes = 4096;  // the area's first page

absl::Status fault_with_descriptor_inside() {
  FAULT_POINT("source.uffd_inside");
  return absl::OkStatus();
}

constexpr uint64_t kForkedNotExeced = 0x40;  // PF_FORKNOEXEC, include/linux/sched.h
constexpr absl::Duration kExecsWithin = absl::Milliseconds(50);

// A child that has just been forked mostly starts another program at once: what was put into its
// memory would be lost with it, or be in its parent's, which has the same in vfork(2). One that
// stays is found by the next round, or by the freeze.
bool about_to_exec(HostPid pid) {
  const auto stat = kernel::read_task_stat(pid);
  if (!stat.ok() || (stat->flags & kForkedNotExeced) == 0) return false;
  // In its parent's memory it is for nothing else, however long a busy machine lets it take.
  bool shared = false;
  if (kernel::kcmp_same_memory(pid, stat->ppid, shared).ok() && shared) return true;
  const auto ticks_a_second = static_cast<uint64_t>(::sysconf(_SC_CLK_TCK));
  const uint64_t now =
      static_cast<uint64_t>(clock_ns(CLOCK_BOOTTIME)) / 1000 * ticks_a_second / 1'000'000;
  const auto young =
      static_cast<uint64_t>(absl::ToInt64Milliseconds(kExecsWithin)) * ticks_a_second / 1000;
  return now < stat->start_time_ticks + young;
}

}  // namespace

// Has it started another program since its memory is tracked? What is known is of memory that is
// gone, and the next one is a new process's.
absl::Status Source::forget_old_program(SourceProcess& process) {
  if (!process.tracker || process.has_tracked_memory()) return absl::OkStatus();
  if (!replica_follows_programs_)
    return make_error(absl::StatusCode::kFailedPrecondition,
                      "process {} ({}) has started another program, and the destination's Godwit "
                      "is too old to follow it: move it again, or update that node",
                      process.pid.value, process.comm);
  SourceProcess anew;
  anew.pid = process.pid;
  anew.host_pid = process.host_pid;
  anew.comm = std::move(process.comm);
  anew.pidfd = std::move(process.pidfd);
  anew.group = process.group;
  anew.session = process.session;
  anew.program = ++programs_;
  process = std::move(anew);
  return absl::OkStatus();
}

absl::Status Source::start_tracking() {
  FAULT_POINT("source.start_tracking");
  if (!scanner_) scanner_ = std::make_unique<Background>();
  known_files_.clear();  // options_changed() tells of what happens from here on
  // Else what a mover left that was killed before us would travel along.
  GW_ASSIGN_OR_RETURN(const std::vector<HostPid> members, host_.members());
  GW_RETURN_IF_ERROR(remove_left_over(members, *translate_));
  GW_RETURN_IF_ERROR(read_tree());
  return track_new_processes();
}

absl::Status Source::track_new_processes() {
  for (auto& [pid, process] : processes_) {
    GW_RETURN_IF_ERROR(forget_old_program(process));
    if (process.tracker || about_to_exec(process.host_pid)) continue;
    const absl::Status opened = open_tracker(process);
    // A process that ends right now is missing in the next reading of the tree.
    if (!opened.ok() && errno_of(opened) != ESRCH && errno_of(opened) != ENOENT)
      return annotate(opened, fmt::format("track the pages of process {} ({})", pid, process.comm));
  }
  return absl::OkStatus();
}

// Stops the first task of a process, which makes calls of ours then, or all of them: where one that
// ran could put something else under a descriptor's number, and under seccomp, where it could put
// other calls in the place of ours, which go past the filters.
absl::StatusOr<std::vector<tracee::StoppedTask>> Source::stop_for_calls(HostPid pid, bool whole) {
  GW_ASSIGN_OR_RETURN(const kernel::TaskStatus status, kernel::read_task_status(pid));
  std::vector<tracee::StoppedTask> tasks;
  if (!whole && status.seccomp == 0) {
    GW_ASSIGN_OR_RETURN(tracee::SeizedTask seized, tracee::SeizedTask::seize(pid));
    GW_RETURN_IF_ERROR(seized.interrupt());
    GW_ASSIGN_OR_RETURN(tracee::StoppedTask task,
                        std::move(seized).wait_stopped(Deadline::in(kTargetTimeout)));
    tasks.push_back(std::move(task));
    return tasks;
  }
  GW_ASSIGN_OR_RETURN(
      tracee::FrozenTree tree,
      tracee::stop_tree(
          [&] { return std::vector<HostPid>{pid}; }, Deadline::in(kTargetTimeout),
          [](HostPid of, HostPid tid) { return of != tid && kernel::is_kernel_worker(tid); }));
  if (tree.processes.empty()) return errno_status(ESRCH, fmt::format("stop process {}", pid.value));
  return std::move(tree.processes.front().tasks);
}

absl::Status Source::open_tracker(SourceProcess& process) {
  GW_ASSIGN_OR_RETURN(const std::vector<int> inherited, inherited_by(process));
  const int64_t begin = monotonic_ns();
  GW_ASSIGN_OR_RETURN(std::vector<tracee::StoppedTask> tasks,
                      stop_for_calls(process.host_pid, !inherited.empty()));
  GW_RETURN_IF_ERROR(resource::leave_critical_section(tasks.front()).status());
  if (!inherited.empty()) GW_RETURN_IF_ERROR(close_inherited(process, tasks.front()));
  GW_RETURN_IF_ERROR(attach_tracker(process, tasks.front()));
  for (tracee::StoppedTask& task : tasks) GW_RETURN_IF_ERROR(std::move(task).detach());
  longest_stop_ns_ = std::max(longest_stop_ns_, monotonic_ns() - begin);
  return absl::OkStatus();
}

// A thread that forks while another one is stopped in take_userfaultfd() gives its child a copy of
// the descriptor. Stopping all threads would prevent that, but interrupt all of their waits.
absl::StatusOr<std::vector<int>> Source::inherited_by(const SourceProcess& process) const {
  if (perhaps_inherited_.empty()) return std::vector<int>();
  return copies_of(perhaps_inherited_, process.host_pid);
}

absl::Status Source::close_inherited(SourceProcess& process, tracee::StoppedTask& task) {
  GW_ASSIGN_OR_RETURN(const std::vector<int> inherited, inherited_by(process));
  if (inherited.empty()) return absl::OkStatus();
  GW_RETURN_IF_ERROR(map_area(process, task));
  tracee::RemoteSyscalls remote = process.area->single_calls(task);
  for (const int number : inherited)
    GW_RETURN_IF_ERROR(
        remote.must(SYS_close, {static_cast<uint64_t>(number), 0, 0, 0, 0, 0}).status());
  return remote.finish();
}

// userfaultfd(2) must be called by the process whose memory it is for; the descriptor is taken out
// and closed there, and the stub's area mapped, in one short stop.
absl::StatusOr<UniqueFd> Source::take_userfaultfd(SourceProcess& process,
                                                  tracee::StoppedTask& task) {
  GW_RETURN_IF_ERROR(map_area(process, task));
  // One that is stopped alone cannot have a child meanwhile.
  GW_ASSIGN_OR_RETURN(const kernel::TaskStat stat, kernel::read_task_stat(process.host_pid));
  // User mode only: a process that is not root may have no other (userfaultfd(2), sysctl
  // vm.unprivileged_userfaultfd). WP_ASYNC handles no fault in user space, so that writes by system
  // calls are tracked all the same.
  constexpr uint64_t kFlags = O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY;
  tracee::RemoteSyscalls remote = process.area->single_calls(task);
  GW_ASSIGN_OR_RETURN(const uint64_t number, remote.must(SYS_userfaultfd, {kFlags, 0, 0, 0, 0, 0}));
  absl::Status fault = fault_with_descriptor_inside();
  auto taken = kernel::pidfd_getfd(process.pidfd.get(), static_cast<int>(number));
  GW_RETURN_IF_ERROR(remote.must(SYS_close, {number, 0, 0, 0, 0, 0}).status());
  GW_ASSIGN_OR_RETURN(process.brk, remote.must(SYS_brk, {0, 0, 0, 0, 0, 0}));
  GW_RETURN_IF_ERROR(remote.finish());
  GW_RETURN_IF_ERROR(fault);
  GW_RETURN_IF_ERROR(taken.status());
  if (stat.num_threads > 1) {
    GW_ASSIGN_OR_RETURN(UniqueFd copy, kernel::duplicate(taken->get()));
    perhaps_inherited_.push_back(std::move(copy));
  }
  return taken;
}

// Registered in the stop: where maps have changed meanwhile, a mapping that is new would be cut in
// two, and mremap(2) of it fail.
absl::Status Source::attach_tracker(SourceProcess& process, tracee::StoppedTask& task) {
  auto uffd = take_userfaultfd(process, task);
  if (errno_of(uffd.status()) == EMFILE) return go_without_tracker(process);
  GW_RETURN_IF_ERROR(uffd.status());
  host_.tracks(process.host_pid, uffd->get());
  GW_ASSIGN_OR_RETURN(process.tracker,
                      pages::UffdTracker::make(*std::move(uffd), process.host_pid));
  GW_RETURN_IF_ERROR(read_maps_of(process, false).status());
  return process.tracker->start(pages::private_mappings(process.maps));
}

// A process that may open nothing more (RLIMIT_NOFILE), as sandboxes do it, or which has used up
// its numbers.
absl::Status Source::go_without_tracker(SourceProcess& process) {
  constexpr uint64_t kMostPages = (uint64_t{64} << 20) / 4096;  // they are sent in the freeze
  GW_ASSIGN_OR_RETURN(
      const std::string text,
      kernel::read_file(fmt::format("/proc/{}/statm", process.host_pid.value), 4096));
  uint64_t size = 0;
  uint64_t resident = 0;
  const bool known = std::sscanf(text.c_str(), "%lu %lu", &size, &resident) == 2;
  // Huge pages are not in it.
  GW_RETURN_IF_ERROR(read_maps_of(process, false).status());
  for (const pages::TrackedMapping& tracked : pages::private_mappings(process.maps))
    if (tracked.huge_page_bytes != 0) resident += tracked.mapping.size() / pages::kPageSize;
  if (!known || resident > kMostPages)
    return make_error(absl::StatusCode::kFailedPrecondition,
                      "it has no number left for another descriptor, and its memory, {} MiB, is "
                      "too much to be sent in the freeze: raise its limit of open files "
                      "(prlimit --nofile)",
                      resident >> 8);
  GW_ASSIGN_OR_RETURN(process.tracker, pages::WholeTracker::make(process.host_pid));
  return absl::OkStatus();
}

absl::Status Source::map_area(SourceProcess& process, tracee::StoppedTask& task) {
  if (process.area) return absl::OkStatus();
  GW_ASSIGN_OR_RETURN(const bool inherited, adopt_inherited_area(process));
  if (inherited) return absl::OkStatus();
  GW_ASSIGN_OR_RETURN(tracee::StubArea area, tracee::StubArea::map(task, process.pid, kAreaBytes));
  process.area = std::move(area);
  return absl::OkStatus();
}

// A process that was forked from one with an area has a copy of it: known by its code.
absl::StatusOr<bool> Source::adopt_inherited_area(SourceProcess& process) {
  GW_ASSIGN_OR_RETURN(const auto maps, kernel::read_maps(process.host_pid));
  for (const auto& [pid, other] : processes_) {
    if (!other.area || &other == &process) continue;
    const RemoteAddress at = other.area->address();
    const bool mapped = std::any_of(maps.begin(), maps.end(), [&](const kernel::Mapping& m) {
      return m.anonymous() && m.start <= at.value && at.value + kCodeBytes <= m.end && m.execute;
    });
    if (!mapped) continue;
    std::array<std::byte, kCodeBytes> here{};
    std::array<std::byte, kCodeBytes> there{};
    GW_RETURN_IF_ERROR(tracee::read_memory(process.host_pid, at, here));
    GW_RETURN_IF_ERROR(tracee::read_memory(other.host_pid, at, there));
    if (here != there) continue;
    process.area = other.area->for_child(process.pid);
    return true;
  }
  return false;
}

}  // namespace godwit::process
