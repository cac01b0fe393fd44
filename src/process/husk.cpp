#include "process/husk.h"

#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/status.h"
#include "process/timeouts.h"
#include "tracee/memory.h"

namespace godwit::process {
namespace {

constexpr unsigned long kOptions =
    PTRACE_O_EXITKILL | PTRACE_O_TRACECLONE | PTRACE_O_TRACEFORK | PTRACE_O_TRACEVFORK;
constexpr uint64_t kPage = 4096;
// End of user addresses with four-level page tables (Documentation/arch/x86/x86_64/mm.rst).
constexpr uint64_t kTaskSize = 0x7ffffffff000;
constexpr uint64_t kLowest = 0x10000;  // vm.mmap_min_addr

// struct clone_args and the set_tid array, written into the last bytes of the stub's area, which
// no batch is using while a remote call runs.
struct CloneRequest {
  clone_args arguments;
  pid_t tid;
};

}  // namespace

absl::StatusOr<Husk> Husk::from_init_child(ImagePid pid, HostPid host, RemoteAddress area,
                                           size_t area_bytes) {
  GW_ASSIGN_OR_RETURN(tracee::SeizedTask seized, tracee::SeizedTask::seize(host));
  GW_RETURN_IF_ERROR(seized.interrupt());
  GW_ASSIGN_OR_RETURN(tracee::StoppedTask task,
                      std::move(seized).wait_stopped(Deadline::in(kTargetTimeout)));
  GW_RETURN_IF_ERROR(task.set_options(kOptions));
  GW_ASSIGN_OR_RETURN(tracee::StubArea stub, tracee::StubArea::map(task, pid, area_bytes, area));
  Husk husk(pid, std::move(stub));
  husk.tasks_.push_back({pid, std::move(task)});
  GW_RETURN_IF_ERROR(husk.empty());
  return husk;
}

absl::Status Husk::empty() {
  // Room for every descriptor of the image; its own limit comes later, with the resource rlimit.
  rlimit files{};
  if (::prlimit(host_pid().value, RLIMIT_NOFILE, nullptr, &files) != 0)
    return errno_status(errno, fmt::format("prlimit({}, RLIMIT_NOFILE)", host_pid().value));
  files.rlim_cur = files.rlim_max;
  if (::prlimit(host_pid().value, RLIMIT_NOFILE, &files, nullptr) != 0)
    return errno_status(
        errno, fmt::format("prlimit({}, RLIMIT_NOFILE, {})", host_pid().value, files.rlim_max));
  GW_ASSIGN_OR_RETURN(const ptrace_rseq_configuration rseq, leader().rseq());
  tracee::Batch batch;
  // The kernel writes into a registered rseq area at every switch: gone before its memory goes.
  if (rseq.rseq_abi_pointer != 0)
    batch.call(SYS_rseq, {uint64_t{rseq.rseq_abi_pointer}, rseq.rseq_abi_size, 1, rseq.signature},
               true);
  batch.call(SYS_set_robust_list, {0, sizeof(void*) * 3}, true);
  batch.call(SYS_set_tid_address, {0});
  GW_RETURN_IF_ERROR(run(batch));
  GW_RETURN_IF_ERROR(batch.check_all());
  // The vDSO goes as well: from here on the stub has the only `syscall` instruction.
  area_.set_syscall_instruction(area_.own_syscall_instruction());
  GW_RETURN_IF_ERROR(empty_memory());
  return area_.keep_signal_sets(leader());
}

absl::Status Husk::empty_memory() {
  tracee::RemoteSyscalls remote(leader(), area_.syscall_instruction());
  const uint64_t start = area_.address().value;
  const uint64_t end = start + area_.size();
  GW_RETURN_IF_ERROR(remote.must(SYS_munmap, {kLowest, start - kLowest, 0, 0, 0, 0}).status());
  GW_RETURN_IF_ERROR(remote.must(SYS_munmap, {end, kTaskSize - end, 0, 0, 0, 0}).status());
  GW_RETURN_IF_ERROR(remote.finish());
  memory_map.Clear();
  return absl::OkStatus();
}

absl::StatusOr<Husk> Husk::fork(ImagePid pid, int exit_signal) {
  const RemoteAddress at = area_.address() + (area_.size() - sizeof(CloneRequest));
  CloneRequest request{};
  request.arguments.exit_signal = static_cast<uint64_t>(exit_signal);
  if (pid.value > 0) {
    request.arguments.set_tid = (at + offsetof(CloneRequest, tid)).value;
    request.arguments.set_tid_size = 1;
    request.tid = pid.value;
  }
  GW_RETURN_IF_ERROR(tracee::write_memory(host_pid(), at, std::as_bytes(std::span(&request, 1))));
  tracee::RemoteSyscalls remote(leader(), area_.syscall_instruction());
  auto child = remote.call_making_task(SYS_clone3, {at.value, sizeof(clone_args), 0, 0, 0, 0},
                                       Deadline::in(kTargetTimeout));
  if (!child.ok())
    return annotate(child.status(), fmt::format("fork process {} from {}", pid.value, pid_.value));
  GW_RETURN_IF_ERROR(remote.finish());
  GW_RETURN_IF_ERROR(child->set_options(kOptions));
  Husk husk(pid, area_.for_child(pid));
  husk.tasks_.push_back({pid, *std::move(child)});
  husk.fd_table = fd_table;
  GW_RETURN_IF_ERROR(husk.empty());
  return husk;
}

absl::Status Husk::make_threads(std::span<const ImagePid> tids) {
  const RemoteAddress at = area_.address() + (area_.size() - sizeof(CloneRequest));
  for (const ImagePid tid : tids) {
    CloneRequest request{};
    request.arguments.flags =
        CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM;
    request.arguments.set_tid = (at + offsetof(CloneRequest, tid)).value;
    request.arguments.set_tid_size = 1;
    request.tid = tid.value;
    GW_RETURN_IF_ERROR(tracee::write_memory(host_pid(), at, std::as_bytes(std::span(&request, 1))));
    tracee::RemoteSyscalls remote(leader(), area_.syscall_instruction());
    auto thread = remote.call_making_task(SYS_clone3, {at.value, sizeof(clone_args), 0, 0, 0, 0},
                                          Deadline::in(kTargetTimeout));
    if (!thread.ok())
      return annotate(thread.status(),
                      fmt::format("make thread {} of process {}", tid.value, pid_.value));
    GW_RETURN_IF_ERROR(remote.finish());
    GW_RETURN_IF_ERROR(thread->set_options(kOptions));
    tasks_.push_back({tid, *std::move(thread)});
  }
  return absl::OkStatus();
}

absl::Status Husk::end_thread(ImagePid tid) {
  const auto found =
      std::find_if(tasks_.begin(), tasks_.end(), [&](const HuskTask& t) { return t.tid == tid; });
  if (found == tasks_.end() || found == tasks_.begin())
    return make_error(absl::StatusCode::kInternal, "end thread {} of process {}: no such thread",
                      tid.value, pid_.value);
  tracee::RemoteSyscalls remote(found->task, area_.syscall_instruction());
  // The thread is gone when the call does not return: that is the success.
  const auto result = remote.call(SYS_exit, {0, 0, 0, 0, 0, 0});
  if (result.ok())
    return make_error(absl::StatusCode::kInternal, "exit() of thread {} returned", tid.value);
  tasks_.erase(found);
  return errno_of(result.status()) == ESRCH ? absl::OkStatus() : result.status();
}

absl::Status Husk::run(tracee::Batch& batch) {
  if (batch.empty()) return absl::OkStatus();
  return area_.run(leader(), pid_, batch, Deadline::in(kTargetTimeout));
}

absl::StatusOr<tracee::StubArea::Started> Husk::start_in_tasks(std::span<tracee::Batch> batches,
                                                               Which which) {
  std::vector<tracee::StubArea::Run> runs;
  for (size_t i = 0; i < batches.size(); ++i)
    if (!batches[i].empty() && (i == 0) == (which == Which::kLeader))
      runs.push_back({&tasks_[i].task, tasks_[i].tid, &batches[i]});
  return area_.start_all(runs, Deadline::in(kTargetTimeout));
}

absl::Status Husk::start_removing_stub(bool ignores_faults, uint64_t vdso_offset) {
  if (!ignores_faults) {
    removing_stub_ = true;
    return area_.start_unmap_below(leader());
  }
  const auto& mappings = memory_map.mappings();
  const auto vdso = std::find_if(mappings.begin(), mappings.end(),
                                 [](const auto& mapping) { return mapping.path() == "[vdso]"; });
  if (vdso == mappings.end() || vdso->end() - vdso->start() <= vdso_offset) {
    // A program that has unmapped its own: found by looking, or not at all.
    GW_ASSIGN_OR_RETURN(const RemoteAddress instruction, tracee::find_vdso_syscall(host_pid()));
    area_.set_syscall_instruction(instruction);
  } else {
    area_.set_syscall_instruction(RemoteAddress{vdso->start() + vdso_offset});
  }
  return area_.unmap(leader());
}

absl::Status Husk::finish_removing_stub() {
  if (!std::exchange(removing_stub_, false)) return absl::OkStatus();
  return area_.finish_unmap_below(leader(), Deadline::in(kTargetTimeout));
}

absl::Status Husk::release_from_mover() {
  for (HuskTask& task : tasks_) GW_RETURN_IF_ERROR(task.task.set_options(0));
  return absl::OkStatus();
}

absl::Status Husk::detach() && {
  absl::Status first;
  for (HuskTask& task : tasks_) first.Update(std::move(task.task).detach());
  tasks_.clear();
  return first;
}

absl::Status Husk::exit(int wait_status) {
  if (WIFSIGNALED(wait_status)) {
    const int signal = WTERMSIG(wait_status);
    if (signal == SIGKILL) return kill();
    const HostPid host = host_pid();
    const rlimit no_core{0, 0};
    if (::prlimit(host.value, RLIMIT_CORE, &no_core, nullptr) != 0)
      return errno_status(errno, fmt::format("prlimit({}, RLIMIT_CORE, 0)", host.value));
    GW_RETURN_IF_ERROR(leader().set_signal_mask(0));
    if (::kill(host.value, signal) != 0)
      return errno_status(errno, fmt::format("kill({}, {})", host.value, signal));
    // Delivered before its next instruction, with the default action.
    return std::move(*this).detach();
  }
  tracee::RemoteSyscalls remote(leader(), area_.syscall_instruction());
  const auto result =
      remote.call(SYS_exit_group, {static_cast<uint64_t>(WEXITSTATUS(wait_status)), 0, 0, 0, 0, 0});
  if (result.ok())
    return make_error(absl::StatusCode::kInternal, "exit_group() of process {} returned",
                      pid_.value);
  if (errno_of(result.status()) != ESRCH) return result.status();
  tasks_.clear();
  return absl::OkStatus();
}

absl::Status Husk::kill() {
  if (tasks_.empty()) return absl::OkStatus();
  const HostPid host = host_pid();
  if (::kill(host.value, SIGKILL) != 0 && errno != ESRCH)
    return errno_status(errno, fmt::format("kill({}, SIGKILL)", host.value));
  // As its tracer we see the end of every task first; only then its parent does.
  for (size_t i = tasks_.size(); i-- > 0;) {
    int status = 0;
    while (::waitpid(tasks_[i].task.tid().value, &status, __WALL) < 0 && errno == EINTR) {
    }
  }
  tasks_.clear();
  return absl::OkStatus();
}

}  // namespace godwit::process
