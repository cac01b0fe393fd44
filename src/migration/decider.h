// When to stop the rounds. Pure: figures in, a decision out.
#ifndef GODWIT_MIGRATION_DECIDER_H_
#define GODWIT_MIGRATION_DECIDER_H_

#include <cstdint>
#include <string>
#include <vector>

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
  DeciderLimits limits_;
  std::vector<RoundFigures> rounds_;
  double bytes_per_s_ = 0;
};

}  // namespace godwit::migration

#endif  // GODWIT_MIGRATION_DECIDER_H_
