#include "kernel/proc/stat.h"

#include <fmt/format.h>

#include <string>

#include "base/status.h"
#include "kernel/proc/text_scanner.h"
#include "kernel/syscalls.h"

namespace godwit::kernel {
namespace {

absl::Status bad(std::string_view what) {
  return make_error(absl::StatusCode::kInvalidArgument, "stat: {}", what);
}

class Fields {
 public:
  explicit Fields(std::string_view text) : scanner_(text) {}
  template <typename T>
  void next(T& value) {
    ok_ = ok_ && scanner_.literal(" ") && scanner_.number(value);
  }
  // Signed or not: the kernel prints both.
  void skip(int count) {
    for (int i = 0; ok_ && i < count; ++i) ok_ = scanner_.literal(" ") && !scanner_.word().empty();
  }
  bool ended() {
    (void)scanner_.literal("\n");
    return ok_ && scanner_.at_end();
  }

 private:
  TextScanner scanner_;
  bool ok_ = true;
};

}  // namespace

absl::StatusOr<TaskStat> parse_task_stat(std::string_view text) {
  TaskStat stat;
  // The name is not escaped here, but after it come numbers and one letter only: the last ')' ends
  // it.
  const size_t open = text.find('(');
  const size_t close = text.rfind(')');
  if (open == std::string_view::npos || close == std::string_view::npos || close < open) {
    return bad("no (comm)");
  }
  TextScanner head(text.substr(0, open));
  if (!head.number(stat.pid.value) || head.rest() != " ") return bad("no pid");
  stat.comm = std::string(text.substr(open + 1, close - open - 1));
  text.remove_prefix(close + 1);
  if (text.size() < 2 || text[0] != ' ' || text[1] <= ' ') return bad("no state");
  stat.state = text[1];
  Fields f(text.substr(2));
  f.next(stat.ppid.value);  // field 4
  f.next(stat.pgrp.value);
  f.next(stat.session.value);
  f.next(stat.tty_nr);
  f.next(stat.tty_pgrp.value);
  f.next(stat.flags);
  f.skip(8);  // faults and times, 10-17
  f.next(stat.priority);
  f.next(stat.nice);
  f.next(stat.num_threads);
  f.skip(1);
  f.next(stat.start_time_ticks);  // 22
  f.skip(3);
  f.next(stat.start_code);
  f.next(stat.end_code);
  f.next(stat.start_stack);  // 28
  f.skip(9);                 // esp, eip, four signal sets, wchan, two zeros
  f.next(stat.exit_signal);  // 38
  f.skip(1);
  f.next(stat.rt_priority);
  f.next(stat.policy);
  f.skip(3);
  f.next(stat.start_data);  // 45
  f.next(stat.end_data);
  f.next(stat.start_brk);
  f.next(stat.arg_start);
  f.next(stat.arg_end);
  f.next(stat.env_start);
  f.next(stat.env_end);
  f.next(stat.exit_code);  // 52
  if (!f.ended()) return bad("not 52 fields of numbers");
  return stat;
}

absl::StatusOr<TaskStat> read_task_stat(HostPid task) {
  GW_ASSIGN_OR_RETURN(const std::string text, read_file(fmt::format("/proc/{}/stat", task.value)));
  return parse_task_stat(text);
}

bool is_kernel_worker(HostPid task) {
  constexpr uint64_t kWorker = 0x10 | 0x4000;  // PF_IO_WORKER, PF_USER_WORKER, <linux/sched.h>
  // The name first, which is cheaper; a program can give itself one like it.
  const auto name = read_file(fmt::format("/proc/{}/comm", task.value), 64);
  if (!name.ok() || !name->starts_with("iou-")) return false;
  const auto stat = read_task_stat(task);
  return stat.ok() && (stat->flags & kWorker) != 0;
}

}  // namespace godwit::kernel
