#include "kernel/syscalls.h"

#include <dirent.h>
#include <fmt/format.h>
#include <linux/kcmp.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstring>
#include <memory>

#include "base/status.h"

namespace godwit::kernel {
namespace {

// SCM_MAX_FD of include/net/scm.h.
constexpr size_t kMaxFds = 253;

template <typename Call>
auto retry(Call call) {
  decltype(call()) result;
  do {
    result = call();
  } while (result < 0 && errno == EINTR);
  return result;
}

}  // namespace

absl::StatusOr<UniqueFd> pidfd_open(HostPid pid) {
  const long fd = ::syscall(SYS_pidfd_open, pid.value, 0);
  if (fd < 0) return errno_status(errno, fmt::format("pidfd_open({})", pid.value));
  return UniqueFd(static_cast<int>(fd));
}

absl::StatusOr<UniqueFd> pidfd_getfd(int pidfd, int fd) {
  const long copy = ::syscall(SYS_pidfd_getfd, pidfd, fd, 0);
  if (copy < 0) return errno_status(errno, fmt::format("pidfd_getfd({}, {})", pidfd, fd));
  return UniqueFd(static_cast<int>(copy));
}

absl::StatusOr<UniqueFd> open(const std::string& path, int flags, mode_t mode) {
  return openat(AT_FDCWD, path, flags, mode);
}

absl::StatusOr<UniqueFd> openat(int dirfd, const std::string& path, int flags, mode_t mode) {
  const int fd = retry([&] { return ::openat(dirfd, path.c_str(), flags | O_CLOEXEC, mode); });
  if (fd < 0)
    return errno_status(errno, fmt::format("openat({}, \"{}\", {:#o})", dirfd, path, flags));
  return UniqueFd(fd);
}

absl::StatusOr<std::string> readlinkat(int dirfd, const std::string& path) {
  std::string text(256, '\0');
  while (true) {
    const ssize_t n = ::readlinkat(dirfd, path.c_str(), text.data(), text.size());
    if (n < 0) return errno_status(errno, fmt::format("readlinkat({}, \"{}\")", dirfd, path));
    if (static_cast<size_t>(n) < text.size()) {
      text.resize(static_cast<size_t>(n));
      return text;
    }
    text.resize(text.size() * 2);
  }
}

absl::StatusOr<std::string> read_file(const std::string& path, size_t limit) {
  GW_ASSIGN_OR_RETURN(const UniqueFd fd, open(path, O_RDONLY));
  std::string text;
  size_t used = 0;
  while (true) {
    // stat's size is 0 in /proc, so grow; one spare byte tells "full" from "ended".
    text.resize(std::min(std::max<size_t>(4096, used * 2), limit + 1));
    const ssize_t n =
        retry([&] { return ::read(fd.get(), text.data() + used, text.size() - used); });
    if (n < 0) return errno_status(errno, fmt::format("read(\"{}\")", path));
    if (n == 0) break;
    used += static_cast<size_t>(n);
    if (used > limit) {
      return make_error(absl::StatusCode::kResourceExhausted, "read(\"{}\"): more than {} bytes",
                        path, limit);
    }
  }
  text.resize(used);
  return text;
}

absl::Status write_file(const std::string& path, std::string_view text) {
  GW_ASSIGN_OR_RETURN(const UniqueFd fd, open(path, O_WRONLY));
  // One write(2): most files of /proc and /sys take their value in one piece.
  const ssize_t n = retry([&] { return ::write(fd.get(), text.data(), text.size()); });
  if (n < 0) return errno_status(errno, fmt::format("write(\"{}\", {} bytes)", path, text.size()));
  if (static_cast<size_t>(n) != text.size()) {
    return make_error(absl::StatusCode::kDataLoss, "write(\"{}\"): {} of {} bytes", path, n,
                      text.size());
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<std::string>> list_folder(const std::string& path) {
  const std::unique_ptr<DIR, int (*)(DIR*)> folder(::opendir(path.c_str()), ::closedir);
  if (!folder) return errno_status(errno, fmt::format("opendir(\"{}\")", path));
  std::vector<std::string> names;
  bool numbers = true;
  while (true) {
    errno = 0;
    const dirent* entry = ::readdir(folder.get());
    if (entry == nullptr) {
      if (errno != 0) return errno_status(errno, fmt::format("readdir(\"{}\")", path));
      break;
    }
    std::string name = entry->d_name;
    if (name == "." || name == "..") continue;
    numbers = numbers && name.find_first_not_of("0123456789") == std::string::npos;
    names.push_back(std::move(name));
  }
  std::sort(names.begin(), names.end(), [numbers](const std::string& a, const std::string& b) {
    if (numbers && a.size() != b.size()) return a.size() < b.size();
    return a < b;
  });
  return names;
}

absl::StatusOr<Pipe> pipe2(int flags) {
  int fds[2];
  if (::pipe2(fds, flags | O_CLOEXEC) != 0)
    return errno_status(errno, fmt::format("pipe2({:#o})", flags));
  return Pipe{UniqueFd(fds[0]), UniqueFd(fds[1])};
}

absl::StatusOr<UniqueFd> duplicate(int fd) {
  const int copy = ::fcntl(fd, F_DUPFD_CLOEXEC, 0);
  if (copy < 0) return errno_status(errno, fmt::format("fcntl({}, F_DUPFD_CLOEXEC)", fd));
  return UniqueFd(copy);
}

absl::StatusOr<int> fcntl_int(int fd, int command, int argument) {
  const int result = ::fcntl(fd, command, argument);
  if (result < 0)
    return errno_status(errno, fmt::format("fcntl({}, {}, {})", fd, command, argument));
  return result;
}

absl::StatusOr<UniqueFd> memfd_create(const std::string& name, unsigned flags) {
  const int fd = ::memfd_create(name.c_str(), flags | MFD_CLOEXEC);
  if (fd < 0) return errno_status(errno, fmt::format("memfd_create(\"{}\", {:#x})", name, flags));
  return UniqueFd(fd);
}

absl::Status kcmp_same_file(HostPid a, int fd_a, HostPid b, int fd_b, bool& same) {
  const long order = ::syscall(SYS_kcmp, a.value, b.value, KCMP_FILE, fd_a, fd_b);
  if (order < 0) {
    return errno_status(
        errno, fmt::format("kcmp({}, {}, KCMP_FILE, {}, {})", a.value, b.value, fd_a, fd_b));
  }
  same = order == 0;
  return absl::OkStatus();
}

absl::Status kcmp_same_memory(HostPid a, HostPid b, bool& same) {
  const long order = ::syscall(SYS_kcmp, a.value, b.value, KCMP_VM, 0, 0);
  if (order < 0) return errno_status(errno, fmt::format("kcmp({}, {}, KCMP_VM)", a.value, b.value));
  same = order == 0;
  return absl::OkStatus();
}

absl::Status send_with_fds(int socket, std::string_view bytes, const std::vector<int>& fds) {
  // A stream socket carries descriptors only beside at least one byte (unix(7)).
  if (bytes.empty()) {
    return absl::InvalidArgumentError("sendmsg: descriptors need at least one byte beside them");
  }
  if (fds.size() > kMaxFds) {
    return make_error(absl::StatusCode::kInvalidArgument, "sendmsg: {} descriptors, at most {}",
                      fds.size(), kMaxFds);
  }
  alignas(cmsghdr) char control[CMSG_SPACE(kMaxFds * sizeof(int))] = {};
  iovec part{const_cast<char*>(bytes.data()), bytes.size()};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  if (!fds.empty()) {
    message.msg_control = control;
    message.msg_controllen = CMSG_SPACE(fds.size() * sizeof(int));
    cmsghdr* const header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(fds.size() * sizeof(int));
    std::memcpy(CMSG_DATA(header), fds.data(), fds.size() * sizeof(int));
  }
  ssize_t sent = retry([&] { return ::sendmsg(socket, &message, MSG_NOSIGNAL); });
  // A stream socket may take a part; the descriptors went with its first byte.
  for (size_t at = 0; sent >= 0;) {
    at += static_cast<size_t>(sent);
    if (at >= bytes.size()) return absl::OkStatus();
    sent =
        retry([&] { return ::send(socket, bytes.data() + at, bytes.size() - at, MSG_NOSIGNAL); });
  }
  return errno_status(errno, fmt::format("sendmsg({}, {} bytes, {} descriptors)", socket,
                                         bytes.size(), fds.size()));
}

absl::StatusOr<Received> receive_with_fds(int socket, size_t max_bytes) {
  Received received;
  received.bytes.resize(max_bytes);
  alignas(cmsghdr) char control[CMSG_SPACE(kMaxFds * sizeof(int))] = {};
  iovec part{received.bytes.data(), received.bytes.size()};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  const ssize_t n = retry([&] { return ::recvmsg(socket, &message, MSG_CMSG_CLOEXEC); });
  if (n < 0) return errno_status(errno, fmt::format("recvmsg({}, {} bytes)", socket, max_bytes));
  for (cmsghdr* header = CMSG_FIRSTHDR(&message); header != nullptr;
       header = CMSG_NXTHDR(&message, header)) {
    if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) continue;
    const size_t count = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < count; ++i) {
      int fd = -1;
      std::memcpy(&fd, CMSG_DATA(header) + i * sizeof(int), sizeof fd);
      received.fds.emplace_back(fd);
    }
  }
  if ((message.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) != 0) {
    return make_error(absl::StatusCode::kDataLoss, "recvmsg({}): message or descriptors cut short",
                      socket);
  }
  if (n == 0 && received.fds.empty()) {
    return make_error(absl::StatusCode::kOutOfRange, "recvmsg({}): closed by the peer", socket);
  }
  received.bytes.resize(static_cast<size_t>(n));
  return received;
}

}  // namespace godwit::kernel
