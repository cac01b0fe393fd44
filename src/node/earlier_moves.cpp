#include "node/earlier_moves.h"

#include <grpcpp/client_context.h>

#include <algorithm>

#include "api/rpc_status.h"
#include "base/clock.h"
#include "base/status.h"

namespace godwit::node {
namespace {

// What is more was somebody else's.
constexpr int64_t kLeastFixedNs = 500'000;
constexpr int64_t kMostFixedNs = 30'000'000;
// Waits are much of the time of a smaller move.
constexpr uint64_t kTellingBytes = uint64_t{32} << 20;
constexpr absl::Duration kProbeTimeout = absl::Seconds(10);
constexpr int64_t kProbeNs = 100'000'000;
constexpr size_t kProbeBytes = size_t{1} << 20;  // gRPC takes 4 MiB

bool between(const api::MigrationStatistics& move, const std::string& a, const std::string& b) {
  return (move.source() == a && move.destination() == b) ||
         (move.source() == b && move.destination() == a);
}

absl::Status send_probe(Peer& peer, size_t bytes) {
  grpc::ClientContext context;
  set_timeout(context, kProbeTimeout);
  api::ProbeRequest request;
  request.set_data(std::string(bytes, '\0'));
  api::Empty reply;
  return api::from_grpc(peer.peer->Probe(&context, request, &reply));
}

}  // namespace

EarlierFigures earlier_figures(const std::vector<api::ServiceRecord>& records,
                               const std::string& service, const std::string& source,
                               const std::string& destination) {
  EarlierFigures figures;
  int64_t latest = 0;
  for (const api::ServiceRecord& record : records) {
    const api::MigrationStatistics& move = record.last_migration();
    if (record.name() == service && move.rounds() > 1) {
      figures.dirty_pages_per_s = static_cast<double>(move.dirty_pages_per_s());
      figures.dirty_known = true;
    }
    if (record.name() == service && move.freeze_ns() > 0 && move.fixed_downtime_ns() > 0 &&
        move.strategy() != "cold") {
      const int64_t pages_ns = move.predicted_downtime_ns() - move.fixed_downtime_ns();
      figures.fixed_downtime_ns =
          std::clamp(move.freeze_ns() - pages_ns, kLeastFixedNs, kMostFixedNs);
    }
    if (!between(move, source, destination) || move.bandwidth_limited() ||
        move.bytes_per_s() == 0 ||
        // Its rate is of pages as they are, however small they went.
        std::max(move.bytes_wire(), move.bytes_pages()) < kTellingBytes ||
        move.finished_unix_ns() < latest)
      continue;
    latest = move.finished_unix_ns();
    figures.link_bytes_per_s = static_cast<double>(move.bytes_per_s());
    figures.link_from = fmt::format("the last move of {}", record.name());
  }
  return figures;
}

absl::StatusOr<double> probe_link(Peer& peer) {
  // The first one may connect.
  GW_RETURN_IF_ERROR(send_probe(peer, kProbeBytes));
  const int64_t begin = monotonic_ns();
  uint64_t bytes = 0;
  do {
    GW_RETURN_IF_ERROR(send_probe(peer, kProbeBytes));
    bytes += kProbeBytes;
  } while (monotonic_ns() - begin < kProbeNs);
  return static_cast<double>(bytes) * 1e9 / static_cast<double>(monotonic_ns() - begin);
}

}  // namespace godwit::node
