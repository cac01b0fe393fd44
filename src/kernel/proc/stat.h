// /proc/PID/stat (proc_pid_stat(5), Linux 6.18): one line, 52 fields.
#ifndef GODWIT_KERNEL_PROC_STAT_H_
#define GODWIT_KERNEL_PROC_STAT_H_

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "base/ids.h"

namespace godwit::kernel {

struct TaskStat {
  HostPid pid;
  std::string comm;  // as it is: may hold blanks, parentheses and newlines
  char state = 0;
  HostPid ppid;  // pgrp and session too are numbers of the reader's pid namespace; 0 outside it
  HostPid pgrp;
  HostPid session;
  int32_t tty_nr = 0;
  HostPid tty_pgrp;  // -1: no terminal
  uint64_t flags = 0;
  int64_t priority = 0;
  int64_t nice = 0;
  int64_t num_threads = 0;
  uint64_t start_time_ticks = 0;  // since boot, in the reader's time namespace
  // Addresses: 0, or 1 for "not for you" without PTRACE_MODE_READ.
  uint64_t start_code = 0;
  uint64_t end_code = 0;
  uint64_t start_stack = 0;
  int32_t exit_signal = 0;
  uint32_t rt_priority = 0;
  uint32_t policy = 0;
  uint64_t start_data = 0;
  uint64_t end_data = 0;
  uint64_t start_brk = 0;
  uint64_t arg_start = 0;
  uint64_t arg_end = 0;
  uint64_t env_start = 0;
  uint64_t env_end = 0;
  int32_t exit_code = 0;  // as waitpid(2) gives it
};

absl::StatusOr<TaskStat> parse_task_stat(std::string_view text);
absl::StatusOr<TaskStat> read_task_stat(HostPid task);
// A thread that the kernel has made in a process for requests of io_uring: it is among its tasks
// (iou-wrk-N, iou-sqp-N), and runs none of its code.
bool is_kernel_worker(HostPid task);

}  // namespace godwit::kernel

#endif  // GODWIT_KERNEL_PROC_STAT_H_
