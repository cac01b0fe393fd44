// How much memory there is and who has it: /proc/meminfo (proc_meminfo(5)) and the memory lines of
// /proc/PID/status (proc_pid_status(5)).
#ifndef GODWIT_KERNEL_PROC_MEMORY_H_
#define GODWIT_KERNEL_PROC_MEMORY_H_

#include <cstdint>
#include <string_view>

#include "absl/status/statusor.h"
#include "base/ids.h"

namespace godwit::kernel {

// Bytes.
struct MemoryInfo {
  uint64_t total = 0;
  uint64_t available = 0;  // without swapping; MemAvailable
  uint64_t swap_free = 0;
};
absl::StatusOr<MemoryInfo> parse_memory_info(std::string_view text);
absl::StatusOr<MemoryInfo> read_memory_info();

// Bytes of one process. The kernel counts by the CPU and adds up now and then: some hundred KiB
// off. Zero all of them: a zombie or a kernel thread, which has no such lines.
struct ProcessMemory {
  uint64_t anonymous = 0;  // RssAnon: private pages
  uint64_t shared = 0;     // RssShmem
  uint64_t swapped = 0;    // VmSwap
  uint64_t huge = 0;       // HugetlbPages: of the machine's pools, private or shared
};
absl::StatusOr<ProcessMemory> parse_process_memory(std::string_view text);
absl::StatusOr<ProcessMemory> read_process_memory(HostPid pid);

}  // namespace godwit::kernel

#endif  // GODWIT_KERNEL_PROC_MEMORY_H_
