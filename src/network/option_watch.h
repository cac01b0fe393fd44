// Tells which TCP sockets of a network namespace have had an option set since the watch began, so
// that a freeze need not read the options of those that have not: fifty calls for each.
//
// A BPF program at the root of the cgroup v2 hierarchy (BPF_CGROUP_SETSOCKOPT) sees setsockopt(2)
// and io_uring's, for every socket whatever cgroup it was made in: the hook goes by the socket's
// cgroup at its creation, and a socket that a mover rebuilt is of the mover's, which may be gone.
// It only counts, and goes with this object, also when its process is killed. Some options follow a
// sysctl while nobody has set them: a socket that nobody uses shows them as they are.
//
// What it does not see, so that whoever relies on it reads it himself: fcntl(2), ioctl(2),
// fchmod(2), and what the kernel changes. A call that was under way when the watch began: read some
// time after. Calls by the 32-bit entry (int 0x80), which the kernel hides from the hook; 32-bit
// programs are not moved.
#ifndef GODWIT_NETWORK_OPTION_WATCH_H_
#define GODWIT_NETWORK_OPTION_WATCH_H_

#include <array>
#include <cstdint>
#include <memory>
#include <utility>

#include "absl/status/statusor.h"
#include "base/unique_fd.h"

namespace godwit::network {

class OptionWatch {
 public:
  // Of the namespace of `socket`, a fresh one. An error where the kernel has no such hook or no
  // cgroup v2 hierarchy is mounted.
  static absl::StatusOr<std::unique_ptr<OptionWatch>> begin(UniqueFd socket);
  // For begin(): made in the namespace of the calling thread.
  static absl::StatusOr<UniqueFd> fresh_socket();
  ~OptionWatch();
  OptionWatch(const OptionWatch&) = delete;
  OptionWatch& operator=(const OptionWatch&) = delete;

  uint64_t netns_cookie() const { return cookie_; }

  // False only if no option of the connection between these ports was set since begin(), nor of any
  // TCP socket while it had no peer: it may have become this one. Ports in host byte order. Sockets
  // may share a counter: a true may be of another one.
  bool changed(uint16_t local_port, uint16_t remote_port) const;

  // Options that were never set may have other values than at begin().
  bool defaults_changed() const;

 private:
  struct Counts;
  // TCP_KEEPIDLE, TCP_KEEPINTVL, TCP_KEEPCNT, TCP_LINGER2, IP_TTL.
  using Defaults = std::array<int, 5>;
  explicit OptionWatch(UniqueFd socket) : socket_(std::move(socket)) {}
  absl::StatusOr<Defaults> read_defaults() const;

  UniqueFd socket_;
  uint64_t cookie_ = 0;
  Defaults defaults_{};
  Counts* counts_ = nullptr;
  UniqueFd link_;
};

}  // namespace godwit::network

#endif  // GODWIT_NETWORK_OPTION_WATCH_H_
