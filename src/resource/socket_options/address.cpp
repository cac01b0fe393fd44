#include "resource/socket_options/address.h"

#include <arpa/inet.h>
#include <net/if.h>

#include <algorithm>
#include <cstring>

#include "base/status.h"

namespace godwit::resource {

absl::StatusOr<KernelAddress> local_address(int fd) {
  KernelAddress address;
  address.size = sizeof address.storage;
  if (::getsockname(fd, address.get(), &address.size) != 0)
    return errno_status(errno, fmt::format("getsockname({})", fd));
  return address;
}

absl::Status encode_address(const KernelAddress& from, InCapsule in_capsule, InternetAddress& to) {
  if (from.storage.ss_family == AF_INET) {
    sockaddr_in in{};
    std::memcpy(&in, &from.storage, sizeof in);
    to.set_ip(&in.sin_addr, sizeof in.sin_addr);
    to.set_port(ntohs(in.sin_port));
    return absl::OkStatus();
  }
  sockaddr_in6 in6{};
  std::memcpy(&in6, &from.storage, sizeof in6);
  to.set_ip(&in6.sin6_addr, sizeof in6.sin6_addr);
  to.set_port(ntohs(in6.sin6_port));
  to.set_flow_info(in6.sin6_flowinfo);
  if (in6.sin6_scope_id == 0) return absl::OkStatus();
  return in_capsule([&] {
    char name[IF_NAMESIZE] = {};
    if (::if_indextoname(in6.sin6_scope_id, name) == nullptr)
      return errno_status(errno, fmt::format("if_indextoname({})", in6.sin6_scope_id));
    to.set_interface(name);
    return absl::OkStatus();
  });
}

absl::StatusOr<KernelAddress> decode_address(const InternetAddress& from, InCapsule in_capsule) {
  KernelAddress to;
  if (from.ip().size() == sizeof(in_addr)) {
    sockaddr_in in{};
    in.sin_family = AF_INET;
    in.sin_port = htons(static_cast<uint16_t>(from.port()));
    std::memcpy(&in.sin_addr, from.ip().data(), sizeof in.sin_addr);
    std::memcpy(&to.storage, &in, sizeof in);
    to.size = sizeof in;
    return to;
  }
  if (from.ip().size() != sizeof(in6_addr))
    return make_error(absl::StatusCode::kDataLoss, "socket address of {} bytes", from.ip().size());
  sockaddr_in6 in6{};
  in6.sin6_family = AF_INET6;
  in6.sin6_port = htons(static_cast<uint16_t>(from.port()));
  in6.sin6_flowinfo = from.flow_info();
  std::memcpy(&in6.sin6_addr, from.ip().data(), sizeof in6.sin6_addr);
  if (!from.interface().empty())
    GW_RETURN_IF_ERROR(in_capsule([&] {
      in6.sin6_scope_id = ::if_nametoindex(from.interface().c_str());
      if (in6.sin6_scope_id == 0)
        return errno_status(errno, fmt::format("if_nametoindex({})", from.interface()));
      return absl::OkStatus();
    }));
  std::memcpy(&to.storage, &in6, sizeof in6);
  to.size = sizeof in6;
  return to;
}

bool is_any(const InternetAddress& address) {
  return std::all_of(address.ip().begin(), address.ip().end(), [](char c) { return c == 0; });
}

bool speaks_ipv4(const KernelAddress& address) {
  if (address.storage.ss_family == AF_INET) return true;
  sockaddr_in6 in6{};
  std::memcpy(&in6, &address.storage, sizeof in6);
  return IN6_IS_ADDR_V4MAPPED(&in6.sin6_addr);
}

in_addr ipv4_of(const KernelAddress& address) {
  in_addr result{};
  if (address.storage.ss_family == AF_INET) {
    sockaddr_in in{};
    std::memcpy(&in, &address.storage, sizeof in);
    return in.sin_addr;
  }
  sockaddr_in6 in6{};
  std::memcpy(&in6, &address.storage, sizeof in6);
  std::memcpy(&result, in6.sin6_addr.s6_addr + 12, sizeof result);
  return result;
}

uint16_t port_of(const KernelAddress& address) {
  // sin_port and sin6_port are at the same place.
  sockaddr_in in{};
  std::memcpy(&in, &address.storage, sizeof in);
  return ntohs(in.sin_port);
}

std::string text_of(const InternetAddress& address) {
  char text[INET6_ADDRSTRLEN] = {};
  if (address.ip().size() == sizeof(in_addr)) {
    ::inet_ntop(AF_INET, address.ip().data(), text, sizeof text);
    return fmt::format("{}:{}", text, address.port());
  }
  if (address.ip().size() != sizeof(in6_addr)) return "?";
  ::inet_ntop(AF_INET6, address.ip().data(), text, sizeof text);
  const std::string& interface = address.interface();
  return fmt::format("[{}{}{}]:{}", text, interface.empty() ? "" : "%", interface, address.port());
}

}  // namespace godwit::resource
