// Who goes first. In the rounds the program and its clients run, and a mover gives way to them. The
// freeze is time in which clients wait: whoever works in it goes before others on a busy machine,
// and no CPU sleeps so deeply that waking it takes long.
#ifndef GODWIT_PROCESS_PRIORITY_H_
#define GODWIT_PROCESS_PRIORITY_H_

#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <sys/resource.h>
#include <sys/types.h>
#include <unistd.h>

#include <cstdint>
#include <optional>
#include <string_view>
#include <thread>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "base/unique_fd.h"
#include "kernel/slice.h"

namespace godwit::process {

// Not a real-time policy: that starves the clients (measured).
constexpr int kFreezeNice = -15;
// Clients wait for 62 ms in all, in waits of more than 1 ms, while 1 GiB moves; for 215 at 0. At 10
// it is 20 to 40, but a mover has a tenth of what others get then, and on a machine that is busy
// anyway a service that dirties fast does not converge.
constexpr int kRoundsNice = 5;

// setpriority(2): on Linux the nice value is a thread's own. Of thread `tid`, 0: the caller. Only
// speed is at stake: without CAP_SYS_NICE it stays as it is.
inline void go_first(pid_t tid = 0) {
  (void)::setpriority(PRIO_PROCESS, static_cast<id_t>(tid), kFreezeNice);
}

// As long and as short as a slice can be. In the rounds a mover takes its share of the CPUs, and
// every thread of a service or a client that wakes goes before it; in the freeze it goes before
// them.
constexpr absl::Duration kRoundsSlice = absl::Milliseconds(100);
constexpr absl::Duration kFreezeSlice = absl::Microseconds(100);

// What a mover is in the rounds: the caller, the threads that it makes later, and its session.
void give_way();
// Not any more: a program waits for it elsewhere. As everybody is.
void take_part();

// "/autogroup-25 nice 10\n", as /proc/PID/autogroup has it.
absl::StatusOr<int> parse_session_nice(std::string_view text);

// Where the scheduler has a group for each session (sched(7), "The autogroup feature"), nice values
// only count within one: what the freeze runs in goes before others by the value of its group. That
// is the process's session's, which a mover has for itself; another's is left alone.
class FirstSession {
 public:
  FirstSession();
  ~FirstSession();
  FirstSession(const FirstSession&) = delete;
  FirstSession& operator=(const FirstSession&) = delete;

 private:
  std::optional<int> before_;
};

// The caller's from its making to its end.
class FirstPriority {
 public:
  FirstPriority()
      : before_(::getpriority(PRIO_PROCESS, 0)), slice_(kernel::set_slice(0, kFreezeSlice)) {
    go_first();
  }
  ~FirstPriority() {
    (void)::setpriority(PRIO_PROCESS, 0, before_);
    kernel::set_slice(0, slice_);
  }
  FirstPriority(const FirstPriority&) = delete;
  FirstPriority& operator=(const FirstPriority&) = delete;

 private:
  int before_;
  absl::Duration slice_;
};

// The thread that makes it stays on the CPU that it is on, and its helpers are to stay off that
// one: where all CPUs have been busy, as they are in rounds on a small machine, a thread that is
// woken is queued behind whoever woke it although another CPU is idle by then (select_idle_cpu(),
// kernel/sched/fair.c, SIS_UTIL), and a helper there helps nobody.
//
// Threads that are born meanwhile inherit the mask: not where there were no rounds to make them in,
// as in a cold move, whose freeze is long and wants all CPUs.
class OneCpu {
 public:
  explicit OneCpu(bool bind) {
    CPU_ZERO(&others_);
    if (!bind) return;
    const int cpu = ::sched_getcpu();
    if (cpu < 0 || ::sched_getaffinity(0, sizeof before_, &before_) != 0) return;
    others_ = before_;
    CPU_CLR(cpu, &others_);
    // With one CPU, or with more than a cpu_set_t tells of, all is as it was.
    if (CPU_COUNT(&others_) == 0 || CPU_COUNT(&others_) == CPU_COUNT(&before_)) return;
    cpu_set_t own;
    CPU_ZERO(&own);
    CPU_SET(cpu, &own);
    bound_ = ::sched_setaffinity(0, sizeof own, &own) == 0;
  }
  ~OneCpu() {
    if (bound_) (void)::sched_setaffinity(0, sizeof before_, &before_);
  }
  OneCpu(const OneCpu&) = delete;
  OneCpu& operator=(const OneCpu&) = delete;

  // A helper's mask is not put back: it works in freezes only, and each says anew.
  void keep_off(std::thread& helper) const {
    if (bound_) (void)::pthread_setaffinity_np(helper.native_handle(), sizeof others_, &others_);
  }

 private:
  cpu_set_t before_;
  cpu_set_t others_;
  bool bound_ = false;
};

// A switchover is a dozen messages from one thread to another. Each wakes an idle CPU: 50 us where
// that is a virtual one which has halted, 5 us where it polls (measured, there and back: 100 and
// 14). A request of 0 us at /dev/cpu_dma_latency makes idle CPUs poll while it is open
// (Documentation/power/pm_qos_interface.rst); our death ends it too. Only speed is at stake: where
// it cannot be opened nothing is different. From the end of the first round on, since opening it
// wakes every CPU.
class WakefulCpus {
 public:
  WakefulCpus() : fd_(::open("/dev/cpu_dma_latency", O_WRONLY | O_CLOEXEC)) {
    const int32_t none_us = 0;
    if (fd_ && ::write(fd_.get(), &none_us, sizeof none_us) != sizeof none_us) fd_.reset();
  }

 private:
  UniqueFd fd_;
};

// What the freeze needs, for the thread that makes it.
struct Hurry {
  explicit Hurry(bool one_cpu) : cpu(one_cpu) {}
  FirstSession session;
  FirstPriority first;
  OneCpu cpu;
};

}  // namespace godwit::process

#endif  // GODWIT_PROCESS_PRIORITY_H_
