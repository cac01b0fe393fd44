#include "node/neighbours.h"

#include <linux/neighbour.h>

#include "base/status.h"
#include "node/node_state.pb.h"

namespace godwit::node {
namespace {

// A cache, and a kernel's at most (gc_thresh3).
constexpr int kMostNeighbours = 1024;

}  // namespace

absl::StatusOr<std::string> neighbours_of(const network::Port& port) {
  GW_ASSIGN_OR_RETURN(const std::vector<network::Neighbour> all, port.neighbours());
  NeighbourTable table;
  for (const network::Neighbour& each : all) {
    const bool known =
        (each.state & (NUD_REACHABLE | NUD_STALE | NUD_DELAY | NUD_PROBE | NUD_PERMANENT)) != 0;
    if (!known || each.mac.is_zero() || table.entries_size() == kMostNeighbours) continue;
    NeighbourTable::Entry* entry = table.add_entries();
    entry->set_ip(each.ip.text());
    entry->set_mac(each.mac.text());
    entry->set_state((each.state & NUD_PERMANENT) != 0 ? NUD_PERMANENT : NUD_STALE);
  }
  return table.SerializeAsString();
}

absl::Status give_neighbours(network::Port& port, const std::string& state) {
  NeighbourTable table;
  if (!table.ParseFromString(state) || table.entries_size() > kMostNeighbours)
    return absl::DataLossError("the table of neighbours is not valid");
  std::vector<network::Neighbour> all;
  for (const NeighbourTable::Entry& entry : table.entries()) {
    network::Neighbour& neighbour = all.emplace_back();
    GW_ASSIGN_OR_RETURN(neighbour.ip, network::parse_ip(entry.ip()));
    GW_ASSIGN_OR_RETURN(neighbour.mac, network::parse_mac(entry.mac()));
    neighbour.state = entry.state() == NUD_PERMANENT ? NUD_PERMANENT : NUD_STALE;
  }
  return port.set_neighbours(all);
}

}  // namespace godwit::node
