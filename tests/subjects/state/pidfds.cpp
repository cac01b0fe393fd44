#include <fcntl.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>

#include "checks.h"

namespace state {
namespace {

constexpr int kPidfdNonblock = O_NONBLOCK;

int open_pidfd(pid_t pid, int flags) {
  return static_cast<int>(must(::syscall(SYS_pidfd_open, pid, flags), "pidfd_open"));
}

pid_t fork_sleeper() {
  const auto pid = static_cast<pid_t>(must(::fork(), "fork"));
  if (pid == 0)
    for (;;) ::pause();
  return pid;
}

pid_t fork_ended(int status) {
  const auto pid = static_cast<pid_t>(must(::fork(), "fork"));
  if (pid == 0) ::_exit(status);
  siginfo_t info{};
  must(::waitid(P_PID, static_cast<id_t>(pid), &info, WEXITED | WNOWAIT), "waitid");
  return pid;
}

// Signals arrive all the time here.
int wait_epoll(int epoll, int timeout_ms) {
  epoll_event event{};
  int got = -1;
  do got = ::epoll_wait(epoll, &event, 1, timeout_ms);
  while (got < 0 && errno == EINTR);
  return got;
}

bool readable(int fd) {
  pollfd polled{fd, POLLIN, 0};
  return ::poll(&polled, 1, 0) == 1;
}

struct Children {
  pid_t runs = 0, ended = 0;
  int of_runs = -1, of_ended = -1, of_reaped = -1, of_init = -1, epoll = -1;

  void make() {
    runs = fork_sleeper();
    of_runs = open_pidfd(runs, kPidfdNonblock);
    ended = fork_ended(9);
    of_ended = open_pidfd(ended, 0);
    const pid_t reaped = fork_ended(0);
    of_reaped = open_pidfd(reaped, kPidfdNonblock);
    must(::waitpid(reaped, nullptr, 0), "waitpid");
    of_init = open_pidfd(1, 0);
    epoll = static_cast<int>(must(::epoll_create1(0), "epoll_create1"));
    epoll_event event{};
    event.events = EPOLLIN;
    must(::epoll_ctl(epoll, EPOLL_CTL_ADD, of_runs, &event), "epoll_ctl");
  }

  void check() {
    siginfo_t info{};
    report().expect(!readable(of_runs), "a pidfd of one that runs says that it has ended");
    report().equal("flags of a pidfd", ::fcntl(of_runs, F_GETFL) & O_NONBLOCK, O_NONBLOCK);
    report().equal("flags of a pidfd", ::fcntl(of_ended, F_GETFL) & O_NONBLOCK, 0);
    report().expect(
        ::waitid(static_cast<idtype_t>(P_PIDFD), static_cast<id_t>(of_runs), &info, WEXITED) < 0 &&
            errno == EAGAIN,
        "waitid of a PIDFD_NONBLOCK waits");
    report().equal("epoll_wait", wait_epoll(epoll, 0), 0);
    report().equal("pidfd_send_signal", ::syscall(SYS_pidfd_send_signal, of_runs, SIGTERM, 0, 0),
                   0);
    report().equal("epoll_wait for its end", wait_epoll(epoll, 2000), 1);
    report().equal(
        "waitid",
        ::waitid(static_cast<idtype_t>(P_PIDFD), static_cast<id_t>(of_runs), &info, WEXITED), 0);
    report().equal("who has ended", info.si_pid, runs);
    report().expect(readable(of_ended), "a pidfd of a zombie says that it runs");
    report().equal(
        "waitid of a zombie",
        ::waitid(static_cast<idtype_t>(P_PIDFD), static_cast<id_t>(of_ended), &info, WEXITED), 0);
    report().equal("exit status of a zombie", info.si_status, 9);
    report().expect(readable(of_reaped), "a pidfd of one that was waited for says that it runs");
    report().expect(::syscall(SYS_pidfd_send_signal, of_reaped, 0, 0, 0) < 0 && errno == ESRCH,
                    "a pidfd of one that was waited for refers to another");
    report().expect(!readable(of_init), "a pidfd of pid 1 says that it has ended");
    for (const int fd : {of_runs, of_ended, of_reaped, of_init, epoll}) ::close(fd);
  }
};

}  // namespace

void add_pidfd_checks(std::vector<Check>& checks) {
  Children children;
  children.make();
  checks.push_back({"pidfds", [children]() mutable {
                      children.check();
                      children.make();
                    }});
}

}  // namespace state
