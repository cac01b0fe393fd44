#include <dirent.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <mqueue.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <map>

#include "absl/cleanup/cleanup.h"
#include "base/status.h"
#include "kernel/syscalls.h"
#include "resource/posix_mqueue/posix_mqueue.h"
#include "resource/state_codec.h"
#include "resource/sysv_ipc/raised_limit.h"

namespace godwit::resource {
namespace {

using kernel::KernelAddress;
using kernel::KernelMemory;

// include/uapi/linux/mount.h, Linux 5.2.
constexpr unsigned kCloseOnExec = 1;    // FSOPEN_CLOEXEC, FSMOUNT_CLOEXEC
constexpr unsigned kCreateCommand = 6;  // FSCONFIG_CMD_CREATE

constexpr uint64_t kMostBytes = uint64_t{64} << 20;  // of one queue, as of other content
constexpr uint64_t kMostMessages = 65536;            // HARD_MSGMAX
constexpr uint64_t kMostOfOne = uint64_t{16} << 20;  // HARD_MSGSIZEMAX
constexpr uint32_t kMostPriority = 32767;            // MQ_PRIO_MAX - 1
constexpr uint64_t kPage = 4096;

absl::StatusOr<UniqueFd> taken(long fd, const char* call) {
  if (fd < 0) return errno_status(errno, fmt::format("{}(mqueue)", call));
  return UniqueFd(static_cast<int>(fd));
}

absl::StatusOr<mq_attr> attributes_of(int fd) {
  mq_attr attributes{};
  if (::syscall(SYS_mq_getsetattr, fd, nullptr, &attributes) != 0)
    return errno_status(errno, fmt::format("mq_getsetattr({})", fd));
  return attributes;
}

// "QSIZE:129 NOTIFY:0 SIGNO:0 NOTIFY_PID:0" (mq_overview(7)).
absl::StatusOr<bool> is_notified(int fd) {
  GW_ASSIGN_OR_RETURN(const std::string text,
                      kernel::read_file(fmt::format("/proc/self/fd/{}", fd), 4096));
  constexpr std::string_view kKey = "NOTIFY_PID:";
  const size_t at = text.find(kKey);
  if (at == std::string::npos)
    return make_error(absl::StatusCode::kInternal, "a message queue says \"{}\"", text);
  int pid = 0;
  std::from_chars(text.data() + at + kKey.size(), text.data() + text.size(), pid);
  return pid != 0;
}

absl::Status check(int fd, const mq_attr& attributes) {
  GW_ASSIGN_OR_RETURN(const bool notified, is_notified(fd));
  if (notified)
    return make_error(absl::StatusCode::kFailedPrecondition,
                      "a process asked to be told of the next message (mq_notify)");
  if (static_cast<uint64_t>(attributes.mq_curmsgs) * static_cast<uint64_t>(attributes.mq_msgsize) >
      kMostBytes)
    return make_error(absl::StatusCode::kFailedPrecondition, "it may hold more than {} MiB",
                      kMostBytes >> 20);
  return absl::OkStatus();
}

// A message begins behind its header and goes on behind those of further pages (load_msg(),
// ipc/msgutil.c).
absl::Status read_message(const KernelMemory& memory, KernelAddress message, uint64_t most,
                          std::string& text) {
  GW_ASSIGN_OR_RETURN(const uint64_t size, memory.number(message, "msg_msg", "m_ts"));
  GW_ASSIGN_OR_RETURN(const kernel::Btf::Field last, memory.btf().field("msg_msg", "security"));
  if (size > most) return absl::UnavailableError("a message is changing");
  text.resize(size);
  const auto to = std::as_writable_bytes(std::span(text));
  uint64_t header = last.offset + last.size;
  KernelAddress part = message;
  GW_ASSIGN_OR_RETURN(KernelAddress next, memory.pointer(message, "msg_msg", "next"));
  for (uint64_t done = 0; done < size;) {
    const uint64_t here = std::min(size - done, kPage - header);
    GW_RETURN_IF_ERROR(memory.read(part + header, to.subspan(done, here)));
    done += here;
    if (done == size) break;
    if (!next) return absl::UnavailableError("a message is changing");
    part = next;
    GW_ASSIGN_OR_RETURN(next, memory.pointer(part, "msg_msgseg", "next"));
    header = sizeof(uint64_t);
  }
  return absl::OkStatus();
}

// The nodes of the tree, each of one priority, by it.
absl::Status collect_nodes(const KernelMemory& memory, KernelAddress link, int depth,
                           std::map<uint32_t, KernelAddress, std::greater<>>& nodes) {
  if (!link) return absl::OkStatus();
  // A red-black tree of all priorities is not deeper.
  if (depth > 40) return absl::UnavailableError("a queue is changing");
  GW_ASSIGN_OR_RETURN(const kernel::Btf::Field inside,
                      memory.btf().field("posix_msg_tree_node", "rb_node"));
  const KernelAddress node{link.value - inside.offset};
  GW_ASSIGN_OR_RETURN(const uint64_t priority,
                      memory.number(node, "posix_msg_tree_node", "priority"));
  nodes.emplace(static_cast<uint32_t>(priority), node);
  for (const char* side : {"rb_left", "rb_right"}) {
    GW_ASSIGN_OR_RETURN(const KernelAddress child, memory.pointer(link, "rb_node", side));
    GW_RETURN_IF_ERROR(collect_nodes(memory, child, depth + 1, nodes));
  }
  return absl::OkStatus();
}

absl::Status read_messages(int fd, const KernelMemory& memory, PosixQueueState& state) {
  GW_ASSIGN_OR_RETURN(const KernelAddress file, memory.file(fd));
  GW_ASSIGN_OR_RETURN(const KernelAddress inode, memory.pointer(file, "file", "f_inode"));
  GW_ASSIGN_OR_RETURN(const kernel::Btf::Field inside,
                      memory.btf().field("mqueue_inode_info", "vfs_inode"));
  GW_ASSIGN_OR_RETURN(
      const KernelAddress root,
      memory.pointer({inode.value - inside.offset}, "mqueue_inode_info", "msg_tree.rb_node"));
  std::map<uint32_t, KernelAddress, std::greater<>> nodes;
  GW_RETURN_IF_ERROR(collect_nodes(memory, root, 0, nodes));
  GW_ASSIGN_OR_RETURN(const kernel::Btf::Field link, memory.btf().field("msg_msg", "m_list"));
  for (const auto& [priority, node] : nodes) {
    GW_ASSIGN_OR_RETURN(const KernelAddress head,
                        memory.member(node, "posix_msg_tree_node", "msg_list"));
    KernelAddress at = head;
    for (;;) {
      GW_ASSIGN_OR_RETURN(at, memory.pointer(at, "list_head", "next"));
      if (at == head) break;
      if (!at || static_cast<uint64_t>(state.messages_size()) > state.most_messages())
        return absl::UnavailableError("a queue is changing");
      PosixQueueState::Message& message = *state.add_messages();
      message.set_priority(priority);
      GW_RETURN_IF_ERROR(read_message(memory, {at.value - link.offset}, state.most_bytes(),
                                      *message.mutable_text()));
    }
  }
  return absl::OkStatus();
}

absl::Status send_all(int fd, const PosixQueueState& state) {
  const timespec now{};
  for (const auto& message : state.messages())
    if (::syscall(SYS_mq_timedsend, fd, message.text().data(), message.text().size(),
                  message.priority(), &now) != 0)
      return errno_status(errno,
                          fmt::format("mq_timedsend(\"{}\", {} bytes, priority {})", state.name(),
                                      message.text().size(), message.priority()));
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<UniqueFd> open_queue_folder() {
  GW_ASSIGN_OR_RETURN(const UniqueFd context,
                      taken(::syscall(SYS_fsopen, "mqueue", kCloseOnExec), "fsopen"));
  if (::syscall(SYS_fsconfig, context.get(), kCreateCommand, nullptr, nullptr, 0) != 0)
    return errno_status(errno, "fsconfig(mqueue)");
  GW_ASSIGN_OR_RETURN(const UniqueFd mount,
                      taken(::syscall(SYS_fsmount, context.get(), kCloseOnExec, 0), "fsmount"));
  return kernel::openat(mount.get(), ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
}

absl::StatusOr<std::vector<std::string>> queue_names(int folder) {
  // A description of its own: the position is not ours alone.
  GW_ASSIGN_OR_RETURN(UniqueFd own,
                      kernel::openat(folder, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  DIR* list = ::fdopendir(own.get());
  if (list == nullptr) return errno_status(errno, "fdopendir(mqueue)");
  (void)own.release();
  absl::Cleanup close = [list] { ::closedir(list); };
  std::vector<std::string> names;
  while (const dirent* entry = ::readdir(list))
    if (entry->d_name[0] != '.') names.emplace_back(entry->d_name);
  std::sort(names.begin(), names.end());
  return names;
}

absl::StatusOr<PosixQueueState> read_posix_queue(int fd, std::string name, GetMemory get_memory) {
  GW_ASSIGN_OR_RETURN(const mq_attr attributes, attributes_of(fd));
  GW_RETURN_IF_ERROR(annotate(check(fd, attributes), "POSIX message queue /" + name));
  struct stat file {};
  if (::fstat(fd, &file) != 0) return errno_status(errno, fmt::format("fstat({})", fd));
  PosixQueueState state;
  state.set_id(file.st_ino);
  state.set_name(std::move(name));
  state.set_mode(file.st_mode & 07777);
  state.set_uid(file.st_uid);
  state.set_gid(file.st_gid);
  state.set_most_messages(static_cast<uint64_t>(attributes.mq_maxmsg));
  state.set_most_bytes(static_cast<uint64_t>(attributes.mq_msgsize));
  if (attributes.mq_curmsgs == 0) return state;
  GW_ASSIGN_OR_RETURN(const KernelMemory* memory, get_memory());
  GW_RETURN_IF_ERROR(read_messages(fd, *memory, state));
  if (state.messages_size() != attributes.mq_curmsgs)
    return absl::UnavailableError("a queue is changing");
  return state;
}

absl::Status refuse_posix_queue(int fd, const std::string& object, GetMemory get_memory,
                                std::vector<Refusal>& refusals) {
  GW_ASSIGN_OR_RETURN(const mq_attr attributes, attributes_of(fd));
  const absl::Status checked = check(fd, attributes);
  if (absl::IsFailedPrecondition(checked)) {
    refusals.push_back({"mqueue.state", object, std::string(message_of(checked)),
                        "let the program wait in mq_receive(3) instead, and read its messages"});
    return absl::OkStatus();
  }
  GW_RETURN_IF_ERROR(checked);
  if (const auto memory = get_memory(); !memory.ok())
    refusals.push_back(
        {"mqueue.kernel", object,
         "this kernel does not show what lies in it: " + std::string(message_of(memory.status())),
         "a kernel with CONFIG_DEBUG_INFO_BTF, as distributions have it; or System "
         "V message queues, pipes or sockets"});
  return absl::OkStatus();
}

absl::StatusOr<PosixQueueState> parse_posix_queue(std::string_view bytes) {
  GW_ASSIGN_OR_RETURN(auto state, parse_state<PosixQueueState>(bytes, "posix_queue"));
  bool right = !state.name().empty() && state.name().size() <= 255 &&
               state.name().find_first_of(std::string_view("/\0", 2)) == std::string::npos &&
               state.name() != "." && state.name() != ".." && state.most_messages() > 0 &&
               state.most_messages() <= kMostMessages && state.most_bytes() > 0 &&
               state.most_bytes() <= kMostOfOne &&
               static_cast<uint64_t>(state.messages_size()) <= state.most_messages();
  for (const auto& message : state.messages())
    right =
        right && message.priority() <= kMostPriority && message.text().size() <= state.most_bytes();
  if (!right)
    return make_error(absl::StatusCode::kDataLoss, "POSIX message queue: values out of range");
  return state;
}

absl::Status make_posix_queue(const PosixQueueState& state) {
  // All are counted for root here. Where this is not allowed, the limit that there is has to do.
  const rlimit none{RLIM_INFINITY, RLIM_INFINITY};
  (void)::setrlimit(RLIMIT_MSGQUEUE, &none);
  GW_ASSIGN_OR_RETURN(const RaisedLimit messages,
                      RaisedLimit::at_least("/proc/sys/fs/mqueue/msg_max", state.most_messages()));
  GW_ASSIGN_OR_RETURN(const RaisedLimit bytes,
                      RaisedLimit::at_least("/proc/sys/fs/mqueue/msgsize_max", state.most_bytes()));
  mq_attr attributes{};
  attributes.mq_maxmsg = static_cast<long>(state.most_messages());
  attributes.mq_msgsize = static_cast<long>(state.most_bytes());
  const std::string& name = state.name();
  const UniqueFd fd(static_cast<int>(::syscall(SYS_mq_open, name.c_str(),
                                               O_CREAT | O_EXCL | O_RDWR | O_CLOEXEC | O_NONBLOCK,
                                               0600, &attributes)));
  if (!fd)
    return errno_status(errno, fmt::format("mq_open(\"{}\", {} messages of {} bytes)", name,
                                           state.most_messages(), state.most_bytes()));
  const auto fill = [&]() -> absl::Status {
    GW_RETURN_IF_ERROR(send_all(fd.get(), state));
    if (::fchown(fd.get(), state.uid(), state.gid()) != 0 ||
        ::fchmod(fd.get(), state.mode() & 07777) != 0)
      return errno_status(errno, fmt::format("chown, chmod of queue \"{}\"", name));
    return absl::OkStatus();
  };
  const absl::Status filled = fill();
  if (!filled.ok()) ::syscall(SYS_mq_unlink, name.c_str());
  return filled;
}

}  // namespace godwit::resource
