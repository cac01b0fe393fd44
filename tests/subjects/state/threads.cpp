#include <linux/capability.h>
#include <linux/futex.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cfenv>
#include <csignal>
#include <string_view>
#include <thread>
#include <utility>

#include "checks.h"

namespace state {
namespace {

// A thread that sleeps in one system call nearly all the time. `call` returns "" or what is wrong.
std::atomic<long>* repeat(std::string name, std::function<std::string()> call) {
  auto* turns = new std::atomic<long>(0);  // lives as long as the process
  std::thread([=] {
    // Signals of the process go to main.
    sigset_t all;
    sigfillset(&all);
    ::pthread_sigmask(SIG_BLOCK, &all, nullptr);
    long long last = clock_ms(CLOCK_MONOTONIC), last_boot = clock_ms(CLOCK_BOOTTIME);
    for (;;) {
      const std::string wrong = call();
      if (!wrong.empty()) report().add(name + ": " + wrong);
      const long long now = clock_ms(CLOCK_MONOTONIC), now_boot = clock_ms(CLOCK_BOOTTIME);
      if (now < last || now_boot < last_boot) report().add(name + ": a clock went back");
      last = now;
      last_boot = now_boot;
      ++*turns;
    }
  }).detach();
  return turns;
}

std::string result(long is, long wanted) {
  if (is == wanted) return {};
  return "gave " + std::to_string(is) + (is < 0 ? std::string(" ") + std::strerror(errno) : "");
}

// A call that must end by its own time-out, not sooner and not by a signal.
void timed(std::vector<Check>& checks, const char* name, std::function<std::string()> call,
           long long least_ms = 149) {
  std::atomic<long>* turns = repeat(name, [call = std::move(call), least_ms] {
    const long long begin = clock_ms(CLOCK_MONOTONIC);
    std::string wrong = call();
    const long long took = clock_ms(CLOCK_MONOTONIC) - begin;
    if (wrong.empty() && took < least_ms)
      wrong = "ended after " + std::to_string(took) + " of 150 ms";
    return wrong;
  });
  checks.push_back({name, [=] {
                      const long before = *turns;
                      report().expect(soon([&] { return *turns > before + 1; }),
                                      std::string(name) + " does not end");
                    }});
}

// A call that must sleep until main wakes it.
void endless(std::vector<Check>& checks, const char* name, std::function<std::string()> call,
             std::function<void()> wake) {
  std::atomic<long>* turns = repeat(name, std::move(call));
  checks.push_back({name, [=, seen = 0L]() mutable {
                      report().equal((std::string("turns of ") + name).c_str(), *turns, seen);
                      ++seen;
                      wake();
                      report().expect(soon([&] { return *turns >= seen; }),
                                      std::string(name) + " was not woken");
                    }});
}

void add_timed(std::vector<Check>& checks) {
  static int empty[2];
  must(::pipe(empty), "pipe");
  timed(checks, "nanosleep", [] {
    const timespec time{0, 150'000'000};
    return result(::nanosleep(&time, nullptr), 0);
  });
  timed(checks, "clock_nanosleep absolute", [] {
    timespec time{};
    ::clock_gettime(CLOCK_MONOTONIC, &time);
    time.tv_nsec += 151'000'000;
    if (time.tv_nsec >= 1'000'000'000) time = {time.tv_sec + 1, time.tv_nsec - 1'000'000'000};
    return result(::clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &time, nullptr), 0);
  });
  timed(checks, "poll", [] {
    pollfd wait{empty[0], POLLIN, 0};
    return result(::poll(&wait, 1, 150), 0);
  });
  timed(checks, "select", [] {
    fd_set set;
    FD_ZERO(&set);
    FD_SET(empty[0], &set);
    timeval time{0, 150'000};
    return result(::select(empty[0] + 1, &set, nullptr, nullptr, &time), 0);
  });
  static const int epoll = static_cast<int>(must(::epoll_create1(0), "epoll_create1"));
  timed(checks, "epoll_wait", [] {
    epoll_event event;
    return result(::epoll_wait(epoll, &event, 1, 150), 0);
  });
  timed(checks, "futex with time-out", [] {
    static int word = 0;
    const timespec time{0, 150'000'000};
    const long got = ::syscall(SYS_futex, &word, FUTEX_WAIT, 0, &time, nullptr, 0);
    return got < 0 && errno == ETIMEDOUT ? std::string() : result(got, -2);
  });
  timed(checks, "sigtimedwait", [] {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGRTMIN + 11);
    const timespec time{0, 150'000'000};
    const long got = ::sigtimedwait(&set, nullptr, &time);
    return got < 0 && errno == EAGAIN ? std::string() : result(got, -2);
  });
  // Counted in ticks (schedule_timeout()), and they are late for up to five of them while the CPU
  // that counts them is held up, as a virtual one may be (MAX_STALLED_JIFFIES,
  // kernel/time/tick-sched.c): one that begins then is as much too short, moved or not. 127 ms have
  // been seen.
  constexpr long long kLeastInTicks_ms = 95;
  const auto receive = [] {
    static const int fd = [] {
      int pair[2];
      must(::socketpair(AF_UNIX, SOCK_STREAM, 0, pair), "socketpair");
      const timeval time{0, 150'000};
      must(::setsockopt(pair[0], SOL_SOCKET, SO_RCVTIMEO, &time, sizeof time), "SO_RCVTIMEO");
      return pair[0];
    }();
    char one = 0;
    const long got = ::recv(fd, &one, 1, 0);
    // socket(7): with a time-out, EINTR after a stop is what the kernel does with any signal.
    return got < 0 && errno == EAGAIN ? std::string() : result(got, -2);
  };
  timed(checks, "recv with SO_RCVTIMEO", receive, kLeastInTicks_ms);
}

void add_endless(std::vector<Check>& checks) {
  static int pipes[3][2];
  for (auto& one : pipes) must(::pipe(one), "pipe");
  const auto write = [](int number) { must(::write(pipes[number][1], "x", 1), "write"); };
  endless(
      checks, "read",
      [] {
        char one = 0;
        return result(::read(pipes[0][0], &one, 1), 1);
      },
      [=] { write(0); });
  endless(
      checks, "poll without end",
      [] {
        pollfd wait{pipes[1][0], POLLIN, 0};
        char one = 0;
        const std::string wrong = result(::poll(&wait, 1, -1), 1);
        return wrong.empty() ? result(::read(pipes[1][0], &one, 1), 1) : wrong;
      },
      [=] { write(1); });
  static const int epoll = static_cast<int>(must(::epoll_create1(0), "epoll_create1"));
  epoll_event event{};
  event.events = EPOLLIN;
  must(::epoll_ctl(epoll, EPOLL_CTL_ADD, pipes[2][0], &event), "epoll_ctl");
  endless(
      checks, "epoll_wait without end",
      [] {
        epoll_event ready;
        char one = 0;
        const std::string wrong = result(::epoll_wait(epoll, &ready, 1, -1), 1);
        return wrong.empty() ? result(::read(pipes[2][0], &one, 1), 1) : wrong;
      },
      [=] { write(2); });
  static std::atomic<int> word{0};
  endless(
      checks, "futex",
      [] {
        const int before = word;
        long got = 0;
        while (word == before && got == 0)
          got = ::syscall(SYS_futex, &word, FUTEX_WAIT, before, nullptr, nullptr, 0);
        return got < 0 && errno == EAGAIN ? std::string() : result(got, 0);
      },
      [] {
        ++word;
        ::syscall(SYS_futex, &word, FUTEX_WAKE, 1, nullptr, nullptr, 0);
      });
  static const int listener = static_cast<int>(must(::socket(AF_INET, SOCK_STREAM, 0), "socket"));
  static sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  must(::bind(listener, reinterpret_cast<sockaddr*>(&address), sizeof address), "bind");
  socklen_t length = sizeof address;
  must(::getsockname(listener, reinterpret_cast<sockaddr*>(&address), &length), "getsockname");
  must(::listen(listener, 5), "listen");
  endless(
      checks, "accept",
      [] {
        const int fd = ::accept(listener, nullptr, nullptr);
        if (fd < 0) return result(fd, 0);
        ::close(fd);
        return std::string();
      },
      [] {
        const int fd = static_cast<int>(must(::socket(AF_INET, SOCK_STREAM, 0), "socket"));
        report().equal("connect",
                       ::connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
        char one = 0;
        (void)!::read(fd, &one, 1);
        ::close(fd);
      });
}

// What a thread may have that others of its process have not.
struct Own {
  const char* name;
  unsigned long slack_ns;
  int death_signal;
  uid_t fs_user;
  bool no_new_privs;
  int dropped;  // from the bounding set
  std::array<char, 16384> stack;
};

std::string check_own(const Own& own) {
  char name[16];
  ::prctl(PR_GET_NAME, name, 0, 0, 0);
  int death_signal = 0;
  ::prctl(PR_GET_PDEATHSIG, &death_signal, 0, 0, 0);
  stack_t stack{};
  ::sigaltstack(nullptr, &stack);
  const auto user = static_cast<uid_t>(::syscall(SYS_setfsuid, -1));
  if (std::string_view(name) != own.name) return std::string("its name is ") + name;
  if (death_signal != own.death_signal) return "PR_GET_PDEATHSIG";
  if (static_cast<unsigned long>(::prctl(PR_GET_TIMERSLACK, 0, 0, 0, 0)) != own.slack_ns)
    return "PR_GET_TIMERSLACK";
  if (stack.ss_sp != own.stack.data() || stack.ss_size != own.stack.size() || stack.ss_flags != 0)
    return "sigaltstack()";
  if (user != own.fs_user) return "setfsuid() gives " + std::to_string(user);
  // Filters for all threads give it to the others as well (seccomp(2), SECCOMP_FILTER_FLAG_TSYNC).
  if (own.no_new_privs && ::prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) != 1)
    return "PR_GET_NO_NEW_PRIVS";
  for (int capability : {CAP_SYS_TIME, CAP_WAKE_ALARM})
    if ((::prctl(PR_CAPBSET_READ, capability, 0, 0, 0) == 0) != (capability == own.dropped))
      return "PR_CAPBSET_READ of " + std::to_string(capability);
  return {};
}

void add_own(std::vector<Check>& checks) {
  static std::vector<Own> all = {
      {"first", 70'000, SIGUSR2, 0, false, CAP_SYS_TIME, {}},
      {"second", 71'000, 0, 1234, false, CAP_WAKE_ALARM, {}},
      {"third", 50'000, 0, 0, true, -1, {}},
      {"first", 50'000, SIGUSR2, 0, true, -1, {}},
  };
  for (Own& own : all) {
    std::atomic<long>* turns = repeat("a thread's own settings", [&own, first = true]() mutable {
      if (std::exchange(first, false)) {
        const stack_t stack{.ss_sp = own.stack.data(), .ss_flags = 0, .ss_size = own.stack.size()};
        ::prctl(PR_SET_NAME, own.name, 0, 0, 0);
        ::prctl(PR_SET_TIMERSLACK, own.slack_ns, 0, 0, 0);
        ::prctl(PR_SET_PDEATHSIG, own.death_signal, 0, 0, 0);
        ::sigaltstack(&stack, nullptr);
        if (own.dropped >= 0) ::prctl(PR_CAPBSET_DROP, own.dropped, 0, 0, 0);
        if (own.no_new_privs) ::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        ::syscall(SYS_setfsuid, own.fs_user);
        // setfsuid(2) of another user clears it.
        ::prctl(PR_SET_PDEATHSIG, own.death_signal, 0, 0, 0);
      }
      const timespec time{0, 5'000'000};
      ::nanosleep(&time, nullptr);
      return check_own(own);
    });
    checks.push_back({"a thread's own settings", [=] {
                        const long before = *turns;
                        report().expect(soon([&] { return *turns > before; }), "the thread hangs");
                      }});
  }
}

}  // namespace

void add_thread_checks(std::vector<Check>& checks) {
  add_timed(checks);
  add_endless(checks);
  add_own(checks);
  // Rounding modes live in the x87 control word and in MXCSR.
  std::atomic<long>* turns = repeat("rounding mode", [first = true]() mutable {
    if (first) std::fesetround(FE_UPWARD);
    first = false;
    const timespec time{0, 5'000'000};
    ::nanosleep(&time, nullptr);
    volatile double one = 1.0, three = 3.0;
    volatile long double long_one = 1.0L, long_three = 3.0L;
    const bool up = one / three * three > 1.0 && long_one / long_three * long_three > 1.0L;
    return up && std::fegetround() == FE_UPWARD ? std::string() : "has changed";
  });
  checks.push_back({"rounding mode", [=] {
                      const long before = *turns;
                      report().expect(soon([&] { return *turns > before; }), "the thread hangs");
                    }});
}

}  // namespace state
