#include <fcntl.h>
#include <linux/sockios.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <cstddef>
#include <cstring>

#include "base/status.h"
#include "kernel/syscalls.h"
#include "resource/same_description.h"
#include "resource/signal_owner/signal_owner.h"
#include "resource/socket_options/options.h"
#include "resource/unix_socket/diag.h"
#include "resource/unix_socket/internal.h"

namespace godwit::resource {
namespace {

constexpr uint32_t kBothWays = 3;  // SHUTDOWN_MASK
constexpr int kScmPidfd = 4;       // SCM_PIDFD, linux/socket.h of 6.5

absl::Status retry(const OpenFile& file, std::string_view why) {
  return make_error(absl::StatusCode::kUnavailable,
                    "unix socket {} of process {}: {}; it passes by itself: let the program run "
                    "for a moment and try again",
                    file.remote_fd, file.tgid.value, why);
}

absl::StatusOr<std::string> name_from(decltype(::getsockname)* call, int fd) {
  sockaddr_un address{};
  socklen_t size = sizeof address;
  if (call(fd, reinterpret_cast<sockaddr*>(&address), &size) != 0)
    return errno_status(errno, fmt::format("getsockname or getpeername({})", fd));
  constexpr size_t kHead = offsetof(sockaddr_un, sun_path);
  if (size <= kHead) return std::string();
  std::string name(address.sun_path, std::min<size_t>(size - kHead, sizeof address.sun_path));
  // A path ends at its 0, an abstract name has its length.
  if (name.front() != 0) name.resize(::strnlen(name.data(), name.size()));
  return name;
}

bool is_path(const std::string& name) { return !name.empty() && name.front() != 0; }

absl::StatusOr<UnixCredentials> credentials_of(int fd) {
  ucred raw{};
  socklen_t size = sizeof raw;
  if (::getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &raw, &size) != 0)
    return errno_status(errno, fmt::format("getsockopt({}, SO_PEERCRED)", fd));
  UnixCredentials credentials;
  credentials.set_uid(raw.uid);
  credentials.set_gid(raw.gid);
  return credentials;
}

absl::Status capture_file(const OpenFile& file, const CaptureContext& context,
                          UnixSocketState& state) {
  std::string path = state.name();
  UnixSocketFile& out = *state.mutable_file();
  if (path.front() != '/') {
    GW_ASSIGN_OR_RETURN(
        *out.mutable_directory(),
        kernel::readlinkat(AT_FDCWD, fmt::format("/proc/{}/cwd", file.host_tgid.value)));
    path = out.directory() + "/" + path;
  }
  return context.in_capsule([&] {
    struct stat stat {};
    if (::lstat(path.c_str(), &stat) != 0 || !S_ISSOCK(stat.st_mode)) return absl::OkStatus();
    out.set_present(true);
    out.set_mode(stat.st_mode & 07777);
    out.set_uid(stat.st_uid);
    out.set_gid(stat.st_gid);
    return absl::OkStatus();
  });
}

// The other end: its description goes into the state.
absl::Status capture_peer(const OpenFile& file, const CaptureContext& context, const UnixDiag& diag,
                          UnixSocketState& state) {
  state.set_connected(true);
  const bool closed = diag.peer == 0;
  if (closed) {
    if (diag.type != SOCK_DGRAM && diag.shutdown != kBothWays && context.final())
      return retry(file, "the other end has not accepted the connection yet");
    return absl::OkStatus();
  }
  const auto peers = context.with_inode(file.stat.st_dev, diag.peer);
  if (peers.empty())
    return make_error(absl::StatusCode::kFailedPrecondition,
                      "unix socket {} of process {} is connected to a process outside",
                      file.remote_fd, file.tgid.value);
  const OpenFile& peer = *peers.front();
  state.set_peer(peer.id);
  if (diag.type == SOCK_DGRAM) {
    GW_ASSIGN_OR_RETURN(const UnixDiag theirs, unix_diag(diag.peer, context));
    state.set_peer_mutual(theirs.peer == file.stat.st_ino);
    if (!state.peer_mutual() && state.remote_name().empty())
      return make_error(absl::StatusCode::kFailedPrecondition,
                        "unix socket {} of process {} sends to a socket without a name",
                        file.remote_fd, file.tgid.value);
  } else {
    GW_ASSIGN_OR_RETURN(*state.mutable_local_credentials(), credentials_of(peer.fd));
  }
  return absl::OkStatus();
}

// Takes the descriptors that a peeked message put into our own table: those that were passed, and
// no others.
std::vector<UniqueFd> take_descriptors(msghdr& message) {
  std::vector<UniqueFd> rights;
  for (cmsghdr* c = CMSG_FIRSTHDR(&message); c != nullptr; c = CMSG_NXTHDR(&message, c)) {
    if (c->cmsg_level != SOL_SOCKET || (c->cmsg_type != SCM_RIGHTS && c->cmsg_type != kScmPidfd))
      continue;
    for (size_t at = CMSG_LEN(0); at + sizeof(int) <= c->cmsg_len; at += sizeof(int)) {
      int fd = -1;
      std::memcpy(&fd, reinterpret_cast<const char*>(c) + at, sizeof fd);
      UniqueFd own(fd);
      if (c->cmsg_type == SCM_RIGHTS && own) rights.push_back(std::move(own));
    }
  }
  return rights;
}

absl::Status read_credentials(const msghdr& message, UnixMessage& out) {
  for (cmsghdr* c = CMSG_FIRSTHDR(&message); c != nullptr;
       c = CMSG_NXTHDR(const_cast<msghdr*>(&message), c)) {
    if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_CREDENTIALS) continue;
    ucred raw{};
    std::memcpy(&raw, CMSG_DATA(c), sizeof raw);
    GW_ASSIGN_OR_RETURN(const int pid, raw.pid == 0 ? 0 : image_pid_of(raw.pid));
    out.set_has_credentials(true);
    out.set_pid(pid);
    out.set_uid(raw.uid);
    out.set_gid(raw.gid);
  }
  return absl::OkStatus();
}

// 0: none of the tree, nor any that was found under way (unix_rights_under_way()).
absl::StatusOr<uint64_t> description_of(int fd, const CaptureContext& context) {
  struct stat stat {};
  if (::fstat(fd, &stat) != 0) return errno_status(errno, fmt::format("fstat({})", fd));
  return same_description(fd, stat, context.with_inode(stat.st_dev, stat.st_ino));
}

// What is done with each message: its bytes, the receive call's header, what was passed in it.
using EachMessage = absl::FunctionRef<absl::Status(std::string_view data, const msghdr& message,
                                                   std::vector<UniqueFd> rights)>;

// The queue, message by message. SO_PEEK_OFF is 0 when it is called and moves along.
absl::Status peek_messages(const OpenFile& file, size_t bytes_queued, const UnixSocketState& state,
                           EachMessage each) {
  std::string buffer(std::max<size_t>(bytes_queued, size_t{256} << 10), '\0');
  size_t seen = 0;
  // A stream is read to its last byte and not beyond: asking for more takes a pending error away.
  while (state.type() != SOCK_STREAM || seen < bytes_queued) {
    sockaddr_un from{};
    iovec part{buffer.data(), buffer.size()};
    alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int) * 253) + 4 * CMSG_SPACE(64)];
    msghdr message{};
    message.msg_name = &from;
    message.msg_namelen = sizeof from;
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    const ssize_t got =
        ::recvmsg(file.fd, &message, MSG_PEEK | MSG_DONTWAIT | MSG_TRUNC | MSG_CMSG_CLOEXEC);
    if (got < 0 && (errno == EAGAIN || errno == EINVAL || errno == ENOTCONN))
      return absl::OkStatus();
    if (got < 0) return errno_status(errno, fmt::format("recvmsg({}, MSG_PEEK)", file.fd));
    // The end of the stream; after it a packet socket gives 0 for ever.
    if (got == 0 &&
        (state.type() == SOCK_STREAM ||
         (state.type() == SOCK_SEQPACKET && (state.shutdown() & 1) != 0 && seen >= bytes_queued)))
      return absl::OkStatus();
    std::vector<UniqueFd> rights = take_descriptors(message);
    if ((message.msg_flags & MSG_CTRUNC) != 0)
      return make_error(absl::StatusCode::kFailedPrecondition,
                        "descriptors under way in socket {} of process {} could not be taken: this "
                        "process may not open as many",
                        file.remote_fd, file.tgid.value);
    if ((message.msg_flags & MSG_TRUNC) != 0 || static_cast<size_t>(got) > buffer.size())
      return make_error(absl::StatusCode::kInternal, "a message of {} bytes", got);
    GW_RETURN_IF_ERROR(each({buffer.data(), static_cast<size_t>(got)}, message, std::move(rights)));
    seen += static_cast<size_t>(got);
  }
  return absl::OkStatus();
}

absl::Status add_message(const OpenFile& file, const CaptureContext& context, std::string_view data,
                         const msghdr& message, std::span<const UniqueFd> rights,
                         UnixSocketState& state) {
  const auto* from = static_cast<const sockaddr_un*>(message.msg_name);
  const bool named = message.msg_namelen > offsetof(sockaddr_un, sun_path) && from != nullptr;
  if (state.type() == SOCK_DGRAM && !state.peer_mutual() && named)
    return retry(file, "a datagram of a named sender waits");
  UnixMessage& out = *state.add_queue();
  out.set_data(data.data(), data.size());
  for (const UniqueFd& one : rights) {
    GW_ASSIGN_OR_RETURN(const uint64_t id, description_of(one.get(), context));
    if (id == 0) return retry(file, "descriptors are under way (SCM_RIGHTS)");
    out.add_rights(id);
  }
  return read_credentials(message, out);
}

// Calls `peek` with SO_PEEK_OFF at the queue's beginning, where something is in it.
absl::Status with_queue(const OpenFile& file, absl::FunctionRef<absl::Status(size_t)> peek) {
  int queued = 0;
  if (::ioctl(file.fd, SIOCINQ, &queued) != 0)
    return errno_status(errno, fmt::format("ioctl({}, SIOCINQ)", file.fd));
  GW_ASSIGN_OR_RETURN(const int offset, get_int_option(file.fd, SOL_SOCKET, SO_PEEK_OFF));
  GW_RETURN_IF_ERROR(set_int_option(file.fd, SOL_SOCKET, SO_PEEK_OFF, 0));
  absl::Status peeked = peek(static_cast<size_t>(queued));
  absl::Status restored = set_int_option(file.fd, SOL_SOCKET, SO_PEEK_OFF, offset);
  return peeked.ok() ? restored : peeked;
}

absl::Status capture_queue(const OpenFile& file, const CaptureContext& context,
                           UnixSocketState& state) {
  pollfd events{.fd = file.fd, .events = POLLIN | POLLPRI | POLLRDHUP, .revents = 0};
  if (::poll(&events, 1, 0) < 0) return errno_status(errno, "poll(unix socket)");
  if ((events.revents & POLLPRI) != 0) return retry(file, "urgent data wait to be read");
  if ((events.revents & POLLERR) != 0) {
    // Packet sockets give the error before their messages, and only once.
    if (!state.connected() || state.peer() != 0 || state.type() != SOCK_STREAM)
      return retry(file, "an error waits to be read");
    state.set_reset(true);
  }
  if ((events.revents & POLLIN) == 0) return absl::OkStatus();
  return with_queue(file, [&](size_t queued) {
    return peek_messages(
        file, queued, state,
        [&](std::string_view data, const msghdr& message, const std::vector<UniqueFd>& rights) {
          return add_message(file, context, data, message, rights, state);
        });
  });
}

absl::Status find_listener(const OpenFile& file, const CaptureContext& context,
                           UnixSocketState& state) {
  const std::string& name = state.name().empty() ? state.remote_name() : state.name();
  GW_ASSIGN_OR_RETURN(const auto listeners, unix_listeners(context));
  for (const UnixDiag& listener : listeners) {
    if (listener.name != name) continue;
    const auto found = context.with_inode(file.stat.st_dev, listener.inode);
    if (!found.empty()) state.set_listener(found.front()->id);
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status unix_precheck(const OpenFile& file, const CaptureContext& context,
                           std::vector<Refusal>& refusals) {
  GW_ASSIGN_OR_RETURN(const UnixDiag diag, unix_diag(file.stat.st_ino, context));
  if (!diag.has_peer || diag.peer == 0) return absl::OkStatus();
  if (!context.with_inode(file.stat.st_dev, diag.peer).empty()) return absl::OkStatus();
  auto remote = name_from(&::getpeername, file.fd);
  std::string shown = remote.ok() ? *remote : std::string();
  if (!shown.empty() && shown.front() == 0) shown.front() = '@';
  refusals.push_back(
      {"unix.outside",
       fmt::format("process {}, descriptor {} -> {}", file.tgid.value, file.remote_fd, file.link),
       fmt::format("it is connected to a process outside of the service{}{}",
                   shown.empty() ? "" : ": ", shown),
       "run the other process in the same service, or talk to it over TCP"});
  return absl::OkStatus();
}

bool unix_has_unread(const OpenFile& file) {
  pollfd events{.fd = file.fd, .events = POLLIN, .revents = 0};
  const auto listening = get_int_option(file.fd, SOL_SOCKET, SO_ACCEPTCONN);
  return ::poll(&events, 1, 0) == 1 && (events.revents & POLLIN) != 0 && listening.ok() &&
         *listening == 0;
}

absl::StatusOr<std::vector<UniqueFd>> unix_rights_under_way(const OpenFile& file) {
  std::vector<UniqueFd> all;
  if (!file.socket) return all;
  pollfd events{.fd = file.fd, .events = POLLIN | POLLRDHUP, .revents = 0};
  if (::poll(&events, 1, 0) < 0) return errno_status(errno, "poll(unix socket)");
  GW_ASSIGN_OR_RETURN(const int listening, get_int_option(file.fd, SOL_SOCKET, SO_ACCEPTCONN));
  // Of an error, which a look would take away, capture tells.
  if (listening != 0 || (events.revents & POLLIN) == 0 || (events.revents & POLLERR) != 0)
    return all;
  UnixSocketState state;
  state.set_type(file.socket->type);
  // Of packets, an empty message is the end then.
  if ((events.revents & (POLLHUP | POLLRDHUP)) != 0) state.set_shutdown(1);
  GW_RETURN_IF_ERROR(with_queue(file, [&](size_t queued) {
    return peek_messages(
        file, queued, state,
        [&](std::string_view, const msghdr&, std::vector<UniqueFd> rights) -> absl::Status {
          for (UniqueFd& one : rights) all.push_back(std::move(one));
          return absl::OkStatus();
        });
  }));
  return all;
}

absl::StatusOr<std::string> unix_capture(const OpenFile& file, const CaptureContext& context) {
  UnixSocketState state;
  GW_ASSIGN_OR_RETURN(const UnixDiag diag, unix_diag(file.stat.st_ino, context));
  state.set_type(diag.type);
  state.set_listening(diag.listening);
  state.set_shutdown(diag.shutdown);
  GW_ASSIGN_OR_RETURN(*state.mutable_name(), name_from(&::getsockname, file.fd));
  GW_ASSIGN_OR_RETURN(*state.mutable_peer_credentials(), credentials_of(file.fd));
  if (diag.listening) {
    state.set_backlog(diag.backlog);
    if (context.final() && diag.pending + diag.receive_queue > 0)
      return retry(file, fmt::format("{} connections not yet accepted", diag.receive_queue));
  }
  if (diag.has_peer) {
    auto remote = name_from(&::getpeername, file.fd);
    if (remote.ok()) state.set_remote_name(*std::move(remote));
    GW_RETURN_IF_ERROR(capture_peer(file, context, diag, state));
    if (diag.type != SOCK_DGRAM && (!state.name().empty() || !state.remote_name().empty()))
      GW_RETURN_IF_ERROR(find_listener(file, context, state));
  }
  // An accepted end bears its listener's name, and the listener has the file.
  if (is_path(state.name()) && state.listener() == 0)
    GW_RETURN_IF_ERROR(capture_file(file, context, state));
  GW_RETURN_IF_ERROR(capture_common(file, kUseUnix, AF_UNIX, true, *state.mutable_common()));
  if (context.final() && !diag.listening) GW_RETURN_IF_ERROR(capture_queue(file, context, state));
  return state.SerializeAsString();
}

}  // namespace godwit::resource
