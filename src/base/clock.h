// Times of this machine.
#ifndef GODWIT_BASE_CLOCK_H_
#define GODWIT_BASE_CLOCK_H_

#include <cstdint>
#include <ctime>

#include "absl/time/time.h"

namespace godwit {

inline int64_t clock_ns(clockid_t clock) {
  timespec ts{};
  ::clock_gettime(clock, &ts);
  return int64_t{ts.tv_sec} * 1'000'000'000 + ts.tv_nsec;
}

inline int64_t monotonic_ns() { return clock_ns(CLOCK_MONOTONIC); }

// A point on CLOCK_MONOTONIC by which a wait must have ended. Every wait takes one.
class Deadline {
 public:
  static Deadline in(absl::Duration d) {
    return Deadline(monotonic_ns() + absl::ToInt64Nanoseconds(d));
  }
  int64_t remaining_ns() const { return at_ns_ - monotonic_ns(); }
  bool passed() const { return remaining_ns() <= 0; }
  // For poll(2): rounded up, never negative.
  int remaining_ms() const {
    const int64_t left = remaining_ns();
    return left <= 0 ? 0 : static_cast<int>((left + 999'999) / 1'000'000);
  }

 private:
  explicit Deadline(int64_t at_ns) : at_ns_(at_ns) {}
  int64_t at_ns_;
};

}  // namespace godwit

#endif  // GODWIT_BASE_CLOCK_H_
