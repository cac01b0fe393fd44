// One kind of kernel state each: set up before the move, looked at after it, and set up again where
// looking uses it up, so that a second move finds it whole.
#ifndef GODWIT_TESTS_SUBJECTS_STATE_CHECKS_H_
#define GODWIT_TESTS_SUBJECTS_STATE_CHECKS_H_

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <functional>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

namespace state {

// What is wrong, one line each. Threads report too.
class Report {
 public:
  void add(const std::string& line) {
    std::lock_guard lock(mutex_);
    if (lines_.size() < 200) lines_.push_back(line);
  }
  void expect(bool right, const std::string& line) {
    if (!right) add(line);
  }
  void equal(const char* what, long long is, long long wanted) {
    if (is != wanted)
      add(std::string(what) + " is " + std::to_string(is) + ", not " + std::to_string(wanted));
  }
  std::vector<std::string> take() {
    std::lock_guard lock(mutex_);
    return std::exchange(lines_, {});
  }

 private:
  std::mutex mutex_;
  std::vector<std::string> lines_;
};

// Of the whole process; threads and handlers of checks write into it.
Report& report();

struct Check {
  const char* name;
  std::function<void()> check;
};

// For set-up only: what fails there is no finding.
inline long must(long result, const char* what) {
  if (result < 0) {
    std::fprintf(stderr, "state_check: %s: %s\n", what, std::strerror(errno));
    std::exit(1);
  }
  return result;
}

inline long long clock_ms(clockid_t clock) {
  timespec now{};
  ::clock_gettime(clock, &now);
  return static_cast<long long>(now.tv_sec) * 1000 + now.tv_nsec / 1'000'000;
}

// Polls until condition() or two seconds have gone by.
template <typename Condition>
bool soon(const Condition& condition) {
  const long long end = clock_ms(CLOCK_MONOTONIC) + 2000;
  const timespec nap{0, 2'000'000};
  while (!condition()) {
    if (clock_ms(CLOCK_MONOTONIC) > end) return false;
    ::nanosleep(&nap, nullptr);
  }
  return true;
}

// Each sets its state up and gives back how to look at it.
void add_descriptor_checks(std::vector<Check>& checks);
void add_process_checks(std::vector<Check>& checks);
void add_memory_checks(std::vector<Check>& checks);
void add_signal_checks(std::vector<Check>& checks);
void add_lock_checks(std::vector<Check>& checks);
void add_segment_checks(std::vector<Check>& checks);
void add_ipc_checks(std::vector<Check>& checks);
void add_terminal_checks(std::vector<Check>& checks);
void add_pidfd_checks(std::vector<Check>& checks);
void add_signal_owner_checks(std::vector<Check>& checks);
void add_seccomp_checks(std::vector<Check>& checks);
void add_watch_checks(std::vector<Check>& checks);
void add_fifo_checks(std::vector<Check>& checks);
void add_aio_checks(std::vector<Check>& checks);
void add_ring_checks(std::vector<Check>& checks);
void add_rights_checks(std::vector<Check>& checks);
void add_thread_checks(std::vector<Check>& checks);

}  // namespace state

#endif  // GODWIT_TESTS_SUBJECTS_STATE_CHECKS_H_
