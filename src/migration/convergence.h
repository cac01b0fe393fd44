// Whether rounds that another program makes (a hypervisor) come to an end, and what else is there
// to do. Pure: figures in, a verdict out. The hypervisor itself switches over when the rest fits
// into its limit of the downtime.
//
// A pass is idle if it leaves more than nine tenths of what the one before left, or if more than
// four fifths of what the link carries is written meanwhile. After two idle passes in a row: a
// longer downtime, if the hard limit has room for all that is left; then post-copy; without it, two
// passes later, the end.
#ifndef GODWIT_MIGRATION_CONVERGENCE_H_
#define GODWIT_MIGRATION_CONVERGENCE_H_

#include <cstdint>
#include <string>

#include "migration/mover.pb.h"

namespace godwit::migration {

struct PassFigures {
  uint64_t pass = 0;  // from 1 on
  uint64_t bytes_left = 0;
  uint64_t bytes_per_s = 0;
  uint64_t dirty_bytes_per_s = 0;  // known from the second pass on
};

struct ConvergenceLimits {
  Strategy strategy = STRATEGY_PRECOPY;
  bool post_copy_possible = false;
  int64_t downtime_ns = 50'000'000;       // that it begins with
  int64_t most_downtime_ns = 50'000'000;  // the hard limit
};

enum class PassVerdict { kInvalid, kGoOn, kRaiseDowntime, kPostCopy, kGiveUp };

class Convergence {
 public:
  explicit Convergence(ConvergenceLimits limits) : limits_(limits) {}
  // At any time; a pass counts once. After kRaiseDowntime the hard limit is taken to be in force,
  // after kPostCopy nothing is asked any more.
  PassVerdict look(const PassFigures& now);
  // Of the last verdict but kGoOn.
  const std::string& reason() const { return reason_; }

 private:
  PassVerdict decide(const PassFigures& now);

  ConvergenceLimits limits_;
  std::string reason_;
  uint64_t last_pass_ = 0;
  uint64_t left_before_ = 0;
  int idle_ = 0;
};

}  // namespace godwit::migration

#endif  // GODWIT_MIGRATION_CONVERGENCE_H_
