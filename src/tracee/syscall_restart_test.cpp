#include "tracee/syscall_restart.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/futex.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/select.h>
#include <sys/sem.h>
#include <sys/socket.h>
#include <sys/syscall.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <string>

#include "tracee/child_for_test.h"

namespace godwit::tracee {
namespace {

using testing::Child;
using testing::Shared;
using testing::soon;
using testing::stop_task;
using testing::wait_until;

Registers with(int64_t orig_rax, int64_t rax) {
  Registers r{};
  r.rip = 0x1000;
  r.orig_rax = static_cast<uint64_t>(orig_rax);
  r.rax = static_cast<uint64_t>(rax);
  return r;
}

TEST(SyscallRestartTest, RepairIsPure) {
  Registers r = with(-1, -EINTR);
  EXPECT_EQ(repair_interrupted_syscall(r), SyscallState::kNotInSyscall);
  EXPECT_EQ(static_cast<int64_t>(r.rax), -EINTR);
  r = with(SYS_epoll_wait, -EINTR);
  EXPECT_EQ(repair_interrupted_syscall(r), SyscallState::kRestarted);
  EXPECT_EQ(static_cast<int64_t>(r.rax), -514);
  r = with(SYS_close, -EINTR);
  EXPECT_EQ(repair_interrupted_syscall(r), SyscallState::kCompleted);
  EXPECT_EQ(static_cast<int64_t>(r.rax), -EINTR);
  r = with(SYS_read, 5);
  EXPECT_EQ(repair_interrupted_syscall(r), SyscallState::kCompleted);
  for (const int code : {-512, -513, -514, -516}) {
    r = with(SYS_read, code);
    EXPECT_EQ(repair_interrupted_syscall(r), SyscallState::kRestarted);
    EXPECT_EQ(static_cast<int64_t>(r.rax), code);
    EXPECT_EQ(r.rip, 0x1000u);
  }
}

TEST(SyscallRestartTest, RewoundForAPlainJump) {
  Registers r = registers_rewound(with(SYS_read, -512));
  EXPECT_EQ(r.rip, 0xffeu);
  EXPECT_EQ(r.rax, uint64_t{SYS_read});
  EXPECT_EQ(r.orig_rax, ~uint64_t{0});
  r = registers_rewound(with(SYS_poll, -516));
  EXPECT_EQ(r.rax, uint64_t{SYS_restart_syscall});
  r = registers_rewound(with(SYS_read, 3));
  EXPECT_EQ(r.rip, 0x1000u);
  EXPECT_EQ(r.rax, 3u);
}

// A call that waits. Ended by the test (`release`) or by its own time.
struct Wait {
  const char* name;
  std::function<int(Shared&)> body;  // 0: all is right
  std::function<void(Child&)> release = nullptr;
};

constexpr int64_t kWholeNs = 600'000'000;
constexpr int64_t kRoundsNs = 300'000'000;

// The wait lasted its time, not longer by the time at which it was last stopped.
int check_time(int64_t begin, int64_t whole_ns = kWholeNs) {
  const int64_t took = monotonic_ns() - begin;
  if (took < whole_ns) return 21;
  return took < whole_ns + 250'000'000 ? 0 : 22;
}

timespec whole() { return {.tv_sec = 0, .tv_nsec = kWholeNs}; }

// Pipe ends and sockets that the test holds the other ends of, made before the fork.
struct Ends {
  int pipe[2];
  int pair[2];
  int listener;
  sockaddr_in address{};
  Ends() {
    EXPECT_EQ(::pipe2(pipe, O_CLOEXEC), 0);
    EXPECT_EQ(::socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
    listener = ::socket(AF_INET, SOCK_STREAM, 0);
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    EXPECT_EQ(::bind(listener, reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
    EXPECT_EQ(::listen(listener, 5), 0);
    socklen_t size = sizeof address;
    ::getsockname(listener, reinterpret_cast<sockaddr*>(&address), &size);
  }
};
Ends& ends() {
  static Ends all;
  return all;
}
void feed_pipe(Child&) { EXPECT_EQ(::write(ends().pipe[1], "x", 1), 1); }
void feed_pair(Child&) { EXPECT_EQ(::write(ends().pair[1], "x", 1), 1); }
int drain_pipe() {
  char c;
  return ::read(ends().pipe[0], &c, 1) == 1 ? 0 : 30;
}
int drain_pair() {
  char c;
  return ::read(ends().pair[0], &c, 1) == 1 ? 0 : 31;
}
void signal_child(Child& child) { ::kill(child.pid().value, SIGUSR1); }

std::atomic<int> got_signals{0};
void handle_usr1() {
  struct sigaction action {};
  action.sa_handler = [](int) { got_signals++; };
  ::sigaction(SIGUSR1, &action, nullptr);
}
sigset_t block_usr1() {
  sigset_t set, empty;
  sigemptyset(&empty);
  sigemptyset(&set);
  sigaddset(&set, SIGUSR1);
  ::sigprocmask(SIG_BLOCK, &set, nullptr);
  return empty;
}

std::vector<Wait> waits() {
  std::vector<Wait> all;
  const auto epoll_of_pipe = [] {
    const int ep = ::epoll_create1(0);
    epoll_event event{.events = EPOLLIN, .data = {}};
    ::epoll_ctl(ep, EPOLL_CTL_ADD, ends().pipe[0], &event);
    return ep;
  };
  all.push_back({"epoll_wait",
                 [=](Shared&) {
                   epoll_event event;
                   return ::epoll_wait(epoll_of_pipe(), &event, 1, -1) == 1 ? drain_pipe() : errno;
                 },
                 feed_pipe});
  all.push_back({"epoll_pwait_atomic_mask",
                 [=](Shared&) {
                   handle_usr1();
                   const sigset_t open = block_usr1();
                   epoll_event event;
                   const int got = ::epoll_pwait(epoll_of_pipe(), &event, 1, -1, &open);
                   return got == -1 && errno == EINTR && got_signals == 1 ? 0 : 40;
                 },
                 signal_child});
  all.push_back({"poll", [](Shared&) {
                   pollfd fd{.fd = ends().pipe[0], .events = POLLIN, .revents = 0};
                   const int64_t begin = monotonic_ns();
                   if (::poll(&fd, 1, kWholeNs / 1'000'000) != 0) return errno + 100;
                   return check_time(begin);
                 }});
  all.push_back({"poll_for_ever",
                 [](Shared&) {
                   pollfd fd{.fd = ends().pipe[0], .events = POLLIN, .revents = 0};
                   return ::poll(&fd, 1, -1) == 1 ? drain_pipe() : errno;
                 },
                 feed_pipe});
  all.push_back({"ppoll_with_time", [](Shared&) {
                   pollfd fd{.fd = ends().pipe[0], .events = POLLIN, .revents = 0};
                   const timespec time = whole();
                   const int64_t begin = monotonic_ns();
                   if (::ppoll(&fd, 1, &time, nullptr) != 0) return errno + 100;
                   return check_time(begin);
                 }});
  all.push_back({"select_with_time", [](Shared&) {
                   fd_set set;
                   FD_ZERO(&set);
                   FD_SET(ends().pipe[0], &set);
                   timeval time{.tv_sec = 0, .tv_usec = kWholeNs / 1000};
                   const int64_t begin = monotonic_ns();
                   if (::select(ends().pipe[0] + 1, &set, nullptr, nullptr, &time) != 0)
                     return errno + 100;
                   return check_time(begin);
                 }});
  all.push_back({"nanosleep", [](Shared&) {
                   const timespec time = whole();
                   const int64_t begin = monotonic_ns();
                   if (::syscall(SYS_nanosleep, &time, nullptr) != 0) return errno + 100;
                   return check_time(begin);
                 }});
  all.push_back({"clock_nanosleep", [](Shared&) {
                   const timespec time = whole();
                   const int64_t begin = monotonic_ns();
                   if (::clock_nanosleep(CLOCK_MONOTONIC, 0, &time, nullptr) != 0) return 100;
                   return check_time(begin);
                 }});
  all.push_back({"clock_nanosleep_absolute", [](Shared&) {
                   const int64_t begin = monotonic_ns();
                   const int64_t end = begin + kWholeNs;
                   const timespec time{.tv_sec = end / 1'000'000'000,
                                       .tv_nsec = end % 1'000'000'000};
                   if (::clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &time, nullptr) != 0)
                     return 100;
                   return check_time(begin);
                 }});
  all.push_back({"futex_wait_with_time", [](Shared&) {
                   int word = 0;
                   const timespec time = whole();
                   const int64_t begin = monotonic_ns();
                   ::syscall(SYS_futex, &word, FUTEX_WAIT, 0, &time, nullptr, 0);
                   return errno == ETIMEDOUT ? check_time(begin) : errno + 100;
                 }});
  all.push_back({"futex_wait",
                 [](Shared& shared) {
                   auto* word = reinterpret_cast<int*>(&shared.word[10]);
                   return ::syscall(SYS_futex, word, FUTEX_WAIT, 0, nullptr, nullptr, 0) == 0
                              ? 0
                              : errno;
                 },
                 [](Child& child) {
                   ::syscall(SYS_futex, reinterpret_cast<int*>(&child.word(10)), FUTEX_WAKE, 1);
                 }});
  all.push_back({"read_pipe", [](Shared&) { return drain_pipe(); }, feed_pipe});
  all.push_back(
      {"accept",
       [](Shared&) { return ::accept(ends().listener, nullptr, nullptr) >= 0 ? 0 : errno; },
       [](Child&) {
         const int fd = ::socket(AF_INET, SOCK_STREAM, 0);
         ::connect(fd, reinterpret_cast<sockaddr*>(&ends().address), sizeof ends().address);
         ::close(fd);
       }});
  all.push_back({"recv",
                 [](Shared&) {
                   char c;
                   return ::recv(ends().pair[0], &c, 1, 0) == 1 ? 0 : errno;
                 },
                 feed_pair});
  all.push_back({"recv_with_timeout_option",
                 [](Shared&) {
                   const timeval time{.tv_sec = 30, .tv_usec = 0};
                   ::setsockopt(ends().pair[0], SOL_SOCKET, SO_RCVTIMEO, &time, sizeof time);
                   return drain_pair();
                 },
                 feed_pair});
  all.push_back({"sigtimedwait",
                 [](Shared&) {
                   block_usr1();
                   sigset_t set;
                   sigemptyset(&set);
                   sigaddset(&set, SIGUSR1);
                   const timespec time{.tv_sec = 30, .tv_nsec = 0};
                   return ::sigtimedwait(&set, nullptr, &time) == SIGUSR1 ? 0 : errno;
                 },
                 signal_child});
  all.push_back({"pause",
                 [](Shared&) {
                   handle_usr1();
                   return ::pause() == -1 && errno == EINTR && got_signals == 1 ? 0 : 41;
                 },
                 signal_child});
  all.push_back({"sigsuspend",
                 [](Shared&) {
                   handle_usr1();
                   const sigset_t open = block_usr1();
                   return ::sigsuspend(&open) == -1 && errno == EINTR && got_signals == 1 ? 0 : 42;
                 },
                 signal_child});
  all.push_back({"wait4", [](Shared&) {
                   const pid_t kid = ::fork();
                   if (kid == 0) {
                     ::prctl(PR_SET_PDEATHSIG, SIGKILL);
                     const timespec time = whole();
                     ::nanosleep(&time, nullptr);
                     ::_exit(7);
                   }
                   int status = 0;
                   if (::wait4(kid, &status, 0, nullptr) != kid) return errno + 100;
                   return WEXITSTATUS(status) == 7 ? 0 : 43;
                 }});
  all.push_back({"msgrcv",
                 [](Shared& shared) {
                   struct {
                     long type;
                     char text[8];
                   } message;
                   return ::msgrcv(static_cast<int>(shared.word[11]), &message, 8, 1, 0) == 8
                              ? 0
                              : errno;
                 },
                 [](Child& child) {
                   struct {
                     long type = 1;
                     char text[8] = "message";
                   } message;
                   ::msgsnd(static_cast<int>(child.word(11)), &message, 8, 0);
                 }});
  all.push_back({"semop",
                 [](Shared& shared) {
                   sembuf down{.sem_num = 0, .sem_op = -1, .sem_flg = 0};
                   return ::semop(static_cast<int>(shared.word[12]), &down, 1) == 0 ? 0 : errno;
                 },
                 [](Child& child) {
                   sembuf up{.sem_num = 0, .sem_op = 1, .sem_flg = 0};
                   ::semop(static_cast<int>(child.word(12)), &up, 1);
                 }});
  all.push_back({"semtimedop",
                 [](Shared& shared) {
                   sembuf down{.sem_num = 0, .sem_op = -1, .sem_flg = 0};
                   const timespec time{.tv_sec = 30, .tv_nsec = 0};
                   return ::semtimedop(static_cast<int>(shared.word[12]), &down, 1, &time) == 0
                              ? 0
                              : errno;
                 },
                 [](Child& child) {
                   sembuf up{.sem_num = 0, .sem_op = 1, .sem_flg = 0};
                   ::semop(static_cast<int>(child.word(12)), &up, 1);
                 }});
  return all;
}

bool in_a_wait(HostPid pid) {
  if (internal::task_state(pid) != 'S') return false;
  std::string line;
  std::ifstream file("/proc/" + std::to_string(pid.value) + "/syscall");
  return std::getline(file, line) && line != "running" && line[0] != '-';
}

class WaitTest : public ::testing::TestWithParam<std::tuple<size_t, bool>> {};

TEST_P(WaitTest, NeverSeesTheStop) {
  const auto [index, with_batch] = GetParam();
  const Wait wait = waits()[index];
  ends();
  const int messages = ::msgget(IPC_PRIVATE, 0600);
  const int semaphore = ::semget(IPC_PRIVATE, 1, 0600);
  {
    Child child([&](Shared& shared) {
      shared.word[11] = static_cast<uint64_t>(messages);
      shared.word[12] = static_cast<uint64_t>(semaphore);
      shared.word[1] = 1;
      return wait.body(shared);
    });
    ASSERT_TRUE(child.wait_word(1, 1));
    const int64_t begin = monotonic_ns();
    const int most = wait.release ? 30 : 1000;
    for (int round = 0; round < most && monotonic_ns() - begin < kRoundsNs; ++round) {
      ASSERT_TRUE(wait_until([&] { return in_a_wait(child.pid()); })) << "round " << round;
      auto task = stop_task(child.pid());
      GW_ASSERT_OK(task.status());
      if (with_batch) {
        auto area = StubArea::map(*task, child.image_pid(), 4096);
        GW_ASSERT_OK(area.status());
        Batch batch;
        batch.call(SYS_getpid, {});
        GW_ASSERT_OK(area->run(*task, child.image_pid(), batch, soon()));
        GW_ASSERT_OK(area->unmap(*task));
      }
      if (round % 2 == 0) {
        GW_ASSERT_OK(std::move(*task).detach());
      } else {
        auto running = std::move(*task).resume();
        GW_ASSERT_OK(running.status());
        ::usleep(static_cast<useconds_t>(round % 7) * 100);
        GW_ASSERT_OK(std::move(*running).detach());
      }
      ::usleep(10'000);
    }
    if (wait.release) {
      ASSERT_TRUE(wait_until([&] { return in_a_wait(child.pid()); }));
      wait.release(child);
    }
    EXPECT_EQ(child.join(), 0) << wait.name;
  }
  ::msgctl(messages, IPC_RMID, nullptr);
  ::semctl(semaphore, 0, IPC_RMID);
}

INSTANTIATE_TEST_SUITE_P(All, WaitTest,
                         ::testing::Combine(::testing::Range(size_t{0}, waits().size()),
                                            ::testing::Bool()),
                         [](const auto& test) {
                           return std::string(waits()[std::get<0>(test.param)].name) +
                                  (std::get<1>(test.param) ? "_batch" : "");
                         });

// The signal comes while the task is stopped: the wait must end with EINTR, not begin again.
TEST(SyscallRestartTest, SignalInTheStopEndsPause) {
  Child child([](Shared& shared) {
    handle_usr1();
    shared.word[1] = 1;
    ::pause();
    return got_signals == 1 ? 0 : 1;
  });
  ASSERT_TRUE(child.wait_word(1, 1));
  ASSERT_TRUE(wait_until([&] { return in_a_wait(child.pid()); }));
  auto task = stop_task(child.pid());
  GW_ASSERT_OK(task.status());
  ::kill(child.pid().value, SIGUSR1);
  auto area = StubArea::map(*task, child.image_pid(), 4096);
  GW_ASSERT_OK(area.status());
  Batch batch;
  batch.call(SYS_getpid, {});
  GW_ASSERT_OK(area->run(*task, child.image_pid(), batch, soon()));
  GW_ASSERT_OK(area->unmap(*task));
  GW_ASSERT_OK(std::move(*task).detach());
  EXPECT_EQ(child.join(), 0);
}

TEST(SyscallRestartTest, ElsewhereTheCallItselfRunsAgain) {
  Child child([](Shared& shared) {
    shared.word[1] = 1;
    const timespec time{.tv_sec = 100, .tv_nsec = 0};
    ::clock_nanosleep(CLOCK_MONOTONIC, 0, &time, nullptr);
    return 0;
  });
  ASSERT_TRUE(child.wait_word(1, 1));
  for (int round = 0; round < 2; ++round) {
    ASSERT_TRUE(wait_until([&] { return in_a_wait(child.pid()); }));
    auto task = stop_task(child.pid());
    GW_ASSERT_OK(task.status());
    const Registers here = task->registers().value();
    EXPECT_EQ(static_cast<int64_t>(here.rax), -516);
    EXPECT_EQ(static_cast<long>(here.orig_rax),
              round == 0 ? SYS_clock_nanosleep : SYS_restart_syscall);
    const auto there = registers_for_elsewhere(child.pid(), here);
    GW_ASSERT_OK(there.status());
    EXPECT_EQ(static_cast<int64_t>(there->rax), -514);
    EXPECT_EQ(static_cast<long>(there->orig_rax), SYS_clock_nanosleep);
    EXPECT_EQ(there->rip, here.rip);
  }
}

// syscall(2) of the C library has no number in its code; other places have it further away.
TEST(SyscallRestartTest, AWaitThatThisProcessHasInterruptedIsKnown) {
  Child child([](Shared& shared) {
    shared.word[1] = 1;
    const timespec time{.tv_sec = 100, .tv_nsec = 0};
    ::syscall(SYS_clock_nanosleep, CLOCK_MONOTONIC, 0, &time, nullptr);
    return 0;
  });
  ASSERT_TRUE(child.wait_word(1, 1));
  for (int round = 0; round < 3; ++round) {
    ASSERT_TRUE(wait_until([&] { return in_a_wait(child.pid()); }));
    auto task = stop_task(child.pid());
    GW_ASSERT_OK(task.status());
    Registers here = task->registers().value();
    EXPECT_EQ(here.orig_rax == SYS_restart_syscall, round > 0);
    const auto there = registers_for_elsewhere(child.pid(), here);
    GW_ASSERT_OK(there.status());
    EXPECT_EQ(static_cast<long>(there->orig_rax), SYS_clock_nanosleep);
    // Another wait of that task.
    if (round == 0) continue;
    here.rsp -= 8;
    EXPECT_TRUE(absl::IsUnimplemented(registers_for_elsewhere(child.pid(), here).status()));
  }
}

}  // namespace
}  // namespace godwit::tracee
