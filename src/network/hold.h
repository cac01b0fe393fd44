// Where frames wait while a capsule cannot take them: a TAP (tun(4)) into which the gate redirects
// them. It has no offloads, so the kernel segments and checksums what it puts in: each held frame
// is complete and fits the wire.
//
// The device is persistent, the queue is not: it belongs to the descriptor, and goes with the last
// copy of it. So whoever must survive the mover keeps a copy of fd() (SCM_RIGHTS or pidfd_getfd)
// and goes on with Hold::adopt().
#ifndef GODWIT_NETWORK_HOLD_H_
#define GODWIT_NETWORK_HOLD_H_

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/unique_fd.h"
#include "network/frames.h"
#include "network/netlink.h"

namespace godwit::network {

// Appends all frames that wait now in the hold of which `fd` is a copy; never blocks. Returns how
// many.
absl::StatusOr<size_t> drain_hold(int fd, Frames& out);

class Hold {
 public:
  // Makes the TAP `name`, or takes the one that a dead process left (with an empty queue then).
  // It is up and takes frames when this returns.
  static absl::StatusOr<Hold> create(Netlink& netlink, const std::string& name, uint32_t mtu);
  // Goes on with a copy of the descriptor of a Hold, its frames included.
  static absl::StatusOr<Hold> adopt(Netlink& netlink, const std::string& name, UniqueFd fd);

  int fd() const { return fd_.get(); }
  int ifindex() const { return ifindex_; }
  absl::StatusOr<size_t> drain(Frames& out) const { return drain_hold(fd_.get(), out); }

 private:
  Hold(UniqueFd fd, int ifindex) : fd_(std::move(fd)), ifindex_(ifindex) {}
  UniqueFd fd_;
  int ifindex_;
};

}  // namespace godwit::network

#endif  // GODWIT_NETWORK_HOLD_H_
