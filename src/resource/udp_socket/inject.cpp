// Unread datagrams into a socket's queue. The socket gets an address of the kernel's choice for
// this time (bind(2) to port 0), and each packet is sent to that port through a raw socket that
// writes the sender's address itself (raw(7), IP_HDRINCL). Nobody else has the port: neither
// SO_REUSEPORT nor multicast can lead a datagram to another socket, and connect(2) has not yet
// shut out senders. connect(AF_UNSPEC) frees an address that was not asked for by number
// (__udp_disconnect(): SOCK_BINDPORT_LOCK), and the queue stays.
//
// A packet to an address of the capsule's own is looped back with the destination of its route
// attached, so no reverse path or martian check sees it, and IP_PKTINFO names the device that has
// the address. Any other destination (broadcast, multicast, an address that has gone) is a local
// one as soon as the route is bound to lo (__mkroute_output(): RTCF_LOCAL).
#include <linux/sock_diag.h>
#include <sched.h>
#include <sys/socket.h>

#include <algorithm>
#include <cstring>

#include "base/clock.h"
#include "base/status.h"
#include "resource/socket_options/address.h"
#include "resource/socket_options/options.h"
#include "resource/udp_socket/internal.h"

namespace godwit::resource {
namespace {

constexpr int kLoopback = 1;  // LOOPBACK_IFINDEX: of `lo` in every network namespace

absl::StatusOr<UniqueFd> new_socket(int family, int type, int protocol, RestoreContext& context) {
  UniqueFd fd;
  GW_RETURN_IF_ERROR(context.in_capsule([&] {
    fd.reset(::socket(family, type | SOCK_CLOEXEC, protocol));
    return fd ? absl::OkStatus()
              : errno_status(errno, fmt::format("socket({}, {}, {})", family, type, protocol));
  }));
  return fd;
}

absl::StatusOr<uint32_t> queued(int fd) {
  uint32_t memory[SK_MEMINFO_VARS] = {};
  socklen_t size = sizeof memory;
  if (::getsockopt(fd, SOL_SOCKET, SO_MEMINFO, memory, &size) != 0)
    return errno_status(errno, fmt::format("getsockopt({}, SO_MEMINFO)", fd));
  return memory[SK_MEMINFO_RMEM_ALLOC];
}

// With port 0: a raw socket of AF_INET6 takes it for a protocol.
KernelAddress target_of(const KernelAddress& to) {
  KernelAddress target = to;
  sockaddr_in in{};
  in.sin_family = AF_INET;
  in.sin_addr = speaks_ipv4(to) ? ipv4_of(to) : in_addr{};
  if (speaks_ipv4(to)) {
    std::memcpy(&target.storage, &in, sizeof in);
    target.size = sizeof in;
  } else {
    // sin_port and sin6_port are at the same place.
    reinterpret_cast<sockaddr_in*>(target.get())->sin_port = 0;
  }
  return target;
}

bool is_multicast(const KernelAddress& to) {
  return speaks_ipv4(to) && IN_MULTICAST(ntohl(ipv4_of(to).s_addr));
}

// bind(2) takes addresses of this namespace, and multicast and broadcast.
absl::StatusOr<bool> is_ours(const KernelAddress& target, RestoreContext& context) {
  GW_ASSIGN_OR_RETURN(const UniqueFd fd,
                      new_socket(target.storage.ss_family, SOCK_DGRAM, IPPROTO_UDP, context));
  if (::bind(fd.get(), target.get(), target.size) == 0) return true;
  if (errno == EADDRNOTAVAIL) return false;
  return errno_status(errno, "bind(a datagram's destination)");
}

absl::Status send_through_loopback(const std::string& packet, const KernelAddress& target,
                                   RestoreContext& context) {
  GW_ASSIGN_OR_RETURN(const UniqueFd raw,
                      new_socket(target.storage.ss_family, SOCK_RAW, IPPROTO_RAW, context));
  GW_RETURN_IF_ERROR(set_int_option(raw.get(), SOL_SOCKET, SO_BINDTOIFINDEX, kLoopback));
  GW_RETURN_IF_ERROR(set_int_option(raw.get(), SOL_SOCKET, SO_BROADCAST, 1));
  if (is_multicast(target)) {
    // Without a member on lo the packet is not for this namespace.
    ip_mreqn group{};
    group.imr_multiaddr = ipv4_of(target);
    group.imr_ifindex = kLoopback;
    if (::setsockopt(raw.get(), IPPROTO_IP, IP_ADD_MEMBERSHIP, &group, sizeof group) != 0)
      return errno_status(errno, "setsockopt(IP_ADD_MEMBERSHIP, lo)");
  }
  if (::sendto(raw.get(), packet.data(), packet.size(), 0, target.get(), target.size) < 0)
    return errno_status(errno, fmt::format("sendto(raw by lo, {} bytes)", packet.size()));
  return absl::OkStatus();
}

absl::Status send_packet(const std::string& packet, const KernelAddress& to,
                         RestoreContext& context) {
  const KernelAddress target = target_of(to);
  GW_ASSIGN_OR_RETURN(const bool ours, is_ours(target, context));
  const bool everybody = speaks_ipv4(target) && ipv4_of(target).s_addr == INADDR_BROADCAST;
  if (!ours || everybody || is_multicast(target))
    return send_through_loopback(packet, target, context);
  GW_ASSIGN_OR_RETURN(const UniqueFd raw,
                      new_socket(target.storage.ss_family, SOCK_RAW, IPPROTO_RAW, context));
  if (::sendto(raw.get(), packet.data(), packet.size(), 0, target.get(), target.size) >= 0)
    return absl::OkStatus();
  // Without SO_BROADCAST: so a broadcast address is told from one of ours.
  if (errno == EACCES) return send_through_loopback(packet, target, context);
  return errno_status(errno, fmt::format("sendto(raw, {} bytes)", packet.size()));
}

// The kernel mostly delivers before sendto() returns; if its softirq thread has taken over, a
// moment later. One after the other, so that they stay in order.
absl::Status send_all(int fd, const UdpSocketState& state, uint16_t port, RestoreContext& context) {
  for (const UdpDatagram& datagram : state.queue()) {
    GW_ASSIGN_OR_RETURN(const KernelAddress to,
                        decode_address(datagram.to(), [&](absl::FunctionRef<absl::Status()> act) {
                          return context.in_capsule(act);
                        }));
    GW_ASSIGN_OR_RETURN(const std::string packet, udp_packet(datagram, port));
    GW_ASSIGN_OR_RETURN(const uint32_t before, queued(fd));
    GW_RETURN_IF_ERROR(send_packet(packet, to, context));
    const Deadline deadline = Deadline::in(absl::Seconds(5));
    while (true) {
      GW_ASSIGN_OR_RETURN(const uint32_t now, queued(fd));
      if (now != before) break;
      if (deadline.passed())
        return make_error(absl::StatusCode::kDeadlineExceeded,
                          "an unread datagram of {} bytes from {} to {} did not arrive again",
                          datagram.data().size(), text_of(datagram.from()), text_of(datagram.to()));
      ::sched_yield();
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status udp_fill(int fd, const UdpSocketState& state, RestoreContext& context) {
  // A filter may ask for the port, and a socket that shares ports may be given one in use.
  SocketCommon bare = state.common();
  bare.clear_filter();
  auto& options = *bare.mutable_options();
  options.erase(
      std::remove_if(options.begin(), options.end(),
                     [](const SocketOption& option) {
                       return option.level() == SOL_SOCKET &&
                              (option.name() == SO_REUSEADDR || option.name() == SO_REUSEPORT);
                     }),
      options.end());
  GW_RETURN_IF_ERROR(restore_common(fd, kUseUdp, state.family(), &state.common(), bare));
  GW_RETURN_IF_ERROR(set_int_option(fd, SOL_SOCKET, SO_RCVBUFFORCE, INT32_MAX / 2));
  KernelAddress any;
  any.storage.ss_family = static_cast<sa_family_t>(state.family());
  any.size = state.family() == AF_INET ? sizeof(sockaddr_in) : sizeof(sockaddr_in6);
  if (::bind(fd, any.get(), any.size) != 0) return errno_status(errno, "bind(UDP, port 0)");
  GW_ASSIGN_OR_RETURN(const KernelAddress bound, local_address(fd));
  GW_RETURN_IF_ERROR(send_all(fd, state, port_of(bound), context));
  any.storage.ss_family = AF_UNSPEC;
  if (::connect(fd, any.get(), any.size) != 0) return errno_status(errno, "connect(AF_UNSPEC)");
  GW_RETURN_IF_ERROR(restore_common(fd, kUseUdp, state.family(), &bare, state.common()));
  return restore_buffers(fd, state.common());
}

}  // namespace godwit::resource
