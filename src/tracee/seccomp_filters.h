// The seccomp filters of a stopped task (ptrace(2), PTRACE_SECCOMP_GET_FILTER, Linux 4.4, and
// PTRACE_SECCOMP_GET_METADATA, 4.16; both CONFIG_CHECKPOINT_RESTORE).
#ifndef GODWIT_TRACEE_SECCOMP_FILTERS_H_
#define GODWIT_TRACEE_SECCOMP_FILTERS_H_

#include <linux/filter.h>

#include <vector>

#include "absl/status/statusor.h"
#include "base/ids.h"

namespace godwit::tracee {

struct SeccompFilter {
  std::vector<sock_filter> code;
  bool log = false;  // SECCOMP_FILTER_FLAG_LOG
};

// Oldest first; none for a task without filters, or in strict mode. The task is stopped by this
// thread. kPermissionDenied: not without CAP_SYS_ADMIN, nor under filters of our own (EACCES);
// kUnimplemented: this kernel does not show them (EIO).
absl::StatusOr<std::vector<SeccompFilter>> seccomp_filters(HostPid stopped);

}  // namespace godwit::tracee

#endif  // GODWIT_TRACEE_SECCOMP_FILTERS_H_
