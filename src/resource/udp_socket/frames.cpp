#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/udp.h>

#include <cstring>

#include "base/status.h"
#include "resource/socket_options/address.h"
#include "resource/socket_options/checksum.h"
#include "resource/state_codec.h"
#include "resource/udp_socket/udp_socket.h"
#include "resource/udp_socket/udp_socket.pb.h"

namespace godwit::resource {
namespace {

template <typename T>
void append(std::string& to, const T& object) {
  to.append(reinterpret_cast<const char*>(&object), sizeof object);
}

absl::StatusOr<std::string> frame_of(const UdpDatagram& datagram) {
  const auto nowhere = [](absl::FunctionRef<absl::Status()>) { return absl::OkStatus(); };
  GW_ASSIGN_OR_RETURN(const KernelAddress from, decode_address(datagram.from(), nowhere));
  GW_ASSIGN_OR_RETURN(const KernelAddress to, decode_address(datagram.to(), nowhere));
  const size_t length = sizeof(udphdr) + datagram.data().size();
  if (length > UINT16_MAX - sizeof(iphdr) || speaks_ipv4(from) != speaks_ipv4(to))
    return make_error(absl::StatusCode::kDataLoss, "datagram of {} bytes", datagram.data().size());
  udphdr udp{};
  udp.source = htons(port_of(from));
  udp.dest = htons(port_of(to));
  udp.len = htons(static_cast<uint16_t>(length));
  Checksum sum;
  std::string frame;
  if (speaks_ipv4(from)) {
    iphdr ip{};
    ip.version = 4;
    ip.ihl = sizeof ip / 4;
    ip.ttl = 64;
    ip.protocol = IPPROTO_UDP;
    ip.tot_len = htons(static_cast<uint16_t>(sizeof ip + length));
    ip.saddr = ipv4_of(from).s_addr;
    ip.daddr = ipv4_of(to).s_addr;
    Checksum header;
    header.add_object(ip);
    ip.check = header.value();
    append(frame, ip);
    sum.add_object(ip.saddr);
    sum.add_object(ip.daddr);
  } else {
    ipv6hdr ip{};
    ip.version = 6;
    ip.nexthdr = IPPROTO_UDP;
    ip.hop_limit = 64;
    ip.payload_len = htons(static_cast<uint16_t>(length));
    std::memcpy(&ip.saddr, datagram.from().ip().data(), sizeof ip.saddr);
    std::memcpy(&ip.daddr, datagram.to().ip().data(), sizeof ip.daddr);
    append(frame, ip);
    sum.add_object(ip.saddr);
    sum.add_object(ip.daddr);
  }
  sum.add_object(htons(IPPROTO_UDP));
  sum.add_object(udp.len);
  sum.add_object(udp);
  sum.add(datagram.data());
  udp.check = sum.value() != 0 ? sum.value() : uint16_t{0xffff};  // 0 means: none
  append(frame, udp);
  return frame + datagram.data();
}

}  // namespace

absl::StatusOr<std::vector<std::string>> udp_frames(std::string_view state) {
  GW_ASSIGN_OR_RETURN(const auto parsed, parse_state<UdpSocketState>(state, "udp_socket"));
  std::vector<std::string> frames;
  for (const UdpDatagram& datagram : parsed.queue()) {
    GW_ASSIGN_OR_RETURN(std::string frame, frame_of(datagram));
    frames.push_back(std::move(frame));
  }
  return frames;
}

}  // namespace godwit::resource
