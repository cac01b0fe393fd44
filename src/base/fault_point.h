// Named places where a test can make this process die, hang, wait or fail, to prove what follows.
//
//   GODWIT_FAULT="replica.apply_pages=kill"   armed from the start on, for every hit
//   GODWIT_FAULT="@/path"                     armed while that file has such a line in it, for one
//                                             hit: the process that hits removes the file first
//
// kill: SIGKILL to itself; error: the function fails; hang: for ever; wait: until /path.go is there
// (@ only), at most 30 s, so that a test can do something to another process at this very step.
//
// Movers inherit their daemon's environment, and each name is hit on one side of a migration only
// (source.*, pages.send, pages.scan, node.marked, node.before_mover and node.taking_down at the
// source; store.* at the store's keeper when it is not the destination; node.recover in any daemon
// that starts; all others at the destination): so one file for a whole lab arms one side. Costs one
// load and a branch when unset.
#ifndef GODWIT_BASE_FAULT_POINT_H_
#define GODWIT_BASE_FAULT_POINT_H_

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"

namespace godwit {

extern bool fault_points_armed;

// Slow path; OK unless the armed action is "error".
absl::Status hit_fault_point(std::string_view name);

}  // namespace godwit

// In a function that returns absl::Status or StatusOr.
#define FAULT_POINT(name)                                      \
  do {                                                         \
    if (::godwit::fault_points_armed) [[unlikely]] {           \
      absl::Status gw_fault = ::godwit::hit_fault_point(name); \
      if (!gw_fault.ok()) return gw_fault;                     \
    }                                                          \
  } while (false)

#endif  // GODWIT_BASE_FAULT_POINT_H_
