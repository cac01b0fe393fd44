// Somebody who reads what a QEMU writes to a pipe when the daemon does not any more.
//
// QEMU 7.2 does not take back its background snapshot when the pipe breaks: what it has protected
// stays so, and the guest's CPU waits in userfaultfd(2) for ever where it writes next. So the pipe
// never breaks: a process outlives the daemon and reads it to its end.
#ifndef GODWIT_NODE_VM_DRAIN_H_
#define GODWIT_NODE_VM_DRAIN_H_

#include <utility>

#include "absl/status/statusor.h"
#include "base/unique_fd.h"

namespace godwit::node {

// Reads when this object goes, or its process, until nobody can write any more.
class VmDrain {
 public:
  VmDrain() = default;
  // `pipe`: the reading end, which stays the caller's.
  static absl::StatusOr<VmDrain> start(int pipe);
  void begin() { life_.reset(); }

 private:
  explicit VmDrain(UniqueFd life) : life_(std::move(life)) {}
  UniqueFd life_;
};

}  // namespace godwit::node

#endif  // GODWIT_NODE_VM_DRAIN_H_
