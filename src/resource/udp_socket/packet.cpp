#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/udp.h>

#include <cstring>

#include "base/status.h"
#include "resource/socket_options/address.h"
#include "resource/socket_options/checksum.h"
#include "resource/udp_socket/internal.h"

namespace godwit::resource {
namespace {

template <typename T>
void append(std::string& to, const T& object) {
  to.append(reinterpret_cast<const char*>(&object), sizeof object);
}

}  // namespace

absl::StatusOr<std::string> udp_packet(const UdpDatagram& datagram, uint16_t port) {
  const auto nowhere = [](absl::FunctionRef<absl::Status()>) { return absl::OkStatus(); };
  GW_ASSIGN_OR_RETURN(const KernelAddress from, decode_address(datagram.from(), nowhere));
  GW_ASSIGN_OR_RETURN(const KernelAddress to, decode_address(datagram.to(), nowhere));
  const size_t length = sizeof(udphdr) + datagram.data().size();
  if (length > UINT16_MAX - sizeof(iphdr) || speaks_ipv4(from) != speaks_ipv4(to) ||
      (!speaks_ipv4(from) && (datagram.from().ip().size() != sizeof(in6_addr) ||
                              datagram.to().ip().size() != sizeof(in6_addr))))
    return make_error(absl::StatusCode::kDataLoss, "datagram of {} bytes", datagram.data().size());
  udphdr udp{};
  udp.source = htons(port_of(from));
  udp.dest = htons(port);
  udp.len = htons(static_cast<uint16_t>(length));
  Checksum sum;
  std::string packet;
  if (speaks_ipv4(from)) {
    iphdr ip{};
    ip.version = 4;
    ip.ihl = sizeof ip / 4;
    ip.ttl = static_cast<uint8_t>(datagram.hop_limit());
    ip.tos = static_cast<uint8_t>(datagram.traffic_class());
    ip.protocol = IPPROTO_UDP;
    ip.tot_len = htons(static_cast<uint16_t>(sizeof ip + length));
    ip.saddr = ipv4_of(from).s_addr;
    ip.daddr = ipv4_of(to).s_addr;
    Checksum header;
    header.add_object(ip);
    ip.check = header.value();
    append(packet, ip);
    sum.add_object(ip.saddr);
    sum.add_object(ip.daddr);
  } else {
    ipv6hdr ip{};
    ip.version = 6;
    ip.nexthdr = IPPROTO_UDP;
    ip.hop_limit = static_cast<uint8_t>(datagram.hop_limit());
    ip.priority = static_cast<uint8_t>(datagram.traffic_class() >> 4) & 0xf;
    ip.flow_lbl[0] = static_cast<uint8_t>((datagram.traffic_class() & 0xf) << 4);
    ip.payload_len = htons(static_cast<uint16_t>(length));
    std::memcpy(&ip.saddr, datagram.from().ip().data(), sizeof ip.saddr);
    std::memcpy(&ip.daddr, datagram.to().ip().data(), sizeof ip.daddr);
    append(packet, ip);
    sum.add_object(ip.saddr);
    sum.add_object(ip.daddr);
  }
  sum.add_object(htons(IPPROTO_UDP));
  sum.add_object(udp.len);
  sum.add_object(udp);
  sum.add(datagram.data());
  udp.check = sum.value() != 0 ? sum.value() : uint16_t{0xffff};  // 0 means: none
  append(packet, udp);
  return packet + datagram.data();
}

}  // namespace godwit::resource
