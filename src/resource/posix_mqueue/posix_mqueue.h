// POSIX message queues (mq_overview(7)), with their messages, and descriptors of them.
//
// Facts (ipc/mqueue.c, Linux 6.18). A queue is a file of a file system that each ipc namespace has
// one of; it lives without any descriptor. A mount of it that is attached nowhere (fsmount(2),
// Linux 5.2) lists the names. No call shows a message without taking it: they are read from the
// kernel's memory, in a freeze. Closing any descriptor ends what its process asked for by
// mq_notify(3).
#ifndef GODWIT_RESOURCE_POSIX_MQUEUE_POSIX_MQUEUE_H_
#define GODWIT_RESOURCE_POSIX_MQUEUE_POSIX_MQUEUE_H_

#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "base/unique_fd.h"
#include "resource/posix_mqueue/posix_mqueue.pb.h"
#include "resource/resource.h"

namespace godwit::resource {

// Descriptors of queues, which look like those of files.
const FileKind& posix_mqueue_kind();

// Of the caller's ipc namespace. Can be kept and listed later, from anywhere.
absl::StatusOr<UniqueFd> open_queue_folder();
absl::StatusOr<std::vector<std::string>> queue_names(int folder);

using GetMemory = absl::FunctionRef<absl::StatusOr<const kernel::KernelMemory*>()>;

// The queue behind a descriptor of ours. kFailedPrecondition: it cannot be restored.
absl::StatusOr<PosixQueueState> read_posix_queue(int fd, std::string name, GetMemory memory);
// By any descriptor of it; `object` says which.
absl::Status refuse_posix_queue(int fd, const std::string& object, GetMemory memory,
                                std::vector<Refusal>& refusals);

absl::StatusOr<PosixQueueState> parse_posix_queue(std::string_view bytes);
// In the caller's ipc namespace.
absl::Status make_posix_queue(const PosixQueueState& state);

}  // namespace godwit::resource

#endif  // GODWIT_RESOURCE_POSIX_MQUEUE_POSIX_MQUEUE_H_
