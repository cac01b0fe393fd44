// What becomes of a service's own addresses in its clone, which lives beside it.
#ifndef GODWIT_RESOURCE_CLONE_ADDRESSES_H_
#define GODWIT_RESOURCE_CLONE_ADDRESSES_H_

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"

namespace godwit::resource {

class CloneAddresses {
 public:
  // As text; both of one family.
  absl::Status add(const std::string& original, const std::string& clone);
  bool empty() const { return changes_.empty(); }

  // Addresses are 4 or 16 bytes in network order, IPv4 also as ::ffff:a.b.c.d.
  // The clone's, where it is one of the original's.
  std::string translated(std::string_view ip) const;
  // Inside of the clone: its own, or the loopback's.
  bool is_inside(std::string_view ip) const;

 private:
  struct Change {
    std::string from;
    std::string to;
  };
  std::vector<Change> changes_;
};

}  // namespace godwit::resource

#endif  // GODWIT_RESOURCE_CLONE_ADDRESSES_H_
