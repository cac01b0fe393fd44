// The precheck alone, on any process of this machine and those below it: what it holds, and what of
// that could not move. Reads only; the program runs on.
#ifndef GODWIT_NODE_PROCESS_CHECK_H_
#define GODWIT_NODE_PROCESS_CHECK_H_

#include <map>
#include <string>

#include "absl/status/statusor.h"
#include "api/godwit.pb.h"
#include "base/ids.h"

namespace godwit::node {

struct ProcessCheck {
  // outcome: "movable" or "refused"; statistics as far as counting goes.
  api::MigrateResult result;
  std::map<std::string, uint32_t> descriptions;  // by the name of their kind
};

// Its standard streams count as those of a service, which Godwit connects. kNotFound: no such
// process. kPermissionDenied without the right to look at it.
absl::StatusOr<ProcessCheck> check_process(HostPid root);

}  // namespace godwit::node

#endif  // GODWIT_NODE_PROCESS_CHECK_H_
