#include <fcntl.h>
#include <sys/fsuid.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstring>

#include "base/status.h"
#include "resource/socket_options/options.h"
#include "resource/unix_socket/internal.h"

namespace godwit::resource {
namespace {

struct Address {
  sockaddr_un address{};
  socklen_t size = 0;
  const sockaddr* get() const { return reinterpret_cast<const sockaddr*>(&address); }
};

absl::StatusOr<Address> address_of(const std::string& name) {
  Address result;
  result.address.sun_family = AF_UNIX;
  if (name.size() > sizeof result.address.sun_path)
    return make_error(absl::StatusCode::kDataLoss, "unix socket name of {} bytes", name.size());
  std::memcpy(result.address.sun_path, name.data(), name.size());
  result.size = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + name.size());
  return result;
}

bool is_path(const std::string& name) { return !name.empty() && name.front() != 0; }

// SO_PEERCRED takes the effective ids of the thread that calls socketpair, listen or connect. Of
// this thread alone (the raw calls), with the file system's id kept: permission to reach the
// socket's file is not what is restored here.
absl::Status as_user(const UnixCredentials& user, absl::FunctionRef<absl::Status()> action) {
  const long kKeep = -1;
  if (user.uid() == ::geteuid() && user.gid() == ::getegid()) return action();
  const uid_t uid = ::geteuid();
  const gid_t gid = ::getegid();
  if (::syscall(SYS_setresgid, kKeep, user.gid(), kKeep) != 0)
    return errno_status(errno, fmt::format("setresgid(-1, {}, -1)", user.gid()));
  absl::Status status;
  if (::syscall(SYS_setresuid, kKeep, user.uid(), kKeep) != 0) {
    status = errno_status(errno, fmt::format("setresuid(-1, {}, -1)", user.uid()));
  } else {
    ::setfsuid(uid);  // raises the file system's capabilities again (capabilities(7))
    status = action();
    if (::syscall(SYS_setresuid, kKeep, uid, kKeep) != 0)
      return errno_status(errno, fmt::format("setresuid(-1, {}, -1)", uid));
  }
  if (::syscall(SYS_setresgid, kKeep, gid, kKeep) != 0)
    return errno_status(errno, fmt::format("setresgid(-1, {}, -1)", gid));
  return status;
}

// bind(2) to the name in the capsule. A path whose file was gone gets it for a moment only, and
// what has taken its place stays.
absl::Status bind_name(int fd, const std::string& name, const UnixSocketFile& file,
                       RestoreContext& context) {
  if (name.empty()) return absl::OkStatus();
  GW_ASSIGN_OR_RETURN(const Address address, address_of(name));
  return context.in_capsule([&]() -> absl::Status {
    const auto bind_it = [&] {
      return ::bind(fd, address.get(), address.size) == 0
                 ? absl::OkStatus()
                 : errno_status(errno, fmt::format("bind(unix, \"{}\")", name));
    };
    if (!is_path(name)) return bind_it();
    const UniqueFd home(::open(".", O_PATH | O_DIRECTORY | O_CLOEXEC));
    if (name.front() != '/' && ::chdir(file.directory().c_str()) != 0)
      return errno_status(errno, fmt::format("chdir(\"{}\")", file.directory()));
    const std::string aside = name + ".godwit";
    struct stat stat {};
    const bool taken = ::lstat(name.c_str(), &stat) == 0;
    absl::Status status;
    if (taken && file.present() && S_ISSOCK(stat.st_mode)) ::unlink(name.c_str());
    if (taken && !file.present()) ::rename(name.c_str(), aside.c_str());
    status = bind_it();
    if (status.ok() && file.present() &&
        (::chown(name.c_str(), file.uid(), file.gid()) != 0 ||
         ::chmod(name.c_str(), file.mode()) != 0))
      status = errno_status(errno, fmt::format("chown, chmod(\"{}\")", name));
    if (!file.present()) {
      ::unlink(name.c_str());
      if (taken) ::rename(aside.c_str(), name.c_str());
    }
    if (name.front() != '/' && ::fchdir(home.get()) != 0 && status.ok())
      status = errno_status(errno, "fchdir(back)");
    return status;
  });
}

absl::StatusOr<UniqueFd> new_socket(int type, RestoreContext& context) {
  UniqueFd fd;
  GW_RETURN_IF_ERROR(context.in_capsule([&] {
    fd.reset(::socket(AF_UNIX, type | SOCK_CLOEXEC, 0));
    return fd ? absl::OkStatus() : errno_status(errno, fmt::format("socket(AF_UNIX, {})", type));
  }));
  return fd;
}

struct Ends {
  UniqueFd mine;
  UniqueFd other;
};

absl::StatusOr<Ends> nameless_pair(const UnixSocketState& state, RestoreContext& context) {
  Ends ends;
  GW_RETURN_IF_ERROR(context.in_capsule([&] {
    return as_user(state.peer_credentials(), [&] {
      int fds[2];
      if (::socketpair(AF_UNIX, state.type() | SOCK_CLOEXEC, 0, fds) != 0)
        return errno_status(errno, fmt::format("socketpair({})", state.type()));
      ends.mine.reset(fds[0]);
      ends.other.reset(fds[1]);
      return absl::OkStatus();
    });
  }));
  return ends;
}

// A path is bound twice in the capsule's life at most for a moment: the listener of such a pair is
// one of ours under the same name, with its file only while it is connected to.
absl::StatusOr<Ends> named_pair(const UnixSocketState& state, RestoreContext& context) {
  const bool server = !state.name().empty();
  const std::string& name = server ? state.name() : state.remote_name();
  const UnixCredentials& listens = server ? state.local_credentials() : state.peer_credentials();
  const UnixCredentials& connects = server ? state.peer_credentials() : state.local_credentials();
  GW_ASSIGN_OR_RETURN(const Address address, address_of(name));
  int listener =
      !is_path(name) && state.listener() != 0 ? context.description(state.listener()) : -1;
  UniqueFd ours, client, accepted;
  const std::string aside = name + ".godwit";
  GW_ASSIGN_OR_RETURN(client, new_socket(state.type(), context));
  if (listener < 0) {
    GW_ASSIGN_OR_RETURN(ours, new_socket(state.type(), context));
  }
  const absl::Status done = context.in_capsule([&]() -> absl::Status {
    const UniqueFd home(::open(".", O_PATH | O_DIRECTORY | O_CLOEXEC));
    const bool relative = is_path(name) && name.front() != '/';
    if (relative && ::chdir(state.file().directory().c_str()) != 0)
      return errno_status(errno, fmt::format("chdir(\"{}\")", state.file().directory()));
    const bool moved = is_path(name) && ::rename(name.c_str(), aside.c_str()) == 0;
    const auto connect_it = [&]() -> absl::Status {
      if (listener < 0) {
        listener = ours.get();
        if (::bind(listener, address.get(), address.size) != 0)
          return errno_status(errno, fmt::format("bind(unix, \"{}\")", name));
        GW_RETURN_IF_ERROR(as_user(listens, [&] {
          return ::listen(listener, 1) == 0 ? absl::OkStatus()
                                            : errno_status(errno, "listen(unix)");
        }));
      }
      GW_RETURN_IF_ERROR(as_user(connects, [&] {
        return ::connect(client.get(), address.get(), address.size) == 0
                   ? absl::OkStatus()
                   : errno_status(errno, fmt::format("connect(unix, \"{}\")", name));
      }));
      accepted.reset(::accept4(listener, nullptr, nullptr, SOCK_CLOEXEC));
      return accepted ? absl::OkStatus() : errno_status(errno, "accept4(unix)");
    };
    absl::Status status = connect_it();
    if (is_path(name)) ::unlink(name.c_str());
    if (moved) ::rename(aside.c_str(), name.c_str());
    if (relative && ::fchdir(home.get()) != 0) return errno_status(errno, "fchdir(back)");
    return status;
  });
  GW_RETURN_IF_ERROR(done);
  if (server) return Ends{std::move(accepted), std::move(client)};
  return Ends{std::move(client), std::move(accepted)};
}

absl::StatusOr<std::string> inode_key(std::string_view what, int fd) {
  struct stat stat {};
  if (::fstat(fd, &stat) != 0) return errno_status(errno, fmt::format("fstat({})", fd));
  return fmt::format("unix_socket.{}.{}", what, stat.st_ino);
}

absl::StatusOr<UniqueFd> make_connected(uint64_t id, const UnixSocketState& state,
                                        RestoreContext& context) {
  UniqueFd made = context.take(fmt::format("unix_socket.end.{}", id));
  if (made) return made;
  const bool stream = state.type() != SOCK_DGRAM;
  const bool named = stream && (!state.name().empty() || !state.remote_name().empty());
  GW_ASSIGN_OR_RETURN(Ends ends,
                      named ? named_pair(state, context) : nameless_pair(state, context));
  if (state.peer() != 0) {
    context.stash(fmt::format("unix_socket.end.{}", state.peer()), std::move(ends.other));
  } else {
    GW_ASSIGN_OR_RETURN(std::string key, inode_key("gone", ends.mine.get()));
    context.stash(std::move(key), std::move(ends.other));
  }
  return std::move(ends.mine);
}

constexpr int kMostRights = 253;  // SCM_MAX_FD

void add_control(int type, std::span<const std::byte> data, std::string& control) {
  const size_t at = control.size();
  control.resize(at + CMSG_SPACE(data.size()));
  cmsghdr head{};
  head.cmsg_level = SOL_SOCKET;
  head.cmsg_type = type;
  head.cmsg_len = CMSG_LEN(data.size());
  std::memcpy(control.data() + at, &head, sizeof head);
  std::memcpy(control.data() + at + CMSG_LEN(0), data.data(), data.size());
}

// The ancillary data of a message: who sent it, and what was passed with it.
absl::StatusOr<std::string> control_of(const UnixMessage& message, RestoreContext& context) {
  std::string control;
  if (message.has_credentials()) {
    ucred sender{.pid = 0, .uid = message.uid(), .gid = message.gid()};
    if (message.pid() != 0) {
      GW_ASSIGN_OR_RETURN(const HostPid pid, context.host_pid({message.pid()}));
      sender.pid = pid.value;
    }
    add_control(SCM_CREDENTIALS, std::as_bytes(std::span(&sender, 1)), control);
  }
  if (message.rights_size() == 0) return control;
  if (message.rights_size() > kMostRights)
    return make_error(absl::StatusCode::kDataLoss, "a message with {} descriptors",
                      message.rights_size());
  std::vector<int> fds;
  for (const uint64_t id : message.rights()) {
    fds.push_back(context.description(id));
    if (fds.back() < 0)
      return make_error(absl::StatusCode::kDataLoss, "description {} under way has no section", id);
  }
  add_control(SCM_RIGHTS, std::as_bytes(std::span(fds)), control);
  return control;
}

// The sender's own buffer may be too small for what lay in the queue; it is as before afterwards.
absl::Status send_queue(int from, const UnixSocketState& state, const Address* to,
                        RestoreContext& context) {
  SocketCommon before;
  GW_ASSIGN_OR_RETURN(const int size, get_int_option(from, SOL_SOCKET, SO_SNDBUF));
  GW_ASSIGN_OR_RETURN(const int lock, get_int_option(from, SOL_SOCKET, SO_BUF_LOCK));
  before.set_send_buffer(size);
  before.set_buffer_lock(static_cast<uint32_t>(lock));
  size_t bytes = 0;
  for (const UnixMessage& message : state.queue()) bytes += message.data().size() + 4096;
  GW_RETURN_IF_ERROR(
      set_int_option(from, SOL_SOCKET, SO_SNDBUFFORCE,
                     static_cast<int>(std::min<size_t>(bytes, INT32_MAX / 4)) + size));
  for (const UnixMessage& message : state.queue()) {
    iovec part{const_cast<char*>(message.data().data()), message.data().size()};
    msghdr header{};
    header.msg_iov = &part;
    header.msg_iovlen = 1;
    if (to != nullptr) {
      header.msg_name = const_cast<sockaddr_un*>(&to->address);
      header.msg_namelen = to->size;
    }
    GW_ASSIGN_OR_RETURN(std::string control, control_of(message, context));
    header.msg_control = control.empty() ? nullptr : control.data();
    header.msg_controllen = control.size();
    const ssize_t sent = ::sendmsg(from, &header, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent < 0 || static_cast<size_t>(sent) != message.data().size())
      return errno_status(errno, fmt::format("sendmsg(unix), {} bytes", message.data().size()));
  }
  return restore_buffers(from, before);
}

absl::Status shut_down(int fd, uint32_t mask) {
  const int how = mask == 3 ? SHUT_RDWR : mask == 2 ? SHUT_WR : SHUT_RD;
  if (mask != 0 && ::shutdown(fd, how) != 0)
    return errno_status(errno, fmt::format("shutdown(unix, {})", how));
  return absl::OkStatus();
}

// A shutdown would keep the other end from being filled: the one that is filled last applies both.
absl::Status shut_down_when_both_are_filled(int fd, int peer, const UnixSocketState& state,
                                            RestoreContext& context) {
  GW_ASSIGN_OR_RETURN(const std::string theirs, inode_key("filled", peer));
  for (uint32_t mask = 0; mask <= 3; ++mask) {
    const UniqueFd other = context.take(fmt::format("{}.{}", theirs, mask));
    if (!other) continue;
    GW_RETURN_IF_ERROR(shut_down(fd, state.shutdown()));
    return shut_down(peer, mask);
  }
  GW_ASSIGN_OR_RETURN(const std::string mine, inode_key("filled", fd));
  UniqueFd copy(::fcntl(fd, F_DUPFD_CLOEXEC, 0));
  if (!copy) return errno_status(errno, fmt::format("fcntl({}, F_DUPFD_CLOEXEC)", fd));
  context.stash(fmt::format("{}.{}", mine, state.shutdown()), std::move(copy));
  return absl::OkStatus();
}

// The peer is closed: what it had sent, then its end. Something it never read makes that a reset.
absl::Status fill_from_gone(int fd, const UnixSocketState& state, RestoreContext& context) {
  GW_ASSIGN_OR_RETURN(const std::string key, inode_key("gone", fd));
  UniqueFd gone = context.take(key);
  if (!gone)
    return make_error(absl::StatusCode::kInternal, "the closed end of a unix socket is missing");
  GW_RETURN_IF_ERROR(send_queue(gone.get(), state, nullptr, context));
  if (state.reset() && ::send(fd, "", 1, MSG_DONTWAIT | MSG_NOSIGNAL) != 1)
    return errno_status(errno, "send(unix, one byte)");
  gone.reset();
  return state.type() == SOCK_DGRAM ? shut_down(fd, state.shutdown()) : absl::OkStatus();
}

}  // namespace

absl::StatusOr<UniqueFd> unix_create(uint64_t id, const UnixSocketState& state,
                                     RestoreContext& context) {
  if (state.type() != SOCK_STREAM && state.type() != SOCK_SEQPACKET && state.type() != SOCK_DGRAM)
    return make_error(absl::StatusCode::kDataLoss, "unix socket of type {}", state.type());
  UniqueFd fd;
  const bool datagram = state.type() == SOCK_DGRAM;
  if (state.connected() && (!datagram || state.peer_mutual() || state.peer() == 0)) {
    GW_ASSIGN_OR_RETURN(fd, make_connected(id, state, context));
  } else {
    GW_ASSIGN_OR_RETURN(fd, new_socket(state.type(), context));
  }
  GW_RETURN_IF_ERROR(restore_common(fd.get(), kUseUnix, AF_UNIX, nullptr, state.common()));
  GW_RETURN_IF_ERROR(restore_buffers(fd.get(), state.common()));
  if (!state.connected() || datagram)
    GW_RETURN_IF_ERROR(bind_name(fd.get(), state.name(), state.file(), context));
  if (state.listening())
    GW_RETURN_IF_ERROR(as_user(state.peer_credentials(), [&] {
      return ::listen(fd.get(), static_cast<int>(state.backlog())) == 0
                 ? absl::OkStatus()
                 : errno_status(errno, "listen(unix)");
    }));
  return fd;
}

absl::StatusOr<bool> unix_update(int fd, const UnixSocketState& before,
                                 const UnixSocketState& now) {
  const auto identity = [](UnixSocketState state) {
    state.clear_common();
    state.clear_queue();
    state.clear_shutdown();
    state.clear_reset();
    return state.SerializeAsString();
  };
  if (identity(before) != identity(now)) return false;
  GW_RETURN_IF_ERROR(restore_common(fd, kUseUnix, AF_UNIX, &before.common(), now.common()));
  GW_RETURN_IF_ERROR(restore_buffers(fd, now.common()));
  return true;
}

absl::Status unix_fill(int fd, const UnixSocketState& state, RestoreContext& context) {
  if (state.listening()) return absl::OkStatus();
  if (state.connected() && state.peer() == 0) return fill_from_gone(fd, state, context);
  if (state.connected() && (state.type() != SOCK_DGRAM || state.peer_mutual())) {
    const int peer = context.description(state.peer());
    if (peer < 0)
      return make_error(absl::StatusCode::kInternal, "the other end of a unix socket is missing");
    GW_RETURN_IF_ERROR(send_queue(peer, state, nullptr, context));
    return shut_down_when_both_are_filled(fd, peer, state, context);
  }
  // Datagrams to a name, and after them, as it would turn away other senders, its own peer.
  if (state.queue_size() > 0) {
    GW_ASSIGN_OR_RETURN(const Address to, address_of(state.name()));
    GW_ASSIGN_OR_RETURN(const UniqueFd sender, new_socket(SOCK_DGRAM, context));
    GW_RETURN_IF_ERROR(
        context.in_capsule([&] { return send_queue(sender.get(), state, &to, context); }));
  }
  if (state.connected()) {
    GW_ASSIGN_OR_RETURN(const Address to, address_of(state.remote_name()));
    GW_RETURN_IF_ERROR(context.in_capsule([&] {
      return ::connect(fd, to.get(), to.size) == 0
                 ? absl::OkStatus()
                 : errno_status(errno, fmt::format("connect(unix, \"{}\")", state.remote_name()));
    }));
  }
  return shut_down(fd, state.shutdown());
}

}  // namespace godwit::resource
