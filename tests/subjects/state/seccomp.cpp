// Children under seccomp. Calls that Godwit makes in a stopped task would end them.
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cstddef>
#include <thread>

#include "checks.h"

namespace state {
namespace {

// Call `number` gives `action`, the others are let through. What seccomp(2) gave.
long set_filter(long number, uint32_t action, unsigned long flags) {
  std::array<sock_filter, 4> code{{
      {BPF_LD | BPF_W | BPF_ABS, 0, 0, offsetof(seccomp_data, nr)},
      {BPF_JMP | BPF_JEQ | BPF_K, 0, 1, static_cast<uint32_t>(number)},
      {BPF_RET | BPF_K, 0, 0, action},
      {BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ALLOW},
  }};
  const sock_fprog program{.len = code.size(), .filter = code.data()};
  return ::syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &program);
}

uint32_t error_of(int number) { return SECCOMP_RET_ERRNO | static_cast<uint32_t>(number); }

struct Sandbox {
  std::atomic<int> asked, answered;
  std::atomic<int> thread_asked, thread_answered;
  int first, both;                // errno in the first thread
  int thread_first, thread_both;  // in the other one
  long for_all;                   // setting one more, for both
  int inherited;                  // wait status of a child that makes a forbidden call
};

int error_in(long result) { return result < 0 ? errno : 0; }

[[noreturn]] void thread_in_sandbox(Sandbox* box) {
  for (int turn = 1;; ++turn) {
    while (box->thread_asked < turn) ::usleep(1000);
    box->thread_first = error_in(::syscall(SYS_getpgrp));
    box->thread_both = error_in(::syscall(SYS_getppid));
    box->thread_answered = turn;
  }
}

[[noreturn]] void run_in_sandbox(Sandbox* box) {
  std::thread(thread_in_sandbox, box).detach();
  const bool set =
      ::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
      set_filter(SYS_prctl, SECCOMP_RET_KILL_PROCESS, SECCOMP_FILTER_FLAG_TSYNC) == 0 &&
      set_filter(SYS_sched_getattr, SECCOMP_RET_KILL_PROCESS,
                 SECCOMP_FILTER_FLAG_TSYNC | SECCOMP_FILTER_FLAG_LOG) == 0 &&
      set_filter(SYS_getppid, error_of(EXDEV), SECCOMP_FILTER_FLAG_TSYNC) == 0;
  if (!set) ::_exit(1);
  for (int turn = 1;; ++turn) {
    while (box->asked < turn) ::usleep(1000);
    box->first = error_in(::syscall(SYS_getpgrp));
    box->both = error_in(::syscall(SYS_getppid));
    const pid_t child = ::fork();
    if (child == 0) {
      ::prctl(PR_GET_DUMPABLE);
      ::_exit(0);
    }
    ::waitpid(child, &box->inherited, 0);
    // Possible only while they share what they have.
    box->for_all = set_filter(SYS_gettid, error_of(ENOLINK), SECCOMP_FILTER_FLAG_TSYNC);
    box->answered = turn;
  }
}

Check filter_check() {
  auto* box = static_cast<Sandbox*>(
      ::mmap(nullptr, sizeof(Sandbox), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
  const auto child = static_cast<pid_t>(must(::fork(), "fork"));
  if (child == 0) run_in_sandbox(box);
  return {"seccomp filters", [=, turn = 0]() mutable {
            box->asked = ++turn;
            report().expect(soon([&] { return box->answered == turn; }), "the child is silent");
            box->thread_asked = turn;
            report().expect(soon([&] { return box->thread_answered == turn; }),
                            "its thread is silent");
            report().equal("errno of a call that is let through", box->first, 0);
            report().equal("errno of a call that is not", box->both, EXDEV);
            report().equal("in the thread", box->thread_first, 0);
            report().equal("in the thread", box->thread_both, EXDEV);
            report().expect(WIFSIGNALED(box->inherited) && WTERMSIG(box->inherited) == SIGSYS,
                            "a forbidden call does not end a child's child");
            report().equal("a filter for all threads", box->for_all, 0);
          }};
}

// Only read, write, exit and rt_sigreturn, and no more.
Check strict_check() {
  int to_child[2];
  int from_child[2];
  must(::pipe(to_child), "pipe");
  must(::pipe(from_child), "pipe");
  if (must(::fork(), "fork") == 0) {
    must(::prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT), "PR_SET_SECCOMP");
    char byte = 0;
    while (::read(to_child[0], &byte, 1) == 1)
      if (::write(from_child[1], &byte, 1) != 1) break;
    ::syscall(SYS_exit, 0);
  }
  return {"seccomp's strict mode", [=, turn = 'a']() mutable {
            char byte = turn++;
            report().equal("write", ::write(to_child[1], &byte, 1), 1);
            char back = 0;
            report().equal("read", ::read(from_child[0], &back, 1), 1);
            report().equal("what the child read", back, byte);
          }};
}

}  // namespace

void add_seccomp_checks(std::vector<Check>& checks) {
  checks.push_back(filter_check());
  checks.push_back(strict_check());
}

}  // namespace state
