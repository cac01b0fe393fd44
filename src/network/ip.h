// Addresses as values: IPv4 and IPv6 alike, and Ethernet's.
#ifndef GODWIT_NETWORK_IP_H_
#define GODWIT_NETWORK_IP_H_

#include <array>
#include <compare>
#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace godwit::network {

struct IpAddress {
  int family = 0;                   // AF_INET or AF_INET6
  std::array<uint8_t, 16> bytes{};  // network order; the first size() count

  size_t size() const;
  bool is_v6() const;
  std::string text() const;
  auto operator<=>(const IpAddress&) const = default;
};
absl::StatusOr<IpAddress> parse_ip(std::string_view text);

// An address with the length of its network's prefix: "10.77.0.5/16", "fd77::5/64".
struct IpPrefix {
  IpAddress ip;
  uint8_t length = 0;

  std::string text() const;
  auto operator<=>(const IpPrefix&) const = default;
};
// Without "/length" the whole address is meant (32 or 128).
absl::StatusOr<IpPrefix> parse_prefix(std::string_view text);
// The prefix's network with the host part set to `host` (at most 32 bits are used).
IpAddress host_of(const IpPrefix& network, uint32_t host);
// Host part cleared: "10.77.0.5/16" becomes "10.77.0.0/16".
IpPrefix network_of(const IpPrefix& prefix);

struct MacAddress {
  std::array<uint8_t, 6> bytes{};

  std::string text() const;
  bool is_zero() const { return bytes == std::array<uint8_t, 6>{}; }
  auto operator<=>(const MacAddress&) const = default;
};
absl::StatusOr<MacAddress> parse_mac(std::string_view text);
// A locally administered unicast MAC ("02:..") that follows from `seed` alone.
MacAddress mac_from_seed(std::string_view seed);
// fe80::/64 with the modified EUI-64 of RFC 4291, appendix A.
IpPrefix link_local_of(const MacAddress& mac);

// 32 bits that follow from `seed` alone (FNV-1a): for interface names, which have 15 bytes.
uint32_t short_hash(std::string_view seed);

}  // namespace godwit::network

#endif  // GODWIT_NETWORK_IP_H_
