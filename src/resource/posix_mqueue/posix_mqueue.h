// POSIX message queues (mq_overview(7)): known, to be refused.
//
// Facts (ipc/mqueue.c, Linux 6.18). A queue is a file of a file system that each ipc namespace has
// one of; it lives without any descriptor. A mount of it that is attached nowhere (fsmount(2),
// Linux 5.2) lists the names.
#ifndef GODWIT_RESOURCE_POSIX_MQUEUE_POSIX_MQUEUE_H_
#define GODWIT_RESOURCE_POSIX_MQUEUE_POSIX_MQUEUE_H_

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/unique_fd.h"
#include "resource/resource.h"

namespace godwit::resource {

// Descriptors of queues, which look like those of files.
const FileKind& posix_mqueue_kind();

// Of the caller's ipc namespace. Can be kept and listed later, from anywhere.
absl::StatusOr<UniqueFd> open_queue_folder();
absl::StatusOr<std::vector<std::string>> queue_names(int folder);

}  // namespace godwit::resource

#endif  // GODWIT_RESOURCE_POSIX_MQUEUE_POSIX_MQUEUE_H_
