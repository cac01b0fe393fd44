// /proc/PID/maps and /proc/PID/smaps (proc(5), Linux 6.18): the mappings of an address space.
#ifndef GODWIT_KERNEL_PROC_MAPS_H_
#define GODWIT_KERNEL_PROC_MAPS_H_

#include <sys/types.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "base/ids.h"

namespace godwit::kernel {

struct Mapping {
  uint64_t start = 0;
  uint64_t end = 0;
  bool read = false;
  bool write = false;
  bool execute = false;
  bool shared = false;
  uint64_t offset = 0;  // bytes into the file
  dev_t dev = 0;        // as maps prints it (overlayfs: may differ from stat(2))
  ino_t inode = 0;
  std::string path;  // unescaped; "[heap]", "[stack]", "[vdso]", "[anon:name]", "/x (deleted)", ""
  // From smaps only: two-letter codes of VmFlags ("rd", "gd", "lo", "hg", "nh", "dd", "wf", ...),
  // space separated as printed.
  std::string vm_flags;

  uint64_t size() const { return end - start; }
  // [vdso], [vvar], [vvar_vclock], [vsyscall]: the kernel's own, no pages of the program.
  bool of_kernel() const;
  // No file behind it: private anonymous, heap, stack, named anonymous.
  bool anonymous() const { return inode == 0; }
  bool has_flag(std::string_view code) const;
};

absl::StatusOr<std::vector<Mapping>> parse_maps(std::string_view text);
absl::StatusOr<std::vector<Mapping>> parse_smaps(std::string_view text);

absl::StatusOr<std::vector<Mapping>> read_maps(HostPid pid);
absl::StatusOr<std::vector<Mapping>> read_smaps(HostPid pid);
// Only those that begin below `address`. The kernel walks the page tables of a mapping when its
// record is read, so what lies above costs nothing but for the few that a page of text holds.
absl::StatusOr<std::vector<Mapping>> read_smaps_below(HostPid pid, uint64_t address);

}  // namespace godwit::kernel

#endif  // GODWIT_KERNEL_PROC_MAPS_H_
