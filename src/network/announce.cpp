#include "network/announce.h"

#include <string>

namespace godwit::network {
namespace {

class Builder {
 public:
  Builder& u8(unsigned value) {
    out_.push_back(static_cast<char>(value));
    return *this;
  }
  Builder& u16(unsigned value) { return u8(value >> 8 & 0xff).u8(value & 0xff); }
  Builder& mac(const MacAddress& value) {
    for (const uint8_t byte : value.bytes) u8(byte);
    return *this;
  }
  Builder& ip(const IpAddress& value) {
    for (size_t i = 0; i < value.size(); ++i) u8(value.bytes[i]);
    return *this;
  }
  const std::string& bytes() const { return out_; }

 private:
  std::string out_;
};

constexpr MacAddress kBroadcast{{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}};

enum class ArpOperation { kRequest = 1, kReply = 2 };

std::string gratuitous_arp(const MacAddress& mac, const IpAddress& ip, ArpOperation operation) {
  Builder frame;
  frame.mac(kBroadcast).mac(mac).u16(0x0806);
  frame.u16(1).u16(0x0800).u8(6).u8(4).u16(static_cast<unsigned>(operation));
  frame.mac(mac).ip(ip);
  frame.mac(operation == ArpOperation::kReply ? kBroadcast : MacAddress{}).ip(ip);
  return frame.bytes();
}

// Sum of 16-bit words in ones' complement (RFC 1071) over an even number of bytes.
unsigned internet_checksum(const std::string& bytes) {
  uint64_t sum = 0;
  for (size_t i = 0; i + 1 < bytes.size(); i += 2) {
    sum += static_cast<unsigned>(static_cast<uint8_t>(bytes[i])) << 8 |
           static_cast<uint8_t>(bytes[i + 1]);
  }
  while (sum >> 16 != 0) sum = (sum & 0xffff) + (sum >> 16);
  return static_cast<unsigned>(~sum & 0xffff);
}

std::string neighbour_advertisement(const MacAddress& mac, const IpAddress& ip) {
  constexpr MacAddress kAllNodesMac{{0x33, 0x33, 0, 0, 0, 1}};
  constexpr IpAddress kAllNodes{10 /* AF_INET6 */,
                                {0xff, 0x02, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1}};
  constexpr unsigned kLength = 32;
  constexpr unsigned kOverride = 0x20;
  const auto body = [&](unsigned checksum) {
    Builder out;
    out.u8(136).u8(0).u16(checksum).u8(kOverride).u8(0).u16(0).ip(ip);
    out.u8(2).u8(1).mac(mac);  // option: target link-layer address
    return out.bytes();
  };
  Builder pseudo;  // RFC 8200, 8.1
  pseudo.ip(ip).ip(kAllNodes).u16(0).u16(kLength).u16(0).u16(58);
  const unsigned checksum = internet_checksum(pseudo.bytes() + body(0));
  Builder frame;
  frame.mac(kAllNodesMac).mac(mac).u16(0x86dd);
  frame.u16(0x6000).u16(0).u16(kLength).u8(58).u8(255).ip(ip).ip(kAllNodes);
  return frame.bytes() + body(checksum);
}

}  // namespace

Frames announcement(const MacAddress& mac, const std::vector<IpPrefix>& addresses) {
  Frames frames;
  for (const IpPrefix& address : addresses) {
    if (address.ip.is_v6()) {
      frames.append(neighbour_advertisement(mac, address.ip));
    } else {
      frames.append(gratuitous_arp(mac, address.ip, ArpOperation::kRequest));
      frames.append(gratuitous_arp(mac, address.ip, ArpOperation::kReply));
    }
  }
  return frames;
}

Frames reverse_arp(const MacAddress& mac) {
  constexpr unsigned kRequestReverse = 3;
  Builder frame;
  frame.mac(kBroadcast).mac(mac).u16(0x8035);
  frame.u16(1).u16(0x0800).u8(6).u8(4).u16(kRequestReverse);
  for (int side = 0; side < 2; ++side) frame.mac(mac).u16(0).u16(0);
  Frames frames;
  frames.append(frame.bytes());
  return frames;
}

}  // namespace godwit::network
