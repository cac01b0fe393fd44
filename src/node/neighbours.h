// A service's neighbours move with it. Else the first answer to each of them would wait for an ARP
// exchange, in the gap that clients see, and for a second where one of its two frames is lost or
// late (neigh/*/retrans_time_ms).
#ifndef GODWIT_NODE_NEIGHBOURS_H_
#define GODWIT_NODE_NEIGHBOURS_H_

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "network/port.h"

namespace godwit::node {

// State: NeighbourTable. Between movers only: another network has others.
inline constexpr char kNeighbourSection[] = "neighbours";

absl::StatusOr<std::string> neighbours_of(const network::Port& port);
// Behind a closed gate. kDataLoss: not what neighbours_of() makes.
absl::Status give_neighbours(network::Port& port, const std::string& state);

}  // namespace godwit::node

#endif  // GODWIT_NODE_NEIGHBOURS_H_
