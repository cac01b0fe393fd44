// Sockets that send whole IP packets from a network namespace, one for each family.
#ifndef GODWIT_RESOURCE_RAW_SOCKETS_H_
#define GODWIT_RESOURCE_RAW_SOCKETS_H_

#include <map>
#include <mutex>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/unique_fd.h"

namespace godwit::resource {

class RawSockets {
 public:
  // For RestoreContext::raw_socket(). `inside` runs an action in the namespace that they are made
  // in.
  absl::StatusOr<int> get(
      int family, absl::FunctionRef<absl::Status(absl::FunctionRef<absl::Status()>)> inside);

 private:
  std::mutex mutex_;
  std::map<int, UniqueFd> sockets_;
};

}  // namespace godwit::resource

#endif  // GODWIT_RESOURCE_RAW_SOCKETS_H_
