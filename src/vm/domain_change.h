// A domain's XML, made that of another one that is otherwise the same.
#ifndef GODWIT_VM_DOMAIN_CHANGE_H_
#define GODWIT_VM_DOMAIN_CHANGE_H_

#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace godwit::vm {

struct DomainChange {
  std::string name;
  std::string uuid;
  std::map<std::string, std::string> files;  // of disks: old path, new path
  bool unplugged = false;                    // its network cards have no link
};

// kInvalidArgument: it does not parse, or is not a domain.
absl::StatusOr<std::string> changed_domain(const std::string& xml, const DomainChange& change);

// Its <interface> elements, each as it is without a link, for virDomainUpdateDeviceFlags().
absl::StatusOr<std::vector<std::string>> unplugged_interfaces(const std::string& xml);

}  // namespace godwit::vm

#endif  // GODWIT_VM_DOMAIN_CHANGE_H_
