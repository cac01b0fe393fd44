// What a mover that was killed has left in the processes of its source: the stub's area, the copy
// of the stub in the vDSO's page, and, if it died between two calls of attaching its tracker, the
// userfaultfd's number in the process's table. (Its own copies of the userfaultfds are gone with
// it; pages/uffd_release.h lets go of the others.)
#ifndef GODWIT_PROCESS_LEFT_OVER_H_
#define GODWIT_PROCESS_LEFT_OVER_H_

#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/ids.h"
#include "base/unique_fd.h"
#include "resource/process_tree/process_tree.h"

namespace godwit::process {

// The numbers under which `pid` has one of `ours` open (kcmp(2)): a child that another thread
// forked while a tracker was attached has inherited its userfaultfd. Empty for a process that has
// ended.
absl::StatusOr<std::vector<int>> copies_of(std::span<const UniqueFd> ours, HostPid pid);

// Takes it, and copies of `ours`, out of the processes `members` (thread group leaders), each of
// which is stopped for a moment if there is something to take out. They run; no tracer has them.
// Idempotent.
absl::Status remove_left_over(const std::vector<HostPid>& members,
                              const resource::PidTranslator& translate,
                              std::span<const UniqueFd> ours = {});

}  // namespace godwit::process

#endif  // GODWIT_PROCESS_LEFT_OVER_H_
