// Tells which sockets of a network namespace have had an option set since the watch began, so that
// a freeze need not read the options of those that have not: fifty calls for each.
//
// A BPF program at the root of the cgroup v2 hierarchy (BPF_CGROUP_SETSOCKOPT) sees setsockopt(2)
// and io_uring's, for every socket whatever cgroup it was made in: the hook goes by the socket's
// cgroup at its creation, and a socket that a mover rebuilt is of the mover's, which may be gone.
// Another one (BPF_CGROUP_SYSCTL) counts writes of sysctls, which some options follow while nobody
// has set them. Both only count, and go with this object, also when its process is killed.
//
// What it does not see, so that whoever relies on it reads it himself: fcntl(2), ioctl(2),
// fchmod(2), and what the kernel changes. A call that was under way when the watch began: read some
// time after. Calls by the 32-bit entry (int 0x80), which the kernel hides from the hook; 32-bit
// programs are not moved.
#ifndef GODWIT_NETWORK_OPTION_WATCH_H_
#define GODWIT_NETWORK_OPTION_WATCH_H_

#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "base/unique_fd.h"

namespace godwit::network {

class OptionWatch {
 public:
  // Of the namespace with this SO_NETNS_COOKIE. An error where the kernel has no such hooks or no
  // cgroup v2 hierarchy is mounted.
  static absl::StatusOr<std::unique_ptr<OptionWatch>> begin(uint64_t netns_cookie);
  ~OptionWatch();
  OptionWatch(const OptionWatch&) = delete;
  OptionWatch& operator=(const OptionWatch&) = delete;

  // SO_NETNS_COOKIE of a socket made in the namespace of the calling thread.
  static absl::StatusOr<uint64_t> cookie_here();
  uint64_t netns_cookie() const { return cookie_; }

  // False only if no option of the connection between these ports was set since begin(), nor of any
  // socket while it had no peer (it may have become this one), nor any sysctl written. Ports in
  // host byte order. Sockets may share a counter: a true may be of another one.
  bool changed(uint16_t local_port, uint16_t remote_port) const;

 private:
  struct Counts;
  explicit OptionWatch(uint64_t cookie) : cookie_(cookie) {}
  uint64_t cookie_;
  Counts* counts_ = nullptr;
  UniqueFd setsockopt_link_;
  UniqueFd sysctl_link_;
};

}  // namespace godwit::network

#endif  // GODWIT_NETWORK_OPTION_WATCH_H_
