// When to stop the rounds. Pure: figures in, a decision out.
//
// The downtime limit is what must not be exceeded, not what is aimed at. After each round it is
// reckoned what a freeze would have to send now, and what after one more round: the pages that are
// dirtied while that round lasts. Rounds go on while the next one promises to take
//   - at least 0.2 ms off the freeze, and
//   - at least a fiftieth of its own duration off the freeze (1 ms for a round of 50 ms),
// and until that promise was broken three times in a row. Then it is switched over if the rest fits
// the limit. If not, rounds go on to their greatest number, and the move is given up.
#ifndef GODWIT_MIGRATION_DECIDER_H_
#define GODWIT_MIGRATION_DECIDER_H_

#include <cstdint>
#include <string>

#include "migration/workload.h"

namespace godwit::migration {

enum class Verdict {
  kInvalid,
  kAnotherRound,
  kSwitchOver,
  kGiveUp,  // the dirty rate is too high for the limits: roll back, say why
};

struct Decision {
  Verdict verdict = Verdict::kInvalid;
  std::string reason;
  uint64_t expected_pages = 0;  // of the next epoch
  int64_t expected_downtime_ns = 0;
  double bytes_per_s = 0;
  double dirty_pages_per_s = 0;
};

struct DeciderLimits {
  int64_t max_downtime_ns = 50'000'000;
  uint32_t max_rounds = 30;
  // What a freeze costs without a single page.
  int64_t fixed_downtime_ns = 1'000'000;
};

class Decider {
 public:
  explicit Decider(DeciderLimits limits) : limits_(limits) {}
  // After each round, in order.
  Decision after_round(const RoundFigures& round);

 private:
  struct Forecast {
    double pages = 0;
    double seconds = 0;  // of sending them in a freeze
  };
  Forecast rest_after(double round_seconds, double dirty_pages_per_s) const;
  double overhead() const;
  void learn(const RoundFigures& round);

  DeciderLimits limits_;
  uint32_t rounds_ = 0;
  int64_t previous_ns_ = 0;  // duration of the round before
  double bytes_per_s_ = 0;
  double least_overhead_s_ = 0;  // of a small round's time, beside its lead and its bytes
  uint32_t small_rounds_ = 0;
  uint64_t previous_expected_ = 0;
  uint32_t broken_promises_ = 0;
};

}  // namespace godwit::migration

#endif  // GODWIT_MIGRATION_DECIDER_H_
