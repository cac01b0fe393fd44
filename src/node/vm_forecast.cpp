#include "node/vm_forecast.h"

#include "base/status.h"
#include "migration/decider.h"
#include "node/earlier_moves.h"
#include "node/node.h"
#include "node/source_migration.h"

namespace godwit::node {
namespace {

constexpr uint64_t kPageSize = 4096;
// libvirt starts a QEMU at the destination; and the state of its devices, of an idle guest.
constexpr int64_t kUsualSetupNs = 1'000'000'000;
constexpr int64_t kUsualFixedNs = 30'000'000;

}  // namespace

void predict_vm(Node& node, vm::Hypervisor& hypervisor, const vm::DomainSpec& domain,
                const api::MigrateRequest& request, migration::Strategy strategy, Peer& peer,
                api::MigrateResult& result) {
  migration::MoverStart start;
  start.set_strategy(strategy);
  start.set_max_downtime_ns(request.max_downtime_ns());
  start.set_max_total_ns(request.max_total_ns());
  start.set_fixed_downtime_ns(kUsualFixedNs);
  const bool post_copy = hypervisor.post_copy_possible().ok();
  start.set_post_copy_possible(post_copy);
  node.set_bandwidth(start, request.bandwidth_bytes_per_s());

  EarlierFigures link;
  const auto services = node.records().services();
  std::vector<api::ServiceRecord> records;
  if (services.ok())
    for (const VersionedService& each : *services) records.push_back(each.record);
  link = earlier_figures(records, domain.name, node.config().name, peer.name);
  std::string based_on = fmt::format("the link's rate in {}", link.link_from);
  if (link.link_bytes_per_s == 0) {
    const auto probed = probe_link(peer);
    if (probed.ok()) link.link_bytes_per_s = *probed;
    based_on = probed.ok() ? "a short probe of the link over the nodes' API, which is slower than "
                             "a move"
                           : "nothing: the link's rate is not known";
  }
  start.set_link_bytes_per_s(static_cast<uint64_t>(link.link_bytes_per_s));

  uint64_t resident = domain.memory_bytes;
  const auto memory = hypervisor.memory(domain.uuid);
  if (memory.ok() && memory->resident_bytes > 0)
    resident = std::min(resident, memory->resident_bytes);
  const auto writes = hypervisor.measure_writes(domain.uuid);
  if (writes.ok()) start.set_dirty_pages_per_s(*writes / kPageSize);
  based_on += writes.ok() ? "; samples of what it wrote in a second"
                          : fmt::format("; how fast it writes is not known ({})",
                                        message_of(writes.status()));
  result.set_based_on(based_on);

  migration::Decider decider(migration::limits_of(start));
  const migration::Decision decision = decider.before({resident / kPageSize, 0}, kUsualSetupNs);
  migration::Statistics decided;
  migration::describe(decision, decider.prediction(), decided);
  const api::MigrationStatistics shown = statistics_of(decided);
  api::MigrationStatistics& statistics = *result.mutable_statistics();
  if (strategy == migration::STRATEGY_AUTO) {
    statistics.set_strategy("precopy");
    statistics.set_chosen_because(shown.chosen_because());
    // What it writes was measured just now.
    for (const api::StrategyForecast& each : shown.forecasts()) {
      if (each.strategy() != "precopy" || each.feasible() || !post_copy) continue;
      statistics.set_strategy("hybrid");
      statistics.set_chosen_because(fmt::format("by rounds alone: {}", each.reason()));
    }
  }
  statistics.set_predicted_downtime_ns(shown.predicted_downtime_ns());
  statistics.set_predicted_total_ns(shown.predicted_total_ns());
  statistics.set_bytes_per_s(shown.bytes_per_s());
  statistics.set_dirty_pages_per_s(shown.dirty_pages_per_s());
  statistics.set_memory_bytes(resident);
  for (const api::StrategyForecast& each : shown.forecasts())
    if (post_copy || each.strategy() == "precopy" || each.strategy() == "cold")
      *statistics.add_forecasts() = each;
}

}  // namespace godwit::node
