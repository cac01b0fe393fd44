// The freeze is time in which clients wait: whoever works in it goes before others on a busy
// machine. setpriority(2): on Linux the nice value is a thread's own.
#ifndef GODWIT_PROCESS_PRIORITY_H_
#define GODWIT_PROCESS_PRIORITY_H_

#include <sys/resource.h>
#include <sys/types.h>

namespace godwit::process {

// Not a real-time policy: that starves the clients (measured).
constexpr int kFreezeNice = -15;

// Of thread `tid`, 0: the caller. Only speed is at stake: without CAP_SYS_NICE it stays as it is.
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

}  // namespace godwit::process

#endif  // GODWIT_PROCESS_PRIORITY_H_
