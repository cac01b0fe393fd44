#include "kernel/proc/memory.h"

#include <fmt/format.h>

#include <initializer_list>

#include "base/status.h"
#include "kernel/proc/text_scanner.h"
#include "kernel/syscalls.h"

namespace godwit::kernel {
namespace {

struct Line {
  std::string_view name;  // with its colon
  uint64_t& bytes;
  bool found = false;
};

// "Name:   1234 kB" a line.
absl::Status parse_lines(std::string_view text, std::initializer_list<Line*> wanted) {
  TextScanner all(text);
  while (!all.at_end()) {
    TextScanner line(all.line());
    for (Line* each : wanted) {
      if (!line.literal(each->name)) continue;
      line.skip_blanks();
      uint64_t kib = 0;
      if (!line.number(kib) || !line.literal(" kB") || !line.at_end() || kib > (UINT64_MAX >> 10))
        return make_error(absl::StatusCode::kDataLoss, "{} is not an amount in kB", each->name);
      each->bytes = kib << 10;
      each->found = true;
      break;
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<MemoryInfo> parse_memory_info(std::string_view text) {
  MemoryInfo info;
  Line total{"MemTotal:", info.total};
  Line available{"MemAvailable:", info.available};
  Line swap{"SwapFree:", info.swap_free};
  GW_RETURN_IF_ERROR(parse_lines(text, {&total, &available, &swap}));
  if (!total.found || !available.found)
    return make_error(absl::StatusCode::kDataLoss, "/proc/meminfo has no {}",
                      total.found ? available.name : total.name);
  return info;
}

absl::StatusOr<MemoryInfo> read_memory_info() {
  GW_ASSIGN_OR_RETURN(const std::string text, read_file("/proc/meminfo"));
  return parse_memory_info(text);
}

absl::StatusOr<ProcessMemory> parse_process_memory(std::string_view text) {
  ProcessMemory memory;
  Line anonymous{"RssAnon:", memory.anonymous};
  Line shared{"RssShmem:", memory.shared};
  Line swapped{"VmSwap:", memory.swapped};
  Line huge{"HugetlbPages:", memory.huge};
  GW_RETURN_IF_ERROR(parse_lines(text, {&anonymous, &shared, &swapped, &huge}));
  return memory;
}

absl::StatusOr<ProcessMemory> read_process_memory(HostPid pid) {
  GW_ASSIGN_OR_RETURN(const std::string text, read_file(fmt::format("/proc/{}/status", pid.value)));
  return parse_process_memory(text);
}

}  // namespace godwit::kernel
