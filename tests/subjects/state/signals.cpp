#include <sys/syscall.h>
#include <sys/time.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "checks.h"

namespace state {
namespace {

std::atomic<long> alarms{0};
std::atomic<long> timer_signals{0};
std::atomic<int> timer_value{0};
std::atomic<const char*> handler_stack{nullptr};

void on_alarm(int) { ++alarms; }
void on_timer(int, siginfo_t* info, void*) {
  timer_value = info->si_value.sival_int;
  ++timer_signals;
}
void on_user(int) {
  char here = 0;
  handler_stack = &here;
}

void handle(int number, void (*handler)(int), int flags) {
  struct sigaction action {};
  action.sa_handler = handler;
  action.sa_flags = flags;
  must(::sigaction(number, &action, nullptr), "sigaction");
}

Check itimer_check() {
  handle(SIGALRM, on_alarm, SA_RESTART);
  const itimerval often{{0, 20000}, {0, 20000}}, seldom{{3, 0}, {1000, 0}};
  must(::setitimer(ITIMER_REAL, &often, nullptr), "setitimer");
  must(::setitimer(ITIMER_PROF, &seldom, nullptr), "setitimer");
  return {"itimers", [] {
            const long before = alarms;
            report().expect(soon([&] { return alarms > before + 1; }), "no SIGALRM comes");
            itimerval now{};
            ::getitimer(ITIMER_REAL, &now);
            report().equal("interval of ITIMER_REAL", now.it_interval.tv_usec, 20000);
            ::getitimer(ITIMER_PROF, &now);
            report().equal("interval of ITIMER_PROF", now.it_interval.tv_sec, 3);
            report().expect(now.it_value.tv_sec > 900 && now.it_value.tv_sec <= 1000,
                            "ITIMER_PROF has " + std::to_string(now.it_value.tv_sec) + " s left");
          }};
}

Check posix_timer_check() {
  struct sigaction action {};
  action.sa_sigaction = on_timer;
  action.sa_flags = SA_SIGINFO | SA_RESTART;
  must(::sigaction(SIGRTMIN + 5, &action, nullptr), "sigaction");
  sigevent event{};
  event.sigev_notify = SIGEV_SIGNAL;
  event.sigev_signo = SIGRTMIN + 5;
  event.sigev_value.sival_int = 4711;
  timer_t gap{}, timer{}, idle{};
  must(::timer_create(CLOCK_MONOTONIC, &event, &gap), "timer_create");
  must(::timer_create(CLOCK_MONOTONIC, &event, &timer), "timer_create");
  must(::timer_create(CLOCK_REALTIME, &event, &idle), "timer_create");
  must(::timer_delete(gap), "timer_delete");  // ids need not follow each other
  const itimerspec often{{0, 15'000'000}, {0, 15'000'000}};
  must(::timer_settime(timer, 0, &often, nullptr), "timer_settime");
  return {"posix timers", [=] {
            const long before = timer_signals;
            report().expect(soon([&] { return timer_signals > before + 1; }),
                            "no timer signal comes");
            report().equal("value of a timer signal", timer_value, 4711);
            itimerspec now{};
            report().equal("timer_gettime", ::timer_gettime(timer, &now), 0);
            report().equal("interval of a timer", now.it_interval.tv_nsec, 15'000'000);
            report().equal("timer_gettime of an idle timer", ::timer_gettime(idle, &now), 0);
            report().equal("an idle timer", now.it_value.tv_sec + now.it_value.tv_nsec, 0);
          }};
}

Check alternate_stack_check() {
  static std::vector<char> memory(65536);
  stack_t stack{};
  stack.ss_sp = memory.data();
  stack.ss_size = memory.size();
  must(::sigaltstack(&stack, nullptr), "sigaltstack");
  handle(SIGUSR2, on_user, SA_ONSTACK | SA_NODEFER);
  return {"alternate stack", [] {
            stack_t now{};
            ::sigaltstack(nullptr, &now);
            report().expect(
                now.ss_sp == memory.data() && now.ss_size == memory.size() && now.ss_flags == 0,
                "the alternate stack is another");
            ::raise(SIGUSR2);
            const char* at = handler_stack;
            report().expect(at >= memory.data() && at < memory.data() + memory.size(),
                            "a handler did not run on the alternate stack");
            struct sigaction action {};
            ::sigaction(SIGUSR2, nullptr, &action);
            report().equal("flags of an action", action.sa_flags & (SA_ONSTACK | SA_NODEFER),
                           SA_ONSTACK | SA_NODEFER);
          }};
}

void send_pending() {
  for (const int value : {1, 2, 3}) {
    sigval data{};
    data.sival_int = value;
    must(::sigqueue(::getpid(), SIGRTMIN + 8, data), "sigqueue");
  }
  must(::syscall(SYS_tgkill, ::getpid(), ::gettid(), SIGHUP), "tgkill");
}

Check pending_check() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGRTMIN + 8);
  sigaddset(&set, SIGHUP);
  must(::pthread_sigmask(SIG_BLOCK, &set, nullptr), "pthread_sigmask");
  ::signal(SIGWINCH, SIG_IGN);
  send_pending();
  return {"pending signals", [set] {
            sigset_t now;
            ::pthread_sigmask(SIG_BLOCK, nullptr, &now);
            report().equal("SIGHUP in the mask", sigismember(&now, SIGHUP), 1);
            report().equal("SIGINT in the mask", sigismember(&now, SIGINT), 0);
            const timespec none{0, 0};
            siginfo_t info{};
            report().equal("the first pending signal", ::sigtimedwait(&set, &info, &none), SIGHUP);
            for (const int value : {1, 2, 3}) {
              report().equal("a pending signal", ::sigtimedwait(&set, &info, &none), SIGRTMIN + 8);
              report().equal("its value", info.si_value.sival_int, value);
            }
            report().equal("one too many", ::sigtimedwait(&set, &info, &none), -1);
            struct sigaction action {};
            ::sigaction(SIGWINCH, nullptr, &action);
            report().expect(action.sa_handler == SIG_IGN, "SIGWINCH is ignored no more");
            send_pending();
          }};
}

// Processes that ignore every signal, and whose threads have some pending all the same: blocked
// ones stay (sig_ignored(), kernel/signal.c), until somebody says once more that they are ignored.
constexpr int kIgnorers = 6;
constexpr int kThreadsOfEach = 8;
constexpr int kQueuedOnce[] = {SIGHUP, SIGURG, SIGUSR1, SIGUSR2, SIGWINCH, SIGIO};

[[noreturn]] void ignore_and_wait(int ready) {
  const pid_t here = ::getpid();
  for (int turn = 0; turn < 40; ++turn) {
    siginfo_t info{};
    info.si_code = SI_QUEUE;
    ::syscall(SYS_rt_tgsigqueueinfo, here, ::gettid(), SIGRTMIN + 12 + turn % 8, &info);
  }
  for (const int number : kQueuedOnce) ::syscall(SYS_tgkill, here, ::gettid(), number);
  if (::write(ready, "x", 1) != 1) ::_exit(1);
  for (;;) ::pause();
}

[[noreturn]] void ignore_all(int ready) {
  sigset_t all;
  sigfillset(&all);
  ::pthread_sigmask(SIG_BLOCK, &all, nullptr);
  for (int number = 1; number < NSIG; ++number) ::signal(number, SIG_IGN);
  for (int i = 0; i < kThreadsOfEach; ++i) std::thread(ignore_and_wait, ready).detach();
  ignore_and_wait(ready);
}

Check ignored_check() {
  static std::vector<pid_t> children;
  int ready[2];
  must(::pipe(ready), "pipe");
  for (int i = 0; i < kIgnorers; ++i) {
    children.push_back(static_cast<pid_t>(must(::fork(), "fork")));
    if (children.back() == 0) ignore_all(ready[1]);
  }
  ::close(ready[1]);
  char byte = 0;
  for (int i = 0; i < kIgnorers * (kThreadsOfEach + 1); ++i)
    must(::read(ready[0], &byte, 1) - 1, "read");
  ::close(ready[0]);
  uint64_t wanted = 0;
  for (const int number : kQueuedOnce) wanted |= uint64_t{1} << (number - 1);
  for (int i = 0; i < 8; ++i) wanted |= uint64_t{1} << (SIGRTMIN + 12 + i - 1);
  return {"pending signals that are ignored", [wanted] {
            for (const pid_t child : children) {
              int threads = 0;
              const auto folder = "/proc/" + std::to_string(child) + "/task";
              for (const auto& task : std::filesystem::directory_iterator(folder)) {
                std::ifstream status(task.path() / "status");
                std::string line;
                while (std::getline(status, line) && !line.starts_with("SigPnd:")) {
                }
                report().expect(std::stoull("0" + line.substr(line.find_last_of("\t ") + 1),
                                            nullptr, 16) == wanted,
                                "of process " + std::to_string(child) + ": " + line);
                ++threads;
              }
              report().equal("threads of a process that ignores all", threads, kThreadsOfEach + 1);
            }
          }};
}

}  // namespace

void add_signal_checks(std::vector<Check>& checks) {
  checks.push_back(ignored_check());  // first: it forks
  checks.push_back(itimer_check());
  checks.push_back(posix_timer_check());
  checks.push_back(alternate_stack_check());
  checks.push_back(pending_check());
}

}  // namespace state
