#include "network/ip.h"

#include <arpa/inet.h>

#include <algorithm>
#include <charconv>

#include "base/status.h"

namespace godwit::network {
namespace {

uint64_t fnv1a(std::string_view seed, uint64_t hash) {
  for (const char c : seed) {
    hash ^= static_cast<uint8_t>(c);
    hash *= 1099511628211ULL;
  }
  return hash;
}

}  // namespace

size_t IpAddress::size() const { return family == AF_INET6 ? 16 : 4; }
bool IpAddress::is_v6() const { return family == AF_INET6; }

std::string IpAddress::text() const {
  char out[INET6_ADDRSTRLEN] = "?";
  ::inet_ntop(family, bytes.data(), out, sizeof out);
  return out;
}

absl::StatusOr<IpAddress> parse_ip(std::string_view text) {
  const std::string copy(text);
  IpAddress ip;
  for (const int family : {AF_INET, AF_INET6}) {
    if (::inet_pton(family, copy.c_str(), ip.bytes.data()) == 1) {
      ip.family = family;
      return ip;
    }
  }
  return make_error(absl::StatusCode::kInvalidArgument, "\"{}\" is not an IP address", text);
}

std::string IpPrefix::text() const { return fmt::format("{}/{}", ip.text(), length); }

absl::StatusOr<IpPrefix> parse_prefix(std::string_view text) {
  const size_t slash = text.find('/');
  IpPrefix prefix;
  GW_ASSIGN_OR_RETURN(prefix.ip, parse_ip(text.substr(0, slash)));
  const unsigned most = prefix.ip.is_v6() ? 128 : 32;
  unsigned length = most;
  if (slash != std::string_view::npos) {
    const std::string_view digits = text.substr(slash + 1);
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), length);
    if (error != std::errc() || end != digits.data() + digits.size() || length > most) {
      return make_error(absl::StatusCode::kInvalidArgument, "\"{}\": not a prefix length of 0..{}",
                        text, most);
    }
  }
  prefix.length = static_cast<uint8_t>(length);
  return prefix;
}

IpPrefix network_of(const IpPrefix& prefix) {
  IpPrefix result = prefix;
  for (size_t bit = prefix.length; bit < prefix.ip.size() * 8; ++bit) {
    result.ip.bytes[bit / 8] &= static_cast<uint8_t>(~(0x80u >> (bit % 8)));
  }
  return result;
}

IpAddress host_of(const IpPrefix& network, uint32_t host) {
  IpAddress ip = network_of(network).ip;
  const size_t bits = std::min<size_t>(ip.size() * 8 - network.length, 32);
  const size_t last = ip.size() - 1;
  for (size_t bit = 0; bit < bits; ++bit) {
    if ((host >> bit & 1) != 0) ip.bytes[last - bit / 8] |= static_cast<uint8_t>(1u << (bit % 8));
  }
  return ip;
}

std::string MacAddress::text() const {
  return fmt::format("{:02x}:{:02x}:{:02x}:{:02x}:{:02x}:{:02x}", bytes[0], bytes[1], bytes[2],
                     bytes[3], bytes[4], bytes[5]);
}

absl::StatusOr<MacAddress> parse_mac(std::string_view text) {
  MacAddress mac;
  bool good = text.size() == 17;
  for (size_t i = 0; good && i < 6; ++i) {
    const char* at = text.data() + i * 3;
    const auto [end, error] = std::from_chars(at, at + 2, mac.bytes[i], 16);
    good = error == std::errc() && end == at + 2 && (i == 5 || at[2] == ':');
  }
  if (!good) {
    return make_error(absl::StatusCode::kInvalidArgument, "\"{}\" is not a MAC address", text);
  }
  return mac;
}

MacAddress mac_from_seed(std::string_view seed) {
  uint64_t hash = fnv1a(seed, 14695981039346656037ULL);
  MacAddress mac;
  for (uint8_t& byte : mac.bytes) {
    byte = static_cast<uint8_t>(hash >> 16);
    hash = fnv1a("mac", hash);
  }
  mac.bytes[0] = 0x02;
  return mac;
}

IpPrefix link_local_of(const MacAddress& mac) {
  IpPrefix result;
  result.length = 64;
  result.ip.family = AF_INET6;
  const auto& m = mac.bytes;
  result.ip.bytes = {0xfe, 0x80, 0,    0,    0,    0,    0,   0, static_cast<uint8_t>(m[0] ^ 2),
                     m[1], m[2], 0xff, 0xfe, m[3], m[4], m[5]};
  return result;
}

uint32_t short_hash(std::string_view seed) {
  const uint64_t hash = fnv1a(seed, 14695981039346656037ULL);
  return static_cast<uint32_t>(hash ^ hash >> 32);
}

}  // namespace godwit::network
