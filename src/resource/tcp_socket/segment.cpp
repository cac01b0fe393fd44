// A TCP segment made by hand: raw(7), ipv6(7). The kernel has no call that says "the peer has
// closed"; a FIN with the right numbers says it.
#include <linux/ip.h>
#include <linux/ipv6.h>

#include <cstring>

#include "base/status.h"
#include "resource/socket_options/checksum.h"
#include "resource/tcp_socket/repair.h"

namespace godwit::resource {
namespace {

struct TimestampsOption {
  uint8_t kinds[4] = {1, 1, 8, 10};  // two of padding, kind, length
  uint32_t value = 0;
  uint32_t echo = 0;
};

struct TcpPart {
  tcphdr header{};
  TimestampsOption timestamps;  // sent only if asked for
};

size_t size_of(const Segment& segment) { return segment.echo ? sizeof(TcpPart) : sizeof(tcphdr); }

// Without the checksum.
TcpPart tcp_part(const Segment& segment) {
  TcpPart part;
  tcphdr& tcp = part.header;
  tcp.source = htons(port_of(segment.from));
  tcp.dest = htons(port_of(segment.to));
  tcp.seq = htonl(segment.sequence);
  tcp.ack_seq = htonl(segment.acknowledge);
  tcp.doff = static_cast<uint16_t>(size_of(segment) / 4) & 0xf;
  tcp.ack = 1;
  tcp.fin = segment.fin;
  tcp.rst = segment.reset;
  tcp.window = htons(segment.window);
  if (segment.echo) part.timestamps.echo = htonl(*segment.echo);
  return part;
}

template <typename Address>
uint16_t checksum_of(const Segment& segment, const Address& from, const Address& to) {
  const TcpPart part = tcp_part(segment);
  const uint16_t protocol_and_length[] = {htons(IPPROTO_TCP),
                                          htons(static_cast<uint16_t>(size_of(segment)))};
  Checksum sum;
  sum.add_object(from);
  sum.add_object(to);
  sum.add_object(protocol_and_length);
  sum.add_object(part.header);
  if (segment.echo) sum.add_object(part.timestamps);
  return sum.value();
}

template <typename Ip>
struct Packet {
  Ip ip;
  TcpPart tcp;
};
static_assert(sizeof(TcpPart) == 32 && sizeof(Packet<iphdr>) == 52 &&
              sizeof(Packet<ipv6hdr>) == 72);

template <typename Ip>
absl::Status send_raw(int family, const Packet<Ip>& packet, size_t size, const KernelAddress& to,
                      RestoreContext& context) {
  GW_ASSIGN_OR_RETURN(const int raw, context.raw_socket(family));
  if (::sendto(raw, &packet, size, 0, to.get(), to.size) < 0)
    return errno_status(errno, "sendto(a segment that stands for the peer's)");
  return absl::OkStatus();
}

absl::Status send_ipv4(const Segment& segment, RestoreContext& context) {
  const in_addr from = ipv4_of(segment.from), to = ipv4_of(segment.to);
  Packet<iphdr> packet{};
  packet.tcp = tcp_part(segment);
  packet.tcp.header.check = checksum_of(segment, from, to);
  packet.ip.version = 4;
  packet.ip.ihl = sizeof(iphdr) / 4;
  packet.ip.ttl = 255;
  packet.ip.protocol = IPPROTO_TCP;
  packet.ip.saddr = from.s_addr;
  packet.ip.daddr = to.s_addr;  // length and header checksum: the kernel's (raw(7))
  sockaddr_in in{};
  in.sin_family = AF_INET;
  in.sin_addr = to;
  KernelAddress target;
  std::memcpy(&target.storage, &in, sizeof in);
  target.size = sizeof in;
  return send_raw(AF_INET, packet, sizeof(iphdr) + size_of(segment), target, context);
}

absl::Status send_ipv6(const Segment& segment, RestoreContext& context) {
  sockaddr_in6 from{}, to{};
  std::memcpy(&from, &segment.from.storage, sizeof from);
  std::memcpy(&to, &segment.to.storage, sizeof to);
  Packet<ipv6hdr> packet{};
  packet.tcp = tcp_part(segment);
  packet.tcp.header.check = checksum_of(segment, from.sin6_addr, to.sin6_addr);
  packet.ip.version = 6;
  packet.ip.payload_len = htons(static_cast<uint16_t>(size_of(segment)));
  packet.ip.nexthdr = IPPROTO_TCP;
  packet.ip.hop_limit = 255;
  packet.ip.saddr = from.sin6_addr;
  packet.ip.daddr = to.sin6_addr;
  to.sin6_port = 0;  // raw(7): must be zero or the protocol
  KernelAddress target;
  std::memcpy(&target.storage, &to, sizeof to);
  target.size = sizeof to;
  return send_raw(AF_INET6, packet, sizeof(ipv6hdr) + size_of(segment), target, context);
}

}  // namespace

absl::Status inject_segment(const Segment& segment, RestoreContext& context) {
  return speaks_ipv4(segment.to) ? send_ipv4(segment, context) : send_ipv6(segment, context);
}

}  // namespace godwit::resource
