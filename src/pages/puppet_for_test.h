// A child process for tests that does what it is told: system calls, fills, writers that never
// rest. Dies with the test.
#ifndef GODWIT_PAGES_PUPPET_FOR_TEST_H_
#define GODWIT_PAGES_PUPPET_FOR_TEST_H_

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <ctime>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "base/ids.h"
#include "base/unique_fd.h"
#include "kernel/syscalls.h"

namespace godwit::pages {

class Puppet {
 public:
  Puppet() {
    int fds[2];
    EXPECT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
    pid_ = ::fork();
    if (pid_ == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      ::close(fds[0]);
      obey(fds[1]);
      ::_exit(0);
    }
    ::close(fds[1]);
    control_.reset(fds[0]);
  }
  ~Puppet() {
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
  }
  Puppet(const Puppet&) = delete;
  Puppet& operator=(const Puppet&) = delete;

  HostPid pid() const { return {pid_}; }

  // The raw result: -errno on failure.
  int64_t call(long number, uint64_t a = 0, uint64_t b = 0, uint64_t c = 0, uint64_t d = 0,
               uint64_t e = 0, uint64_t f = 0) {
    return ask({kCall, {static_cast<uint64_t>(number), a, b, c, d, e, f}});
  }
  uint64_t map(uint64_t address, uint64_t bytes, int prot = PROT_READ | PROT_WRITE, int flags = 0,
               int fd = -1) {
    return static_cast<uint64_t>(
        call(SYS_mmap, address, bytes, static_cast<uint64_t>(prot),
             static_cast<uint64_t>(MAP_PRIVATE | MAP_FIXED | flags | (fd < 0 ? MAP_ANONYMOUS : 0)),
             static_cast<uint64_t>(static_cast<int64_t>(fd)), 0));
  }
  // Writes words made from `seed` into each page (all of it).
  void fill(uint64_t address, uint64_t bytes, uint64_t seed) {
    ask({kFill, {address, bytes, seed}});
  }
  // A child of the puppet with a copy of its memory; sleeps until killed.
  int64_t fork_sleeper() { return ask({kFork, {}}); }
  void touch(uint64_t address) { ask({kTouch, {address}}); }
  void poke(uint64_t address, uint64_t value) { ask({kPoke, {address, value}}); }
  // Threads that write random words to random pages of the range until stop_writers(), which gives
  // the longest time in ns that one write took (preemption by other programs left out). `pause_ns`
  // between writes.
  void start_writers(uint64_t address, uint64_t bytes, uint64_t threads, uint64_t pause_ns = 0) {
    ask({kStartWriters, {address, bytes, threads, pause_ns}});
  }
  int64_t stop_writers() { return ask({kStopWriters, {}}); }

  UniqueFd take_fd(int number) {
    auto pidfd = kernel::pidfd_open(pid());
    EXPECT_TRUE(pidfd.ok()) << pidfd.status();
    auto fd = kernel::pidfd_getfd(pidfd->get(), number);
    EXPECT_TRUE(fd.ok()) << fd.status();
    return *std::move(fd);
  }
  // A userfaultfd of this puppet, taken out.
  UniqueFd make_uffd() {
    const int64_t number = call(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
    EXPECT_GE(number, 0);
    UniqueFd fd = take_fd(static_cast<int>(number));
    call(SYS_close, static_cast<uint64_t>(number));
    return fd;
  }

 private:
  enum Op : uint64_t { kCall, kFill, kTouch, kPoke, kFork, kStartWriters, kStopWriters };
  struct Order {
    Op op;
    uint64_t a[7];
  };

  int64_t ask(const Order& order) {
    int64_t result = -1;
    EXPECT_EQ(::write(control_.get(), &order, sizeof order), ssize_t{sizeof order});
    EXPECT_EQ(::read(control_.get(), &result, sizeof result), ssize_t{sizeof result})
        << "the puppet has died";
    return result;
  }

  static int64_t now_ns() {
    timespec t{};
    ::clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1'000'000'000 + t.tv_nsec;
  }

  // Times that another task was given the CPU of this thread: not a stall of its memory.
  static long preemptions() {
    rusage usage{};
    ::getrusage(RUSAGE_THREAD, &usage);
    return usage.ru_nivcsw;
  }

  struct Writers {
    std::atomic<bool> stop{false};
    std::atomic<int64_t> longest{0};
    std::vector<std::thread> threads;
  };

  static void write_at_random(Writers& writers, uint64_t address, uint64_t bytes, uint64_t pause_ns,
                              uint32_t seed) {
    std::mt19937_64 random(seed);
    int64_t longest = 0;
    int64_t before = now_ns();
    long preempted = preemptions();
    while (!writers.stop.load(std::memory_order_relaxed)) {
      const uint64_t value = random();
      *reinterpret_cast<volatile uint64_t*>(address + value % bytes / 8 * 8) = value;
      const int64_t after = now_ns();
      if (after - before > longest) {
        const long now = preemptions();
        if (now == preempted) longest = after - before;
        preempted = now;
      }
      before = after;
      if (pause_ns != 0) {
        while (now_ns() < before + static_cast<int64_t>(pause_ns)) {
        }
        before = now_ns();
      }
    }
    int64_t seen = writers.longest;
    while (seen < longest && !writers.longest.compare_exchange_weak(seen, longest)) {
    }
  }

  static void obey(int fd) {
    auto writers = std::make_unique<Writers>();
    Order order{};
    while (::read(fd, &order, sizeof order) == ssize_t{sizeof order}) {
      const auto& a = order.a;
      int64_t result = 0;
      switch (order.op) {
        case kCall:
          result = ::syscall(static_cast<long>(a[0]), a[1], a[2], a[3], a[4], a[5], a[6]);
          if (result == -1) result = -errno;
          break;
        case kFill: {
          std::mt19937_64 random(a[2]);
          for (uint64_t at = 0; at < a[1]; at += 8)
            *reinterpret_cast<volatile uint64_t*>(a[0] + at) = random() | 1;
          break;
        }
        case kTouch:
          result = *reinterpret_cast<volatile char*>(a[0]);
          break;
        case kPoke:
          *reinterpret_cast<volatile uint64_t*>(a[0]) = a[1];
          break;
        case kFork:
          result = ::fork();
          if (result == 0) {
            ::prctl(PR_SET_PDEATHSIG, SIGKILL);
            while (true) ::pause();
          }
          break;
        case kStartWriters:
          for (uint64_t i = 0; i < a[2]; ++i) {
            writers->threads.emplace_back(
                [w = writers.get(), address = a[0], bytes = a[1], pause = a[3], i] {
                  write_at_random(*w, address, bytes, pause, static_cast<uint32_t>(i));
                });
          }
          break;
        case kStopWriters:
          writers->stop = true;
          for (std::thread& thread : writers->threads) thread.join();
          result = writers->longest;
          writers = std::make_unique<Writers>();
          break;
      }
      if (::write(fd, &result, sizeof result) != ssize_t{sizeof result}) break;
    }
  }

  pid_t pid_ = -1;
  UniqueFd control_;
};

}  // namespace godwit::pages

#endif  // GODWIT_PAGES_PUPPET_FOR_TEST_H_
