// What a mover says of a move, for the user and the record.
#include "node/source_migration.h"

namespace godwit::node {

const char* outcome_name(migration::Outcome outcome) {
  switch (outcome) {
    case migration::OUTCOME_MOVED:
      return "moved";
    case migration::OUTCOME_ROLLED_BACK:
      return "rolled_back";
    case migration::OUTCOME_REFUSED:
      return "refused";
    case migration::OUTCOME_SAVED:
      return "saved";
    default:
      return "unknown";
  }
}

namespace {

api::StrategyForecast forecast_of(const migration::StrategyForecast& from) {
  api::StrategyForecast to;
  to.set_strategy(from.strategy());
  to.set_downtime_ns(from.downtime_ns());
  to.set_total_ns(from.total_ns());
  to.set_feasible(from.feasible());
  to.set_reason(from.reason());
  return to;
}

}  // namespace

api::MigrationStatistics statistics_of(const migration::Statistics& from) {
  api::MigrationStatistics to;
  to.set_strategy(from.strategy());
  to.set_rounds(from.rounds());
  to.set_freeze_ns(from.freeze_ns());
  to.set_total_ns(from.total_ns());
  to.set_setup_ns(from.setup_ns());
  to.set_first_stop_ns(from.first_stop_ns());
  to.set_pages_left_behind(from.pages_left_behind());
  to.set_page_faults(from.page_faults());
  to.set_post_copy_ns(from.post_copy_ns());
  to.set_bytes_wire(from.bytes_wire());
  to.set_bytes_pages(from.bytes_pages());
  to.set_bytes_pages_wire(from.bytes_pages_wire());
  to.set_compression(from.compression());
  to.set_pages_sent(from.pages_sent());
  to.set_pages_zero(from.pages_zero());
  to.set_source_cpu_ns(from.cpu_ns());
  to.set_processes(from.processes());
  to.set_threads(from.threads());
  to.set_descriptors(from.descriptors());
  to.set_connections(from.connections());
  to.set_frames_replayed(from.frames_replayed());
  to.set_chosen_because(from.chosen_because());
  to.set_predicted_downtime_ns(from.predicted_downtime_ns());
  to.set_predicted_total_ns(from.predicted_total_ns());
  to.set_bytes_per_s(from.bytes_per_s());
  to.set_dirty_pages_per_s(from.dirty_pages_per_s());
  for (const migration::StrategyForecast& each : from.forecasts())
    *to.add_forecasts() = forecast_of(each);
  to.set_pages_cold(from.pages_cold());
  to.set_pages_warm(from.pages_warm());
  to.set_pages_hot(from.pages_hot());
  to.set_memory_bytes(from.memory_bytes());
  to.set_bandwidth_limited(from.bandwidth_limited());
  to.set_throttled_ns(from.throttled_ns());
  to.set_throttle_percent(from.throttle_percent());
  to.set_fixed_downtime_ns(from.fixed_downtime_ns());
  for (const migration::Span& each : from.spans()) {
    api::MigrationSpan* span = to.add_spans();
    span->set_name(each.name());
    span->set_ns(each.ns());
  }
  return to;
}

}  // namespace godwit::node
