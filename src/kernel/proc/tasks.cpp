#include "kernel/proc/tasks.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "base/status.h"
#include "kernel/proc/text_scanner.h"
#include "kernel/syscalls.h"

namespace godwit::kernel {
namespace {

absl::StatusOr<std::vector<int>> read_numbers(const std::string& folder) {
  GW_ASSIGN_OR_RETURN(const std::vector<std::string> names, list_folder(folder));
  std::vector<int> numbers;
  numbers.reserve(names.size());
  for (const std::string& name : names) {
    TextScanner s(name);
    int number = 0;
    if (!s.number(number) || !s.at_end() || number < 0) {
      return make_error(absl::StatusCode::kInvalidArgument, "{}: \"{}\" is no number", folder,
                        name);
    }
    numbers.push_back(number);
  }
  return numbers;
}

}  // namespace

absl::StatusOr<std::vector<HostPid>> parse_pids(std::string_view text) {
  std::vector<HostPid> pids;
  TextScanner s(text);
  while (true) {
    while (s.peek() == ' ' || s.peek() == '\n') (void)(s.literal(" ") || s.literal("\n"));
    if (s.at_end()) return pids;
    HostPid pid;
    const bool number = s.number(pid.value);
    if (!number || pid.value <= 0 || !(s.at_end() || s.peek() == ' ' || s.peek() == '\n')) {
      return make_error(absl::StatusCode::kInvalidArgument, "not a list of pids: \"{}\"",
                        text.substr(0, 100));
    }
    pids.push_back(pid);
  }
}

absl::StatusOr<std::vector<HostPid>> read_tasks(HostPid tgid) {
  GW_ASSIGN_OR_RETURN(const std::vector<int> numbers,
                      read_numbers(fmt::format("/proc/{}/task", tgid.value)));
  std::vector<HostPid> tasks;
  tasks.reserve(numbers.size());
  // Tids wrap around: a leader may have a higher number than its threads.
  for (const int tid : numbers) {
    if (tid == tgid.value)
      tasks.insert(tasks.begin(), HostPid{tid});
    else
      tasks.push_back(HostPid{tid});
  }
  return tasks;
}

absl::StatusOr<std::vector<HostPid>> read_children(HostPid tgid, HostPid tid) {
  GW_ASSIGN_OR_RETURN(const std::string text,
                      read_file(fmt::format("/proc/{}/task/{}/children", tgid.value, tid.value)));
  return parse_pids(text);
}

absl::StatusOr<std::vector<HostPid>> read_cgroup_processes(const std::string& folder) {
  GW_ASSIGN_OR_RETURN(const std::string text, read_file(folder + "/cgroup.procs"));
  GW_ASSIGN_OR_RETURN(std::vector<HostPid> pids, parse_pids(text));
  // cgroup-v2.rst: neither sorted nor each once.
  std::sort(pids.begin(), pids.end());
  pids.erase(std::unique(pids.begin(), pids.end()), pids.end());
  return pids;
}

absl::StatusOr<std::vector<int>> read_descriptors(HostPid pid) {
  return read_numbers(fmt::format("/proc/{}/fd", pid.value));
}

absl::StatusOr<AuxVector> parse_auxv(std::string_view bytes) {
  AuxVector vector;
  while (bytes.size() >= 16) {
    std::pair<uint64_t, uint64_t> entry;
    std::memcpy(&entry.first, bytes.data(), 8);
    std::memcpy(&entry.second, bytes.data() + 8, 8);
    bytes.remove_prefix(16);
    vector.push_back(entry);
    if (entry.first == 0) return vector;
  }
  return make_error(absl::StatusCode::kInvalidArgument, "auxv: {} entries without an end",
                    vector.size());
}

absl::StatusOr<std::string> read_auxv_bytes(HostPid pid) {
  return read_file(fmt::format("/proc/{}/auxv", pid.value));
}

}  // namespace godwit::kernel
