// What a move will cost by each strategy. Pure: figures in, forecasts out.
#ifndef GODWIT_MIGRATION_FORECAST_H_
#define GODWIT_MIGRATION_FORECAST_H_

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "migration/mover.pb.h"
#include "migration/workload.h"

namespace godwit::migration {

// Writes of a program, as far as a scan can see them: pages that are written at least once in a
// time. Random writes into a set of N pages at r a second leave N*(1-exp(-r*t/N)) of them after t
// seconds; a set of unknown size is taken to be without end, so that they grow with the time.
class WriteModel {
 public:
  WriteModel() = default;
  // A window of `seconds` caught `pages`. `set_pages`: size of the set that is written, 0: unknown.
  WriteModel(double pages, double seconds, double set_pages);
  static WriteModel of_rate(double pages_per_s, double set_pages);
  double pages_after(double seconds) const;
  double pages_per_s() const { return pages_per_s_; }  // over a short time
  double set_pages() const { return set_pages_; }

 private:
  double pages_per_s_ = 0;
  double set_pages_ = 0;
};

// N by capture and recapture (pages/working_set.h) with the last two windows; 0: not known.
double set_pages_of(const RoundFigures& round);

struct Forecast {
  Strategy strategy = STRATEGY_INVALID;
  int64_t downtime_ns = 0;
  int64_t total_ns = 0;  // of the move, from its beginning to the last page
  // With post-copy: how long it runs with pages that are not there yet.
  int64_t on_faults_ns = 0;
  bool holds_downtime = false;
  bool holds_total = false;
  std::string reason;  // what stands against it; empty: nothing
  bool feasible() const { return holds_downtime && holds_total; }
};

struct DeciderLimits {
  Strategy strategy = STRATEGY_PRECOPY;
  int64_t max_downtime_ns = 50'000'000;
  int64_t max_total_ns = 0;  // 0: none
  uint32_t max_rounds = 30;
  // Both ends can do it. Without it STRATEGY_AUTO never chooses post-copy or hybrid.
  bool post_copy_possible = false;
  // Where nothing else makes rounds converge, the workload's CPU time may be limited.
  bool throttle = false;
  // What a freeze costs without a single page.
  int64_t fixed_downtime_ns = 1'000'000;
  uint64_t bandwidth_bytes_per_s = 0;  // of the rounds; 0: no limit
  // As measured by an earlier move; 0: not known.
  double link_bytes_per_s = 0;
  double dirty_pages_per_s = 0;
};

// Of a round that sends `bytes`: what it takes besides them.
struct RoundCost {
  double lead_s = 0;
  double overhead_s = 0;
};

struct Standing {
  double elapsed_s = 0;         // since the move began
  double round_s = 0;           // of the last round, or of the first one if none has been
  uint32_t rounds = 0;          // so far
  double pages_per_s = 0;       // that rounds send
  double last_pages_per_s = 0;  // that the freeze sends, and what follows it
  RoundCost cost;
  WriteModel writes;
};

// Whether a round that takes `round_s` and leaves `then_s` of sending instead of `now_s` is worth
// it.
bool worth_a_round(double now_s, double then_s, double round_s);

// From after a round on.
Forecast forecast_precopy(const Standing& now, const DeciderLimits& limits);
// What is left now, by post-copy: hybrid after rounds.
Forecast forecast_post_copy(Strategy strategy, double pages_left, const Standing& now,
                            const DeciderLimits& limits);
// Without rounds.
Forecast forecast_cold(double pages, const Standing& now, const DeciderLimits& limits);

// The one to prefer: first what holds the limit of the downtime, then what holds that of the total
// time, then the cheapest. Running on faults counts as a tenth of standing still, moving as a
// twentieth. From post-copy there is no way back: rounds come first as long as they hold the
// limits.
const Forecast* best_of(const std::vector<Forecast>& forecasts);

// "precopy" and so on, as users write it; "" for none.
std::string strategy_name(Strategy strategy);
// STRATEGY_INVALID: there is none of that name. "" is auto.
Strategy strategy_of(std::string_view name);

}  // namespace godwit::migration

#endif  // GODWIT_MIGRATION_FORECAST_H_
