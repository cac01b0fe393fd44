// The freeze is time in which clients wait: whoever works in it goes before others on a busy
// machine, and no CPU sleeps so deeply that waking it takes long.
#ifndef GODWIT_PROCESS_PRIORITY_H_
#define GODWIT_PROCESS_PRIORITY_H_

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/types.h>
#include <unistd.h>

#include <cstdint>

#include "base/unique_fd.h"

namespace godwit::process {

// Not a real-time policy: that starves the clients (measured).
constexpr int kFreezeNice = -15;

// setpriority(2): on Linux the nice value is a thread's own. Of thread `tid`, 0: the caller. Only
// speed is at stake: without CAP_SYS_NICE it stays as it is.
inline void go_first(pid_t tid = 0) {
  (void)::setpriority(PRIO_PROCESS, static_cast<id_t>(tid), kFreezeNice);
}

// The caller's from its making to its end.
class FirstPriority {
 public:
  FirstPriority() : before_(::getpriority(PRIO_PROCESS, 0)) { go_first(); }
  ~FirstPriority() { (void)::setpriority(PRIO_PROCESS, 0, before_); }
  FirstPriority(const FirstPriority&) = delete;
  FirstPriority& operator=(const FirstPriority&) = delete;

 private:
  int before_;
};

// A switchover is a dozen messages from one thread to another. Each wakes an idle CPU: 50 us where
// that is a virtual one which has halted, 5 us where it polls (measured, there and back: 100 and
// 14). A request of 0 us at /dev/cpu_dma_latency makes idle CPUs poll while it is open
// (Documentation/power/pm_qos_interface.rst); our death ends it too. Only speed is at stake: where
// it cannot be opened nothing is different.
class WakefulCpus {
 public:
  WakefulCpus() : fd_(::open("/dev/cpu_dma_latency", O_WRONLY | O_CLOEXEC)) {
    const int32_t none_us = 0;
    if (fd_ && ::write(fd_.get(), &none_us, sizeof none_us) != sizeof none_us) fd_.reset();
  }

 private:
  UniqueFd fd_;
};

// All of it, for the thread that makes it.
struct Hurry {
  FirstPriority first;
  WakefulCpus cpus;
};

}  // namespace godwit::process

#endif  // GODWIT_PROCESS_PRIORITY_H_
