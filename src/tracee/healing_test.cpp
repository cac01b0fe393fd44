// The tracer is killed at random points while it stops, maps, batches and unmaps; the program must
// not notice.
#include <gtest/gtest.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include <array>
#include <cstring>
#include <fstream>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "tracee/batch.h"
#include "tracee/child_for_test.h"

namespace godwit::tracee {
namespace {

using testing::Child;
using testing::Shared;
using testing::soon;
using testing::stop_task;

std::atomic<uint64_t> mark_signals{0};
std::atomic<uint64_t> queued_signals{0};

// Fills the registers and the red zone, spins a while in this state, and compares. 0: as before.
uint64_t check_registers(uint64_t seed) {
  uint64_t value = seed;  // in rbx, which is checked by it
  asm volatile(
      "sub $512, %%rsp\n"
      "mov %%rbx, %%rax\n"
      "mov %%rax, -8(%%rsp)\n"
      "mov %%rax, -128(%%rsp)\n"
      "movq %%rax, %%xmm7\n"
      "lea 1(%%rax), %%rcx\n"
      "lea 2(%%rax), %%rdx\n"
      "lea 3(%%rax), %%rsi\n"
      "lea 4(%%rax), %%rdi\n"
      "lea 5(%%rax), %%r8\n"
      "lea 6(%%rax), %%r9\n"
      "lea 7(%%rax), %%r10\n"
      "lea 8(%%rax), %%r11\n"
      "lea 9(%%rax), %%r12\n"
      "lea 10(%%rax), %%r13\n"
      "lea 11(%%rax), %%r14\n"
      "mov $3000, %%r15\n"
      "stc\n"
      "1: pause\n"
      "dec %%r15\n"
      "jnz 1b\n"
      "jnc 2f\n"
      "cmp %%rax, -8(%%rsp)\n jne 2f\n"
      "cmp %%rax, -128(%%rsp)\n jne 2f\n"
      "movq %%xmm7, %%r15\n cmp %%rax, %%r15\n jne 2f\n"
      "sub $1, %%rcx\n cmp %%rax, %%rcx\n jne 2f\n"
      "sub $2, %%rdx\n cmp %%rax, %%rdx\n jne 2f\n"
      "sub $3, %%rsi\n cmp %%rax, %%rsi\n jne 2f\n"
      "sub $4, %%rdi\n cmp %%rax, %%rdi\n jne 2f\n"
      "sub $5, %%r8\n cmp %%rax, %%r8\n jne 2f\n"
      "sub $6, %%r9\n cmp %%rax, %%r9\n jne 2f\n"
      "sub $7, %%r10\n cmp %%rax, %%r10\n jne 2f\n"
      "sub $8, %%r11\n cmp %%rax, %%r11\n jne 2f\n"
      "sub $9, %%r12\n cmp %%rax, %%r12\n jne 2f\n"
      "sub $10, %%r13\n cmp %%rax, %%r13\n jne 2f\n"
      "sub $11, %%r14\n cmp %%rax, %%r14\n jne 2f\n"
      "jmp 3f\n"
      "2: not %%rbx\n"
      "3: add $512, %%rsp\n"
      : "+b"(value)
      :
      : "rax", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
        "xmm7", "memory", "cc");
  return value == seed ? 0 : 1;
}

struct Program {
  bool catches_all;  // no signal is left for the end mark
  bool blocks_all;   // the mark's signal is blocked, and waited for
  bool filtered;     // the calls of batches give an error when the tracer has died
};

// seccomp(2): getppid fails with EXDEV.
bool set_filter() {
  std::array<sock_filter, 4> code{{
      {BPF_LD | BPF_W | BPF_ABS, 0, 0, offsetof(seccomp_data, nr)},
      {BPF_JMP | BPF_JEQ | BPF_K, 0, 1, SYS_getppid},
      {BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ERRNO | EXDEV},
      {BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ALLOW},
  }};
  const sock_fprog filter{.len = code.size(), .filter = code.data()};
  return ::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
         ::syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &filter) == 0;
}

int run_program(Shared& shared, Program program) {
  if (program.filtered && !set_filter()) return 10;
  struct sigaction count {};
  count.sa_handler = [](int) { queued_signals++; };
  ::sigaction(SIGRTMIN, &count, nullptr);
  if (program.catches_all) {
    for (const int n : {SIGWINCH, SIGURG, SIGCHLD}) ::signal(n, [](int) { mark_signals++; });
  }
  sigset_t mask;
  sigemptyset(&mask);
  sigaddset(&mask, SIGUSR2);
  if (program.blocks_all) {
    sigfillset(&mask);
    sigdelset(&mask, SIGRTMIN);
  }
  ::pthread_sigmask(SIG_SETMASK, &mask, nullptr);
  sigset_t want, now, pending;
  ::pthread_sigmask(SIG_SETMASK, nullptr, &want);

  const auto check = [&](uint64_t seed) {
    if (check_registers(seed) != 0) return 11;
    ::pthread_sigmask(SIG_SETMASK, nullptr, &now);
    if (std::memcmp(&now, &want, 8) != 0) return 12;
    ::sigpending(&pending);
    if (program.blocks_all && !sigisemptyset(&pending)) return 13;
    // Never without its filter, however often it is stopped.
    if (program.filtered && (::syscall(SYS_getppid) != -1 || errno != EXDEV)) return 15;
    return mark_signals == 0 ? 0 : 14;
  };
  std::atomic<int> result{0};
  std::thread other([&] {
    shared.word[3] = static_cast<uint64_t>(::gettid());
    for (uint64_t n = 1; shared.word[2] == 0 && result == 0; ++n) result = check(n * 77777);
  });
  for (uint64_t n = 1; shared.word[2] == 0 && result == 0; ++n) {
    const int wrong = check(n * 12345);
    if (wrong != 0) result = wrong;
    shared.word[1] = 1;
    shared.word[4] = queued_signals.load();
    shared.word[0].fetch_add(1);
  }
  other.join();
  shared.word[4] = queued_signals.load();
  return result;
}

// Runs in the process that is killed.
void trace_for_ever(HostPid pid, HostPid thread) {
  for (;;) {
    auto task = stop_task(pid);
    auto second = stop_task(thread);
    if (!task.ok() || !second.ok()) ::_exit(1);
    auto area = StubArea::map(*task, ImagePid{pid.value}, 4096);
    if (!area.ok()) ::_exit(2);
    for (int round = 0; round < 3; ++round) {
      Batch a, b;
      for (int n = 0; n < 20; ++n) {
        a.call(SYS_getppid, {});
        b.call(SYS_getppid, {});
      }
      StubArea::Run runs[] = {{&*task, ImagePid{pid.value}, &a},
                              {&*second, ImagePid{thread.value}, &b}};
      if (!area->run_all(runs, soon()).ok()) ::_exit(3);
    }
    if (!area->unmap(*task).ok()) ::_exit(4);
  }
}

// Mappings that can only be ours: private, anonymous, executable.
int areas_in(HostPid pid) {
  std::ifstream maps("/proc/" + std::to_string(pid.value) + "/maps");
  int count = 0;
  for (std::string line; std::getline(maps, line);) {
    if (line.find(" r-xp 00000000 00:00 0 ") != std::string::npos && line.back() != ']') ++count;
  }
  return count;
}

// For the message: state, and registers if it stops.
std::string where(HostPid tid) {
  std::string text(1, internal::task_state(tid));
  auto task = stop_task(tid);
  if (!task.ok()) return text + " " + std::string(message_of(task.status()));
  const auto r = task->registers();
  return text + fmt::format(" rip {:#x} rax {:#x} orig {:#x} rbx {:#x} rsp {:#x}", r->rip, r->rax,
                            r->orig_rax, r->rbx, r->rsp);
}

class HealingTest : public ::testing::TestWithParam<Program> {};

TEST_P(HealingTest, KilledTracersHarmNothing) {
  constexpr int kKills = 150;
  const Program program = GetParam();
  Child child([&](Shared& shared) { return run_program(shared, program); });
  ASSERT_TRUE(child.wait_word(1, 1));
  ASSERT_TRUE(child.wait_word(3, 1));
  const HostPid thread{static_cast<pid_t>(child.word(3).load())};
  std::mt19937 random(20240607);
  uint64_t sent = 0;
  for (int kill = 0; kill < kKills; ++kill) {
    Child tracer([&](Shared&) -> int {
      trace_for_ever(child.pid(), thread);
      return 0;
    });
    sigval value{};
    if (::sigqueue(child.pid().value, SIGRTMIN, value) == 0) ++sent;
    ::usleep(static_cast<useconds_t>(random() % 3000 + 300));
    ::kill(tracer.pid().value, SIGKILL);
    ASSERT_EQ(tracer.join(), -SIGKILL);
    const uint64_t before = child.word(0).load();
    ASSERT_TRUE(child.wait_word(0, before + 2))
        << "after kill " << kill << ": main " << where(child.pid()) << ", other " << where(thread)
        << ", end " << child.join();
  }
  EXPECT_LE(areas_in(child.pid()), kKills);
  EXPECT_TRUE(child.wait_word(4, sent));
  child.word(2) = 1;
  EXPECT_EQ(child.join(), 0);
  EXPECT_EQ(child.word(4).load(), sent);
}

INSTANTIATE_TEST_SUITE_P(All, HealingTest,
                         ::testing::Values(Program{false, false, false},
                                           Program{true, false, false}, Program{false, true, false},
                                           Program{false, false, true}));

TEST(StormTest, EverySignalArrivesOnce) {
  constexpr uint64_t kSignals = 20000;
  Child child([](Shared& shared) {
    struct sigaction count {};
    count.sa_handler = [](int) { queued_signals++; };
    ::sigaction(SIGRTMIN, &count, nullptr);
    shared.word[1] = 1;
    while (shared.word[2] == 0) {
      if (check_registers(shared.word[0].fetch_add(1)) != 0) return 11;
      shared.word[4] = queued_signals.load();
    }
    return 0;
  });
  ASSERT_TRUE(child.wait_word(1, 1));
  Child sender([&](Shared& shared) {
    for (uint64_t n = 0; n < kSignals;) {
      sigval value{};
      if (::sigqueue(child.pid().value, SIGRTMIN, value) == 0) {
        ++n;
      } else {
        ::sched_yield();  // the queue is full
      }
    }
    shared.word[0] = 1;
    return 0;
  });
  int rounds = 0;
  while (rounds < 50 || (sender.word(0) == 0 && rounds < 5000)) {
    auto task = stop_task(child.pid());
    GW_ASSERT_OK(task.status());
    auto area = StubArea::map(*task, child.image_pid(), 4096);
    GW_ASSERT_OK(area.status());
    Batch batch;
    batch.call(SYS_getpid, {}, true);
    GW_ASSERT_OK(area->run(*task, child.image_pid(), batch, soon()));
    GW_ASSERT_OK(batch.check_all());
    GW_ASSERT_OK(area->unmap(*task));
    ++rounds;
  }
  EXPECT_EQ(sender.join(), 0);
  EXPECT_TRUE(child.wait_word(4, kSignals));
  child.word(2) = 1;
  EXPECT_EQ(child.join(), 0);
  EXPECT_EQ(child.word(4).load(), kSignals);
}

}  // namespace
}  // namespace godwit::tracee
