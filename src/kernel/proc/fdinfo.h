// /proc/PID/fdinfo/N (proc_pid_fdinfo(5), Linux 6.18): four lines for every file, then lines of its
// kind ("eventfd-count:", "tfd:", "lock:", ...).
#ifndef GODWIT_KERNEL_PROC_FDINFO_H_
#define GODWIT_KERNEL_PROC_FDINFO_H_

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "base/ids.h"

namespace godwit::kernel {

struct FdInfo {
  int64_t pos = 0;
  uint32_t flags = 0;  // F_GETFL's, and O_CLOEXEC if that descriptor has it
  int32_t mnt_id = -1;
  uint64_t ino = 0;  // Linux 5.14
  struct Line {
    std::string key;    // before the ':'
    std::string value;  // after it, blanks around it removed
  };
  std::vector<Line> lines;  // of the kind, in order

  // The value of the first line of that key.
  std::optional<std::string_view> find(std::string_view key) const;
  std::optional<uint64_t> number(std::string_view key, int base = 10) const;
  bool has(std::string_view key) const { return find(key).has_value(); }
};

absl::StatusOr<FdInfo> parse_fdinfo(std::string_view text);
absl::StatusOr<FdInfo> read_fdinfo(HostPid pid, int fd);
// The text itself, for many descriptors read now and parsed later.
absl::StatusOr<std::string> read_fdinfo_text(HostPid pid, int fd);

}  // namespace godwit::kernel

#endif  // GODWIT_KERNEL_PROC_FDINFO_H_
