#include "network/hold.h"

#include <linux/if.h>
#include <linux/if_tun.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <array>
#include <cstring>

#include "base/status.h"
#include "kernel/syscalls.h"
#include "network/netns.h"

namespace godwit::network {
namespace {

// The queue is a ring of that many frames: a freeze of 10 ms at 1,000,000 frames per second.
constexpr uint32_t kQueue = 10000;
// Without offloads no frame is longer than the MTU, which Ethernet devices limit to 65535.
constexpr size_t kLongestFrame = 65536 + 64;

absl::StatusOr<UniqueFd> attach(const std::string& name) {
  GW_ASSIGN_OR_RETURN(UniqueFd fd, kernel::open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC));
  ifreq request{};
  std::strncpy(request.ifr_name, name.c_str(), IFNAMSIZ - 1);
  request.ifr_flags = IFF_TAP | IFF_NO_PI;
  if (::ioctl(fd.get(), TUNSETIFF, &request) != 0) {
    return errno_status(errno, fmt::format("ioctl(TUNSETIFF, {})", name));
  }
  if (::ioctl(fd.get(), TUNSETPERSIST, 1) != 0) {
    return errno_status(errno, fmt::format("ioctl(TUNSETPERSIST, {})", name));
  }
  return fd;
}

}  // namespace

absl::StatusOr<Hold> Hold::create(Netlink& netlink, const std::string& name, uint32_t mtu) {
  GW_ASSIGN_OR_RETURN(UniqueFd fd, attach(name));
  GW_ASSIGN_OR_RETURN(const int ifindex, netlink.ifindex_of(name));
  GW_RETURN_IF_ERROR(
      write_net_sysctl_if_present(fmt::format("ipv6/conf/{}/disable_ipv6", name), "1"));
  LinkChange change;
  change.up = false;
  change.mtu = mtu;
  change.txqueuelen = kQueue;
  GW_RETURN_IF_ERROR(netlink.change_link(ifindex, change));
  // Up after the descriptor is attached: the carrier is on then, and the queue starts within this
  // call instead of later in the kernel's linkwatch.
  LinkChange up;
  up.up = true;
  GW_RETURN_IF_ERROR(netlink.change_link(ifindex, up));
  return Hold(std::move(fd), ifindex);
}

absl::StatusOr<Hold> Hold::adopt(Netlink& netlink, const std::string& name, UniqueFd fd) {
  ifreq request{};
  if (::ioctl(fd.get(), TUNGETIFF, &request) != 0) {
    return errno_status(errno, fmt::format("ioctl(TUNGETIFF, {})", name));
  }
  if (name != request.ifr_name) {
    return make_error(absl::StatusCode::kInvalidArgument, "the hold given is {}, not {}",
                      request.ifr_name, name);
  }
  GW_ASSIGN_OR_RETURN(const int ifindex, netlink.ifindex_of(name));
  return Hold(std::move(fd), ifindex);
}

absl::StatusOr<size_t> drain_hold(int fd, Frames& out) {
  std::array<char, kLongestFrame> buffer;
  for (size_t count = 0;;) {
    const ssize_t got = ::read(fd, buffer.data(), buffer.size());
    if (got > 0) {
      out.append({buffer.data(), static_cast<size_t>(got)});
      ++count;
    } else if (got < 0 && errno == EAGAIN) {
      return count;
    } else if (got == 0 || errno != EINTR) {
      return errno_status(got == 0 ? EIO : errno, "read(hold)");
    }
  }
}

}  // namespace godwit::network
