// System V message queues (msgop(2), msgctl(2)). MSG_COPY (CONFIG_CHECKPOINT_RESTORE, Linux 3.8)
// reads a message and leaves it where it is.
#ifndef GODWIT_RESOURCE_SYSV_IPC_QUEUES_H_
#define GODWIT_RESOURCE_SYSV_IPC_QUEUES_H_

#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "resource/sysv_ipc/sysv_ipc.pb.h"

namespace godwit::resource {

// All queues of the caller's ipc namespace; nobody sends or receives.
absl::StatusOr<std::vector<MessageQueueState>> read_queues();

absl::StatusOr<MessageQueueState> parse_queue(std::string_view bytes);
// In the caller's ipc namespace, with its messages.
absl::Status make_queue(const MessageQueueState& state);

}  // namespace godwit::resource

#endif  // GODWIT_RESOURCE_SYSV_IPC_QUEUES_H_
