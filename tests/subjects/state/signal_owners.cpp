// F_SETOWN_EX, F_SETSIG and O_ASYNC of what is no socket.
#include <fcntl.h>
#include <sys/inotify.h>
#include <unistd.h>

#include <csignal>

#include "checks.h"

namespace state {
namespace {

void own(int fd, __pid_type type, pid_t id, int signal) {
  const f_owner_ex owner{.type = type, .pid = id};
  must(::fcntl(fd, F_SETOWN_EX, &owner), "F_SETOWN_EX");
  must(::fcntl(fd, F_SETSIG, signal), "F_SETSIG");
  must(::fcntl(fd, F_SETFL, O_ASYNC | O_NONBLOCK), "F_SETFL");
}

// What `happen` sends: the descriptor, -1 for none.
int sent(int signal, const std::function<void()>& happen) {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, signal);
  const timespec now{};
  while (::sigtimedwait(&set, nullptr, &now) > 0) {
  }
  happen();
  siginfo_t info{};
  const timespec soon{2, 0};
  int got = -1;
  do got = ::sigtimedwait(&set, &info, &soon);
  while (got < 0 && errno == EINTR);
  return got == signal ? info.si_fd : -1;
}

Check owners() {
  // Blocked in all threads, which are made later.
  sigset_t set;
  sigemptyset(&set);
  for (int i = 20; i <= 22; ++i) sigaddset(&set, SIGRTMIN + i);
  must(::sigprocmask(SIG_BLOCK, &set, nullptr), "sigprocmask");
  int ends[2];
  must(::pipe(ends), "pipe");
  own(ends[0], F_OWNER_PID, ::getpid(), SIGRTMIN + 20);
  char name[] = "/tmp/state-owner-XXXXXX";
  if (::mkdtemp(name) == nullptr) must(-1, "mkdtemp");
  const int watch = static_cast<int>(must(::inotify_init1(IN_NONBLOCK), "inotify_init1"));
  must(::inotify_add_watch(watch, name, IN_CREATE), "inotify_add_watch");
  own(watch, F_OWNER_TID, ::gettid(), SIGRTMIN + 21);
  // One that never sends any.
  const int file = static_cast<int>(
      must(::open((std::string(name) + "/file").c_str(), O_RDWR | O_CREAT, 0600), "open"));
  own(file, F_OWNER_PGRP, ::getpgrp(), SIGRTMIN + 22);
  char bytes[4096];
  must(::read(watch, bytes, sizeof bytes), "read");
  const std::string folder = name;
  return {"signals of descriptors", [=, turn = 0, group = ::getpgrp()]() mutable {
            char byte = 'x';
            report().equal("signal of a pipe",
                           sent(SIGRTMIN + 20, [&] { must(::write(ends[1], &byte, 1), "write"); }),
                           ends[0]);
            must(::read(ends[0], &byte, 1), "read");
            const std::string made = folder + "/" + std::to_string(turn++);
            report().equal("signal of inotify",
                           sent(SIGRTMIN + 21,
                                [&] { ::close(::open(made.c_str(), O_WRONLY | O_CREAT, 0600)); }),
                           watch);
            char all[4096];
            must(::read(watch, all, sizeof all), "read");
            f_owner_ex owner{};
            must(::fcntl(file, F_GETOWN_EX, &owner), "F_GETOWN_EX");
            report().equal("type of an owner", owner.type, F_OWNER_PGRP);
            report().equal("an owner", owner.pid, group);
            report().equal("F_GETSIG", ::fcntl(file, F_GETSIG), SIGRTMIN + 22);
            report().equal("flags", ::fcntl(ends[0], F_GETFL) & (O_ASYNC | O_NONBLOCK),
                           O_ASYNC | O_NONBLOCK);
          }};
}

}  // namespace

void add_signal_owner_checks(std::vector<Check>& checks) { checks.push_back(owners()); }

}  // namespace state
