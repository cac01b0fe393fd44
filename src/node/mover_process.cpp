#include "node/mover_process.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <charconv>
#include <cstring>
#include <span>
#include <string_view>

#include "absl/cleanup/cleanup.h"
#include "base/log.h"
#include "base/status.h"
#include "kernel/slice.h"
#include "kernel/syscalls.h"
#include "process/priority.h"

namespace godwit::node {
namespace {

constexpr int kMoverSocket = 3;
constexpr int kMoverMark = 4;
// Statistics and refusals of a big tree; the default send buffer of a socket is about as large.
constexpr size_t kMaxMessage = size_t{1} << 20;
constexpr absl::Duration kDeathWait = absl::Seconds(30);

// Field 22 of /proc/PID/stat (proc(5)); the command's name, field 2, may hold spaces and brackets.
absl::StatusOr<uint64_t> start_ticks_of(pid_t pid) {
  GW_ASSIGN_OR_RETURN(const std::string stat,
                      kernel::read_file(fmt::format("/proc/{}/stat", pid), 4096));
  size_t at = stat.rfind(')');
  for (int field = 2; field < 22 && at != std::string::npos; ++field) at = stat.find(' ', at + 1);
  uint64_t ticks = 0;
  if (at == std::string::npos ||
      std::from_chars(stat.data() + at + 1, stat.data() + stat.size(), ticks).ec != std::errc())
    return make_error(absl::StatusCode::kDataLoss, "/proc/{}/stat has no field 22", pid);
  return ticks;
}

// As recv(2) with MSG_TRUNC.
ssize_t receive_packet(int socket, std::span<char> bytes, UniqueFd& attached) {
  iovec part{bytes.data(), bytes.size()};
  alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int))> control{};
  msghdr packet{};
  packet.msg_iov = &part;
  packet.msg_iovlen = 1;
  packet.msg_control = control.data();
  packet.msg_controllen = control.size();
  ssize_t size = 0;
  do {
    size = ::recvmsg(socket, &packet, MSG_TRUNC | MSG_CMSG_CLOEXEC);
  } while (size < 0 && errno == EINTR);
  const int error = errno;
  const cmsghdr* first = size > 0 ? CMSG_FIRSTHDR(&packet) : nullptr;
  if (first != nullptr && first->cmsg_level == SOL_SOCKET && first->cmsg_type == SCM_RIGHTS) {
    int fd = -1;
    std::memcpy(&fd, CMSG_DATA(first), sizeof fd);
    attached.reset(fd);
  }
  errno = error;
  return size;
}

absl::StatusOr<pid_t> spawn(int socket, int mark) {
  posix_spawn_file_actions_t actions;
  posix_spawnattr_t attributes;
  ::posix_spawn_file_actions_init(&actions);
  ::posix_spawnattr_init(&attributes);
  const auto freed = absl::MakeCleanup([&] {
    ::posix_spawn_file_actions_destroy(&actions);
    ::posix_spawnattr_destroy(&attributes);
  });
  // glibc clears close-on-exec when both numbers are the same.
  ::posix_spawn_file_actions_adddup2(&actions, socket, kMoverSocket);
  ::posix_spawn_file_actions_adddup2(&actions, mark, kMoverMark);
  ::posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
  // gRPC opens descriptors without close-on-exec.
  ::posix_spawn_file_actions_addclosefrom_np(&actions, kMoverMark + 1);
  sigset_t none, all;
  ::sigemptyset(&none);
  ::sigfillset(&all);
  // A session of its own: a terminal's Ctrl-C at the daemon is not meant for a move, and priorities
  // count among processes of one session (process/priority.h).
  ::posix_spawnattr_setflags(&attributes,
                             POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETSID);
  ::posix_spawnattr_setsigmask(&attributes, &none);
  ::posix_spawnattr_setsigdefault(&attributes, &all);
  char name[] = "godwit", command[] = "mover";
  char* argv[] = {name, command, nullptr};
  pid_t pid = -1;
  // From its first instruction on: linking dynamically alone takes longer than a client may wait.
  const absl::Duration slice = kernel::set_slice(0, process::kRoundsSlice);
  const int error = ::posix_spawn(&pid, "/proc/self/exe", &actions, &attributes, argv, ::environ);
  kernel::set_slice(0, slice);
  if (error != 0) return errno_status(error, "posix_spawn(/proc/self/exe mover)");
  return pid;
}

}  // namespace

absl::StatusOr<std::unique_ptr<MoverProcess>> MoverProcess::start() {
  int pair[2];
  if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) != 0)
    return errno_status(errno, "socketpair(AF_UNIX, SOCK_SEQPACKET)");
  UniqueFd ours(pair[0]), theirs(pair[1]);
  std::unique_ptr<MoverProcess> mover(new MoverProcess);
  mover->interrupt_.reset(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!mover->interrupt_) return errno_status(errno, "eventfd()");
  // Above what spawn() copies them to.
  const UniqueFd mark(::memfd_create("godwit-end-mark", MFD_CLOEXEC));
  mover->mark_.reset(::fcntl(mark.get(), F_DUPFD_CLOEXEC, kMoverMark + 1));
  if (!mover->mark_) return errno_status(errno, "memfd_create()");
  mover->message_.reset(new char[kMaxMessage]);
  GW_ASSIGN_OR_RETURN(mover->pid_, spawn(theirs.get(), mover->mark_.get()));
  theirs.reset();
  mover->socket_ = std::move(ours);
  // Our child, not reaped yet: the pid cannot be another's.
  GW_ASSIGN_OR_RETURN(mover->pidfd_, kernel::pidfd_open(HostPid{mover->pid_}));
  GW_ASSIGN_OR_RETURN(mover->start_ticks_, start_ticks_of(mover->pid_));
  return mover;
}

absl::Status MoverProcess::begin(const migration::MoverStart& start) {
  migration::DaemonToMover message;
  *message.mutable_start() = start;
  return send(message);
}

MoverProcess::~MoverProcess() { kill(); }

absl::StatusOr<migration::MoverToDaemon> MoverProcess::receive(Deadline deadline,
                                                               UniqueFd* attached) {
  while (true) {
    pollfd polled[] = {{socket_.get(), POLLIN, 0}, {interrupt_.get(), POLLIN, 0}};
    const int ready = ::poll(polled, 2, deadline.remaining_ms());
    if (ready < 0 && errno != EINTR) return errno_status(errno, "poll(mover)");
    if (ready < 0) continue;
    if (ready == 0)
      return make_error(absl::StatusCode::kDeadlineExceeded, "the mover says nothing");
    if (polled[1].revents != 0) {
      uint64_t count = 0;
      if (::read(interrupt_.get(), &count, sizeof count) == sizeof count)
        return make_error(absl::StatusCode::kCancelled, "interrupted");
    }
    if (polled[0].revents != 0) break;
  }
  UniqueFd came;
  const ssize_t size = receive_packet(socket_.get(), {message_.get(), kMaxMessage}, came);
  if (attached != nullptr) *attached = std::move(came);
  if (size < 0 && errno != ECONNRESET) return errno_status(errno, "recv(mover)");
  if (size <= 0) return make_error(absl::StatusCode::kOutOfRange, "the mover has ended");
  migration::MoverToDaemon message;
  if (static_cast<size_t>(size) > kMaxMessage ||
      !message.ParseFromArray(message_.get(), static_cast<int>(size)))
    return make_error(absl::StatusCode::kDataLoss, "the mover's message does not parse");
  return message;
}

absl::Status MoverProcess::send(const migration::DaemonToMover& message) {
  const std::string bytes = message.SerializeAsString();
  ssize_t sent = 0;
  do {
    sent = ::send(socket_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
  } while (sent < 0 && errno == EINTR);
  if (sent < 0) return errno_status(errno, "send(mover)");
  return absl::OkStatus();
}

bool MoverProcess::end_mark_sent() const {
  char mark = 0;
  return ::pread(mark_.get(), &mark, 1, 0) < 0 || mark != 0;
}

void MoverProcess::interrupt() {
  const uint64_t one = 1;
  if (::write(interrupt_.get(), &one, sizeof one) != sizeof one)
    log_error("interrupting the wait for a mover: write: {}", std::strerror(errno));
}

absl::StatusOr<UniqueFd> MoverProcess::copy_fd(uint32_t fd) const {
  return kernel::pidfd_getfd(pidfd_.get(), static_cast<int>(fd));
}

void MoverProcess::kill() {
  if (reaped_ || pid_ <= 0) return;
  ::kill(pid_, SIGKILL);
  int wait_status = 0;
  while (::waitpid(pid_, &wait_status, 0) < 0 && errno == EINTR) {
  }
  reaped_ = true;
}

absl::StatusOr<UniqueFd> end_left_over_mover(pid_t pid, uint64_t start_ticks, int hold_fd) {
  if (pid <= 0) return UniqueFd();
  const auto pidfd = kernel::pidfd_open(HostPid{pid});
  if (absl::IsNotFound(pidfd.status())) return UniqueFd();
  if (!pidfd.ok()) return pidfd.status();
  // The process behind the pidfd has the pid while it lives, so this reads about the same one.
  const auto ticks = start_ticks_of(pid);
  if (!ticks.ok() || *ticks != start_ticks) return UniqueFd();
  UniqueFd hold;
  if (hold_fd > 0) {
    // Fails with a mover that is dead and not reaped yet: what it held is gone.
    auto copy = kernel::pidfd_getfd(pidfd->get(), hold_fd);
    if (copy.ok()) hold = *std::move(copy);
  }
  if (::syscall(SYS_pidfd_send_signal, pidfd->get(), SIGKILL, nullptr, 0) != 0 && errno != ESRCH)
    return errno_status(errno, fmt::format("pidfd_send_signal({}, SIGKILL)", pid));
  pollfd polled{pidfd->get(), POLLIN, 0};
  const Deadline deadline = Deadline::in(kDeathWait);
  while (::poll(&polled, 1, deadline.remaining_ms()) < 0 && errno == EINTR) {
  }
  if (polled.revents == 0)
    return make_error(absl::StatusCode::kDeadlineExceeded,
                      "mover {} of an earlier daemon does not die", pid);
  return hold;
}

}  // namespace godwit::node
