#include "resource/seen_tasks.h"

#include <sys/stat.h>

#include <cstddef>

#include "base/status.h"

namespace godwit::resource {
namespace {

using namespace kernel::bpf;

#define GW_COPY(path, member) \
  program.copy<decltype(SeenTask::member)>(offsetof(SeenTask, member), "task_struct", path)

// A number that the kernel has in four bytes or in eight, by versions.
void copy_number(ViewProgram& program, size_t to, std::string_view path) {
  program.follow(1, ViewProgram::kFrom, "task_struct", path);
  program.add(store(BPF_DW, ViewProgram::kView, 1, static_cast<int>(to)));
}

void build(ViewProgram& program) {
  GW_COPY("cred", cred);
  copy_number(program, offsetof(SeenTask, flags), "flags");
  copy_number(program, offsetof(SeenTask, atomic_flags), "atomic_flags");
  copy_number(program, offsetof(SeenTask, thread_flags), "thread_info.flags");
  GW_COPY("sas_ss_sp", sas_ss_sp);
  GW_COPY("sas_ss_size", sas_ss_size);
  GW_COPY("clear_child_tid", clear_child_tid);
  GW_COPY("timer_slack_ns", timer_slack_ns);
  GW_COPY("pending.signal", pending);
  GW_COPY("sas_ss_flags", sas_ss_flags);
  GW_COPY("personality", personality);
  GW_COPY("pdeath_signal", pdeath_signal);
  GW_COPY("seccomp.mode", seccomp_mode);
  GW_COPY("pid", pid);
  GW_COPY("comm", comm);
  program.follow(ViewProgram::kFrom, ViewProgram::kFrom, "task_struct", "signal");
  program.copy<uint64_t>(offsetof(SeenTask, pending_of_process), "signal_struct",
                         "shared_pending.signal");
}

// PROC_PID_INIT_INO, linux/proc_ns.h: only there /proc says the numbers that the kernel has.
bool in_first_pid_namespace() {
  constexpr ino_t kFirst = 0xEFFFFFFC;
  struct stat self {};
  return ::stat("/proc/self/ns/pid", &self) == 0 && self.st_ino == kFirst;
}

}  // namespace

absl::StatusOr<std::unique_ptr<SeenTasks>> SeenTasks::open(uint32_t tasks) {
  if (!in_first_pid_namespace())
    return make_error(absl::StatusCode::kUnimplemented, "this is not the first pid namespace");
  GW_ASSIGN_OR_RETURN(Views views, Views::open({.name = "gw_tasks",
                                                .function = "bpf_iter_task",
                                                .context = "bpf_iter__task",
                                                .member = "task",
                                                .record_bytes = sizeof(SeenTask)},
                                               tasks, build));
  return std::unique_ptr<SeenTasks>(new SeenTasks(std::move(views)));
}

absl::StatusOr<absl::flat_hash_map<HostPid, SeenTask>> SeenTasks::read(HostPid process) {
  GW_ASSIGN_OR_RETURN(const size_t count, views_.read(process));
  const auto* tasks = static_cast<const SeenTask*>(views_.records());
  absl::flat_hash_map<HostPid, SeenTask> by_pid;
  by_pid.reserve(count);
  for (size_t i = 0; i < count; ++i) {
    SeenTask& one = by_pid[HostPid{static_cast<int>(tasks[i].pid)}];
    one = tasks[i];
    one.pending |= one.pending_of_process;
  }
  return by_pid;
}

}  // namespace godwit::resource
