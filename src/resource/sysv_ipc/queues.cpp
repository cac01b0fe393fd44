#include "resource/sysv_ipc/queues.h"

#include <fmt/format.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <string>
#include <utility>

#include "base/status.h"
#include "kernel/syscalls.h"
#include "resource/state_codec.h"
#include "resource/sysv_ipc/permissions.h"
#include "resource/sysv_ipc/raised_limit.h"

namespace godwit::resource {
namespace {

// <linux/msg.h>: where the C library has them, it needs _GNU_SOURCE.
constexpr int kMsgInfo = 12;
constexpr int kMsgStatAny = 13;  // Linux 4.17
constexpr int kMsgCopy = 040000;
constexpr uint64_t kMostBytes = uint64_t{64} << 20;  // of one queue, as of other content

struct Buffer {
  explicit Buffer(size_t bytes) : memory(sizeof(long) + bytes) {}
  std::vector<char> memory;
  long type() const {
    long type = 0;
    std::memcpy(&type, memory.data(), sizeof type);
    return type;
  }
  const char* text() const { return memory.data() + sizeof(long); }
};

// A message that is larger than one may be by now can only be copied while it may be.
absl::Status read_messages(uint64_t bytes, MessageQueueState& queue) {
  Buffer buffer(bytes);
  std::optional<RaisedLimit> raised;
  for (long index = 0;;) {
    const ssize_t n =
        ::msgrcv(queue.number(), buffer.memory.data(), bytes, index, IPC_NOWAIT | kMsgCopy);
    if (n < 0 && errno == ENOMSG) return absl::OkStatus();
    if (n < 0 && errno == EINVAL && !raised) {
      GW_ASSIGN_OR_RETURN(RaisedLimit limit,
                          RaisedLimit::at_least("/proc/sys/kernel/msgmax", bytes));
      raised.emplace(std::move(limit));
      continue;
    }
    if (n < 0)
      return errno_status(errno, fmt::format("msgrcv({}, MSG_COPY, {})", queue.number(), index));
    MessageQueueState::Message& message = *queue.add_messages();
    message.set_type(buffer.type());
    message.set_text(buffer.text(), static_cast<size_t>(n));
    ++index;
  }
}

absl::Status fill(const MessageQueueState& state) {
  msqid_ds ds{};
  const int number = state.number();
  if (::msgctl(number, IPC_STAT, &ds) != 0)
    return errno_status(errno, fmt::format("msgctl({}, IPC_STAT)", number));
  set_permissions(state.permissions(), ds.msg_perm);
  // While it is filled: a queue that was made smaller may hold more than it takes.
  uint64_t held = 0;
  size_t largest = 0;
  for (const auto& message : state.messages()) {
    held += message.text().size();
    largest = std::max(largest, message.text().size());
  }
  GW_ASSIGN_OR_RETURN(
      const RaisedLimit whole,
      RaisedLimit::at_least("/proc/sys/kernel/msgmnb", std::max(state.limit(), held)));
  GW_ASSIGN_OR_RETURN(const RaisedLimit one,
                      RaisedLimit::at_least("/proc/sys/kernel/msgmax", largest));
  const auto set_limit = [&](uint64_t bytes) -> absl::Status {
    ds.msg_qbytes = bytes;
    if (::msgctl(number, IPC_SET, &ds) != 0)
      return errno_status(errno, fmt::format("msgctl({}, IPC_SET, {} bytes)", number, bytes));
    return absl::OkStatus();
  };
  // A message counts as well, so that some thousand empty ones fit (msg_qnum below msg_qbytes).
  GW_RETURN_IF_ERROR(
      set_limit(std::max({state.limit(), held, static_cast<uint64_t>(state.messages_size())})));
  for (const auto& message : state.messages()) {
    Buffer buffer(message.text().size());
    const auto type = static_cast<long>(message.type());
    std::memcpy(buffer.memory.data(), &type, sizeof type);
    std::memcpy(buffer.memory.data() + sizeof type, message.text().data(), message.text().size());
    if (::msgsnd(number, buffer.memory.data(), message.text().size(), IPC_NOWAIT) != 0)
      return errno_status(errno,
                          fmt::format("msgsnd({}, {} bytes)", number, message.text().size()));
  }
  return set_limit(state.limit());
}

}  // namespace

absl::StatusOr<std::vector<MessageQueueState>> read_queues() {
  std::vector<MessageQueueState> queues;
  msginfo info{};
  const int last = ::msgctl(0, kMsgInfo, reinterpret_cast<msqid_ds*>(&info));
  if (last < 0) return errno_status(errno, "msgctl(MSG_INFO)");
  if (info.msgpool == 0) return queues;
  for (int index = 0; index <= last; ++index) {
    msqid_ds ds{};
    const int number = ::msgctl(index, kMsgStatAny, &ds);
    if (number < 0 && (errno == EINVAL || errno == EIDRM)) continue;  // not used, or just removed
    if (number < 0) return errno_status(errno, fmt::format("msgctl({}, MSG_STAT_ANY)", index));
    MessageQueueState& queue = queues.emplace_back();
    queue.set_number(number);
    set_permissions(ds.msg_perm, *queue.mutable_permissions());
    queue.set_limit(ds.msg_qbytes);
    if (ds.__msg_cbytes > kMostBytes)
      return make_error(absl::StatusCode::kFailedPrecondition, "message queue {} holds {} bytes",
                        number, ds.__msg_cbytes);
    if (ds.msg_qnum != 0) GW_RETURN_IF_ERROR(read_messages(ds.__msg_cbytes, queue));
  }
  return queues;
}

absl::StatusOr<MessageQueueState> parse_queue(std::string_view bytes) {
  GW_ASSIGN_OR_RETURN(auto state, parse_state<MessageQueueState>(bytes, "message_queue"));
  GW_RETURN_IF_ERROR(check_permissions(state.permissions()));
  uint64_t held = 0;
  bool right = state.number() >= 0 && state.limit() <= INT32_MAX;
  for (const auto& message : state.messages()) {
    right = right && message.type() > 0;
    held += message.text().size();
  }
  if (!right || held > kMostBytes)
    return make_error(absl::StatusCode::kDataLoss, "message queue: values out of range");
  return state;
}

absl::Status make_queue(const MessageQueueState& state) {
  const IpcPermissions& permissions = state.permissions();
  GW_ASSIGN_OR_RETURN(
      const int made,
      make_numbered("msg_next_id", state.number(), permissions.creator_uid(),
                    permissions.creator_gid(), [&] {
                      return ::msgget(permissions.key(),
                                      IPC_CREAT | IPC_EXCL | static_cast<int>(permissions.mode()));
                    }));
  const absl::Status filled =
      made == state.number()
          ? fill(state)
          : make_error(absl::StatusCode::kInternal, "message queue {} became number {}",
                       state.number(), made);
  if (!filled.ok()) ::msgctl(made, IPC_RMID, nullptr);
  return filled;
}

}  // namespace godwit::resource
