// What earlier moves have measured and a new one can go by.
#ifndef GODWIT_NODE_EARLIER_MOVES_H_
#define GODWIT_NODE_EARLIER_MOVES_H_

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "api/records.pb.h"
#include "node/peers.h"

namespace godwit::node {

struct EarlierFigures {
  double link_bytes_per_s = 0;  // 0: not known
  std::string link_from;        // "the last move of cache"
  double dirty_pages_per_s = 0;
  bool dirty_known = false;
  // Of a freeze, beside the pages in it: by the service's own last move, else what one usually has.
  int64_t fixed_downtime_ns = 2'500'000;
};

// `records`: all services. The link by the latest move of any of them between the two nodes, either
// way, that sent enough to tell and was not limited; the dirty rate by the service's own last move.
EarlierFigures earlier_figures(const std::vector<api::ServiceRecord>& records,
                               const std::string& service, const std::string& source,
                               const std::string& destination);

// Bytes a second to a node over its API, in some 100 ms: less than a move's, which has no TLS.
absl::StatusOr<double> probe_link(Peer& peer);

}  // namespace godwit::node

#endif  // GODWIT_NODE_EARLIER_MOVES_H_
