// A real child process to be stopped by tests. Its body runs after fork(2) and talks through
// shared memory; it dies with the test and is reaped by the destructor.
#ifndef GODWIT_TRACEE_CHILD_FOR_TEST_H_
#define GODWIT_TRACEE_CHILD_FOR_TEST_H_

#include <gtest/gtest.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <utility>

#include "base/clock.h"
#include "base/ids.h"
#include "base/status.h"
#include "tracee/batch.h"
#include "tracee/ptrace_calls.h"
#include "tracee/task.h"

namespace godwit::tracee::testing {

#define GW_ASSERT_OK(expression)                  \
  do {                                            \
    const absl::Status gw_ok = (expression);      \
    ASSERT_TRUE(gw_ok.ok()) << message_of(gw_ok); \
  } while (false)

inline Deadline soon() { return Deadline::in(absl::Seconds(10)); }

struct Shared {
  std::array<std::atomic<uint64_t>, 256> word{};
};

inline bool wait_until(const std::function<bool()>& condition) {
  const Deadline deadline = soon();
  while (!condition()) {
    if (deadline.passed()) return false;
    ::usleep(200);
  }
  return true;
}

class Child {
 public:
  explicit Child(const std::function<int(Shared&)>& body) {
    shared_ = new (::mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE,
                          MAP_SHARED | MAP_ANONYMOUS, -1, 0)) Shared;
    pid_.value = ::fork();
    if (pid_.value == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      ::_exit(body(*shared_));
    }
  }
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;
  ~Child() {
    if (pid_.value > 0) {
      ::kill(pid_.value, SIGKILL);
      join();
    }
    ::munmap(shared_, sizeof(Shared));
  }

  HostPid pid() const { return pid_; }
  ImagePid image_pid() const { return ImagePid{pid_.value}; }
  std::atomic<uint64_t>& word(size_t i) { return shared_->word[i]; }
  Shared& shared() { return *shared_; }

  bool wait_word(size_t i, uint64_t at_least) {
    return wait_until([&] { return word(i).load() >= at_least; });
  }

  // Exit code, or -signal. Waits with a deadline; -1000 when it does not end, -2000 when its end
  // was already waited for (as its tracer).
  int join() {
    int status = 0;
    pid_t got = 0;
    const bool ended = wait_until([&] {
      got = ::waitpid(pid_.value, &status, WNOHANG);
      return got != 0;
    });
    if (!ended) return -1000;
    pid_.value = 0;
    if (got < 0) return -2000;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
  }

 private:
  HostPid pid_;
  Shared* shared_;
};

inline absl::StatusOr<StoppedTask> stop_task(HostPid tid) {
  GW_ASSIGN_OR_RETURN(SeizedTask task, SeizedTask::seize(tid));
  GW_RETURN_IF_ERROR(task.interrupt());
  return std::move(task).wait_stopped(soon());
}

}  // namespace godwit::tracee::testing

#endif  // GODWIT_TRACEE_CHILD_FOR_TEST_H_
