// Signals of an open file description (fcntl(2): F_SETOWN_EX, F_SETSIG, O_ASYNC), of any kind.
//
// They are asked for by a process that has a descriptor of it: the kernel keeps its number (si_fd)
// and the caller's credentials with the request.
#ifndef GODWIT_RESOURCE_SIGNAL_OWNER_SIGNAL_OWNER_H_
#define GODWIT_RESOURCE_SIGNAL_OWNER_SIGNAL_OWNER_H_

#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "resource/resource.h"
#include "resource/signal_owner/signal_owner.pb.h"
#include "tracee/batch.h"

namespace godwit::resource {

// The capsule's number of a process that the kernel shows by ours.
absl::StatusOr<int> image_pid_of(int host_pid);

// nullopt: nobody asked for any.
absl::StatusOr<std::optional<SignalOwner>> signal_owner_of(const OpenFile& file);

// An owner that is not in the service, or has ended, and signals of changes in a folder, of which
// the kernel shows no more than that.
absl::Status refuse_signal_owner(const OpenFile& file, const CaptureContext& context,
                                 std::vector<Refusal>& refusals);

// For the process that has it at `remote_fd`, with the flags that it is to have in the end.
FileKind::Check add_signal_owner_calls(const SignalOwner& owner, int remote_fd,
                                       uint32_t status_flags, tracee::Batch& batch);

}  // namespace godwit::resource

#endif  // GODWIT_RESOURCE_SIGNAL_OWNER_SIGNAL_OWNER_H_
