#include "kernel/proc/status.h"

#include <fmt/format.h>

#include <string>

#include "base/status.h"
#include "kernel/proc/text_scanner.h"
#include "kernel/syscalls.h"

namespace godwit::kernel {
namespace {

// "\n" and "\\": proc_task_name() escapes the newline and the backslash, nothing else.
std::string unescape_name(std::string_view text) {
  std::string name;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '\\' && i + 1 < text.size()) {
      ++i;
      name.push_back(text[i] == 'n' ? '\n' : text[i]);
    } else {
      name.push_back(text[i]);
    }
  }
  return name;
}

template <typename T>
bool whole(std::string_view text, T& value, int base = 10) {
  TextScanner s(text);
  s.skip_blanks();
  if (!s.number(value, base)) return false;
  s.skip_blanks();
  return s.at_end();
}

template <typename T>
bool list(std::string_view text, std::vector<T>& values) {
  TextScanner s(text);
  values.clear();
  for (s.skip_blanks(); !s.at_end(); s.skip_blanks()) {
    T value{};
    if (!s.number(value)) return false;
    values.push_back(value);
  }
  return true;
}

bool four(std::string_view text, std::array<uint32_t, 4>& values) {
  std::vector<uint32_t> all;
  if (!list(text, all) || all.size() != values.size()) return false;
  std::copy(all.begin(), all.end(), values.begin());
  return true;
}

bool flag(std::string_view text, bool& value) {
  int number = 0;
  if (!whole(text, number)) return false;
  value = number != 0;
  return true;
}

struct Field {
  std::string_view key;
  bool required;
  bool (*read)(std::string_view, TaskStatus&);
};

using Text = std::string_view;
constexpr Field kFields[] = {
    {"Name", true, [](Text t, TaskStatus& s) { return s.name = unescape_name(t), true; }},
    {"Umask", false, [](Text t, TaskStatus& s) { return s.has_umask = whole(t, s.umask, 8); }},
    {"State", true, [](Text t, TaskStatus& s) { return !t.empty() && (s.state = t[0]) > ' '; }},
    {"Tgid", true, [](Text t, TaskStatus& s) { return whole(t, s.tgid.value); }},
    {"Pid", true, [](Text t, TaskStatus& s) { return whole(t, s.pid.value); }},
    {"PPid", true, [](Text t, TaskStatus& s) { return whole(t, s.ppid.value); }},
    {"TracerPid", true, [](Text t, TaskStatus& s) { return whole(t, s.tracer.value); }},
    {"Uid", true, [](Text t, TaskStatus& s) { return four(t, s.uid); }},
    {"Gid", true, [](Text t, TaskStatus& s) { return four(t, s.gid); }},
    {"Groups", true, [](Text t, TaskStatus& s) { return list(t, s.groups); }},
    {"NStgid", true, [](Text t, TaskStatus& s) { return list(t, s.ns_tgid); }},
    {"NSpid", true, [](Text t, TaskStatus& s) { return list(t, s.ns_pid); }},
    {"NSpgid", true, [](Text t, TaskStatus& s) { return list(t, s.ns_pgid); }},
    {"NSsid", true, [](Text t, TaskStatus& s) { return list(t, s.ns_sid); }},
    {"Threads", true, [](Text t, TaskStatus& s) { return whole(t, s.threads); }},
    {"SigPnd", true, [](Text t, TaskStatus& s) { return whole(t, s.pending_task, 16); }},
    {"ShdPnd", true, [](Text t, TaskStatus& s) { return whole(t, s.pending_process, 16); }},
    {"SigBlk", true, [](Text t, TaskStatus& s) { return whole(t, s.blocked, 16); }},
    {"SigIgn", true, [](Text t, TaskStatus& s) { return whole(t, s.ignored, 16); }},
    {"SigCgt", true, [](Text t, TaskStatus& s) { return whole(t, s.caught, 16); }},
    {"CapInh", true, [](Text t, TaskStatus& s) { return whole(t, s.cap_inheritable, 16); }},
    {"CapPrm", true, [](Text t, TaskStatus& s) { return whole(t, s.cap_permitted, 16); }},
    {"CapEff", true, [](Text t, TaskStatus& s) { return whole(t, s.cap_effective, 16); }},
    {"CapBnd", true, [](Text t, TaskStatus& s) { return whole(t, s.cap_bounding, 16); }},
    {"CapAmb", true, [](Text t, TaskStatus& s) { return whole(t, s.cap_ambient, 16); }},
    {"NoNewPrivs", true, [](Text t, TaskStatus& s) { return flag(t, s.no_new_privs); }},
    {"Seccomp", false, [](Text t, TaskStatus& s) { return whole(t, s.seccomp); }},
    {"Seccomp_filters", false, [](Text t, TaskStatus& s) { return whole(t, s.seccomp_filters); }},
};

}  // namespace

absl::StatusOr<TaskStatus> parse_task_status(std::string_view text) {
  TaskStatus status;
  bool seen[std::size(kFields)] = {};
  for (TextScanner s(text); !s.at_end();) {
    const std::string_view line = s.line();
    const size_t colon = line.find(":\t");
    if (colon == std::string_view::npos) {
      return make_error(absl::StatusCode::kInvalidArgument, "status: not a line of it: \"{}\"",
                        line.substr(0, 200));
    }
    for (size_t i = 0; i < std::size(kFields); ++i) {
      if (kFields[i].key != line.substr(0, colon)) continue;
      // A name cannot forge a line: its newline is escaped. So twice means not from a kernel.
      if (seen[i] || !kFields[i].read(line.substr(colon + 2), status)) {
        return make_error(absl::StatusCode::kInvalidArgument, "status: bad or twice: \"{}\"",
                          line.substr(0, 200));
      }
      seen[i] = true;
      break;
    }
  }
  for (size_t i = 0; i < std::size(kFields); ++i) {
    if (kFields[i].required && !seen[i]) {
      return make_error(absl::StatusCode::kInvalidArgument, "status: no line {}", kFields[i].key);
    }
  }
  const size_t depth = status.ns_pid.size();
  // A task that is being reaped has lost its pids: the lists are empty.
  if (depth == 0) return make_error(absl::StatusCode::kNotFound, "status: the task has gone");
  if (status.ns_tgid.size() != depth || status.ns_pgid.size() != depth ||
      status.ns_sid.size() != depth) {
    return make_error(absl::StatusCode::kInvalidArgument, "status: NS lists of unequal length");
  }
  return status;
}

absl::StatusOr<TaskStatus> read_task_status(HostPid task) {
  GW_ASSIGN_OR_RETURN(const std::string text,
                      read_file(fmt::format("/proc/{}/status", task.value)));
  return parse_task_status(text);
}

}  // namespace godwit::kernel
