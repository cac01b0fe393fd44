#include "node/vm_drain.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/status.h"

namespace godwit::node {
namespace {

constexpr int kLife = 3;
constexpr int kPipe = 4;

// In the child of a process with threads: system calls only.
[[noreturn]] void drain(int life, int pipe) {
  static char bytes[1 << 16];
  ::setsid();
  ::prctl(PR_SET_NAME, "godwit-drain");
  for (const int signal : {SIGTERM, SIGINT, SIGHUP}) ::signal(signal, SIG_IGN);
  // Through numbers that neither has.
  const int from_life = ::fcntl(life, F_DUPFD, 10);
  const int from_pipe = ::fcntl(pipe, F_DUPFD, 10);
  if (from_life < 0 || from_pipe < 0 || ::dup2(from_life, kLife) < 0 ||
      ::dup2(from_pipe, kPipe) < 0)
    ::_exit(1);
  ::syscall(SYS_close_range, kPipe + 1, ~0U, 0);
  const int null = ::open("/dev/null", O_RDWR);
  for (int fd = 0; fd < kLife; ++fd)
    if (null >= 0) ::dup2(null, fd);
  while (::read(kLife, bytes, 1) < 0 && errno == EINTR) {
  }
  for (;;) {
    pollfd polled{kPipe, POLLIN, 0};
    ::poll(&polled, 1, -1);
    const ssize_t got = ::read(kPipe, bytes, sizeof bytes);
    if (got == 0 || (got < 0 && errno != EINTR && errno != EAGAIN)) ::_exit(0);
  }
}

}  // namespace

absl::StatusOr<VmDrain> VmDrain::start(int pipe) {
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) return errno_status(errno, "pipe2()");
  const UniqueFd reading(ends[0]);
  UniqueFd writing(ends[1]);
  const pid_t child = ::fork();
  if (child < 0) return errno_status(errno, "fork()");
  if (child == 0) {
    // Twice: nobody here has to wait for its end.
    const pid_t grandchild = ::fork();
    if (grandchild == 0) {
      ::close(writing.get());
      drain(reading.get(), pipe);
    }
    ::_exit(grandchild < 0 ? 1 : 0);
  }
  int status = 0;
  while (::waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  if (status != 0)
    return make_error(absl::StatusCode::kResourceExhausted, "fork() of a second process failed");
  return VmDrain(std::move(writing));
}

}  // namespace godwit::node
