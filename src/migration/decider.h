// Which strategy, when to stop the rounds, and what then. Pure: figures in, a decision out; no
// clock is read.
//
// Precopy. The downtime limit is what must not be exceeded, not what is aimed at. After each round
// it is reckoned what a freeze would have to send now, and what after one more round: the pages
// that are dirtied while that round lasts. Rounds go on while the next one promises to take
//   - at least 0.2 ms off the freeze, and
//   - at least a fiftieth of its own duration off the freeze (1 ms for a round of 50 ms),
// and until that promise was broken three times in a row. Then it is switched over if the rest fits
// the limit. If not, rounds go on to their greatest number, and the move is given up; nor does a
// round begin that would break the limit of the total time.
//
// Hybrid. Two rounds, one for everything and one for what that left, and more while each halves
// what is left, at most four; the rest follows by post-copy.
//
// Auto. Rounds are begun unless only one pass holds the limit of the total time. Precopy, until its
// forecast breaks a limit twice in a row, or its promises were broken three times; then hybrid,
// where post-copy is possible. Once left, precopy is not taken up again: its forecasts were wrong.
#ifndef GODWIT_MIGRATION_DECIDER_H_
#define GODWIT_MIGRATION_DECIDER_H_

#include <cstdint>
#include <string>
#include <vector>

#include "migration/forecast.h"
#include "migration/workload.h"

namespace godwit::migration {

enum class Verdict {
  kInvalid,
  kAnotherRound,
  kSwitchOver,  // freeze, send what is left, go on there
  kPostCopy,    // freeze and go on there now; what is left follows
  kGiveUp,      // the dirty rate is too high for the limits: roll back, say why
};

struct Decision {
  Verdict verdict = Verdict::kInvalid;
  std::string reason;
  uint64_t expected_pages = 0;  // of the next epoch
  int64_t expected_downtime_ns = 0;
  double bytes_per_s = 0;
  double dirty_pages_per_s = 0;
  Strategy strategy = STRATEGY_INVALID;  // that is followed from here on
  std::string chosen_because;
  // Of the CPU time that it used unlimited, what it may have from here on; 0: all of it.
  uint32_t throttle_percent = 0;
  // By every strategy that is possible from here on; none before anything is known.
  std::vector<Forecast> forecasts;
};

// Of the strategy that was chosen, with the figures at that time: what its outcome can be held
// against.
struct Prediction {
  int64_t downtime_ns = 0;  // by the last decision
  int64_t total_ns = 0;     // by the first one that had measured figures, or chose anew
};

class Decider {
 public:
  explicit Decider(DeciderLimits limits);
  // Once, before the first round. `elapsed_ns`: since the move began.
  Decision before(const Estimate& estimate, int64_t elapsed_ns);
  // After each round, in order.
  Decision after_round(const RoundFigures& round);

  Prediction prediction() const { return prediction_; }

 private:
  // Of sending, in a freeze or in a round, the pages that a time leaves.
  struct Rest {
    double pages = 0;
    double seconds = 0;
  };
  Rest rest_after(double round_seconds) const;
  double overhead() const;
  void learn(const RoundFigures& round);
  void look_at(const RoundFigures& round);
  void choose_before(const Decision& decision);
  void reconsider(const Decision& decision);
  void turn_to(Strategy strategy, std::string because);
  void precopy(const Rest& now, Decision& decision);
  void hybrid(const Rest& now, Decision& decision);
  bool throttle(Decision& decision, const std::string& why);
  double next_round(const Rest& now) const;
  bool breaks_total(double more_seconds) const;
  std::string does_not_converge(const Decision& decision) const;
  // `anew`: the total time is predicted from here.
  void finish(Decision& decision, bool anew);

  DeciderLimits limits_;
  Strategy strategy_;  // that is followed
  std::string because_;
  Standing standing_;
  Prediction prediction_;
  int64_t previous_ns_ = 0;  // duration of the round before
  double bytes_per_s_ = 0;
  double least_overhead_s_ = 0;  // of a small round's time, beside its lead and its bytes
  uint32_t small_rounds_ = 0;
  uint64_t previous_expected_ = 0;
  uint32_t broken_promises_ = 0;
  uint32_t broken_limits_ = 0;  // by precopy's forecasts, in a row
  uint32_t throttle_percent_ = 0;
  uint32_t throttled_in_round_ = 0;
};

// What a move is asked to keep to, as the mover is told.
DeciderLimits limits_of(const MoverStart& start);
// For the user: what was decided last.
void describe(const Decision& decision, const Prediction& prediction, Statistics& statistics);

}  // namespace godwit::migration

#endif  // GODWIT_MIGRATION_DECIDER_H_
