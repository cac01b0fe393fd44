// Socket addresses of AF_INET and AF_INET6 in states, and as the kernel takes them.
#ifndef GODWIT_RESOURCE_SOCKET_OPTIONS_ADDRESS_H_
#define GODWIT_RESOURCE_SOCKET_OPTIONS_ADDRESS_H_

#include <netinet/in.h>
#include <sys/socket.h>

#include <string>

#include "absl/status/statusor.h"
#include "resource/resource.h"
#include "resource/socket_options/address.pb.h"

namespace godwit::resource {

struct KernelAddress {
  sockaddr_storage storage{};
  socklen_t size = 0;
  const sockaddr* get() const { return reinterpret_cast<const sockaddr*>(&storage); }
  sockaddr* get() { return reinterpret_cast<sockaddr*>(&storage); }
};

// getsockname(2).
absl::StatusOr<KernelAddress> local_address(int fd);

using InCapsule = absl::FunctionRef<absl::Status(absl::FunctionRef<absl::Status()>)>;

// The index of a link-local address's interface is another one at the destination: the name goes
// into the state.
absl::Status encode_address(const KernelAddress& from, InCapsule in_capsule, InternetAddress& to);
absl::StatusOr<KernelAddress> decode_address(const InternetAddress& from, InCapsule in_capsule);

bool is_any(const InternetAddress& address);
// ::ffff:a.b.c.d on a socket of AF_INET6, or AF_INET: IPv4 is spoken.
bool speaks_ipv4(const KernelAddress& address);
in_addr ipv4_of(const KernelAddress& address);
uint16_t port_of(const KernelAddress& address);

// "10.0.0.5:80", "[fe80::1%eth0]:80".
std::string text_of(const InternetAddress& address);

}  // namespace godwit::resource

#endif  // GODWIT_RESOURCE_SOCKET_OPTIONS_ADDRESS_H_
