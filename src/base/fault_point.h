// Named places where a test can make this process die, hang or fail, to prove what follows.
// GODWIT_FAULT="replica.apply_pages=kill" (kill | error | hang), read once. Costs one load and a
// branch when unset.
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
#define FAULT_POINT(name)                                                    \
  do {                                                                       \
    if (::godwit::fault_points_armed) [[unlikely]] {                         \
      absl::Status gw_fault = ::godwit::hit_fault_point(name);               \
      if (!gw_fault.ok()) return gw_fault;                                   \
    }                                                                        \
  } while (false)

#endif  // GODWIT_BASE_FAULT_POINT_H_
