// A TCP segment made by hand: raw(7), ipv6(7). The kernel has no call that says "the peer has
// closed"; a FIN with the right numbers says it.
#include <linux/ip.h>
#include <linux/ipv6.h>

#include <array>
#include <cstring>

#include "base/status.h"
#include "resource/tcp_socket/repair.h"

namespace godwit::resource {
namespace {

// RFC 1071.
class Checksum {
 public:
  template <typename T>
  void add(const T& bytes) {
    static_assert(sizeof(T) % 2 == 0);
    std::array<uint16_t, sizeof(T) / 2> words;
    std::memcpy(words.data(), &bytes, sizeof(T));
    for (const uint16_t word : words) sum_ += word;
  }
  uint16_t value() const {
    uint32_t sum = sum_;
    while (sum >> 16 != 0) sum = (sum & 0xffff) + (sum >> 16);
    return static_cast<uint16_t>(~sum);
  }

 private:
  uint32_t sum_ = 0;
};

tcphdr header_of(const Segment& segment) {
  tcphdr tcp{};
  tcp.source = htons(port_of(segment.from));
  tcp.dest = htons(port_of(segment.to));
  tcp.seq = htonl(segment.sequence);
  tcp.ack_seq = htonl(segment.acknowledge);
  tcp.doff = sizeof tcp / 4;
  tcp.ack = 1;
  tcp.fin = segment.fin;
  tcp.window = htons(segment.window);
  return tcp;
}

struct PseudoHeader {
  uint16_t zero_and_protocol = htons(IPPROTO_TCP);
  uint16_t length = htons(sizeof(tcphdr));
};

template <typename Ip>
struct Packet {
  Ip ip;
  tcphdr tcp;
} __attribute__((packed));

template <typename Ip>
absl::Status send_raw(int family, const Packet<Ip>& packet, const KernelAddress& to,
                      RestoreContext& context) {
  return context.in_capsule([&] {
    const UniqueFd raw(::socket(family, SOCK_RAW | SOCK_CLOEXEC, IPPROTO_RAW));
    if (!raw) return errno_status(errno, "socket(SOCK_RAW, IPPROTO_RAW)");
    if (::sendto(raw.get(), &packet, sizeof packet, 0, to.get(), to.size) != sizeof packet)
      return errno_status(errno, "sendto(a segment that stands for the peer's)");
    return absl::OkStatus();
  });
}

absl::Status send_ipv4(const Segment& segment, RestoreContext& context) {
  Packet<iphdr> packet{};
  packet.tcp = header_of(segment);
  packet.ip.version = 4;
  packet.ip.ihl = sizeof(iphdr) / 4;
  packet.ip.ttl = 255;
  packet.ip.protocol = IPPROTO_TCP;
  packet.ip.saddr = ipv4_of(segment.from).s_addr;
  packet.ip.daddr = ipv4_of(segment.to).s_addr;
  Checksum sum;
  sum.add(ipv4_of(segment.from));
  sum.add(ipv4_of(segment.to));
  sum.add(PseudoHeader{});
  sum.add(header_of(segment));
  packet.tcp.check = sum.value();
  sockaddr_in in{};
  in.sin_family = AF_INET;
  in.sin_addr = ipv4_of(segment.to);
  KernelAddress to;
  std::memcpy(&to.storage, &in, sizeof in);
  to.size = sizeof in;
  return send_raw(AF_INET, packet, to, context);
}

absl::Status send_ipv6(const Segment& segment, RestoreContext& context) {
  sockaddr_in6 from{}, to{};
  std::memcpy(&from, &segment.from.storage, sizeof from);
  std::memcpy(&to, &segment.to.storage, sizeof to);
  Packet<ipv6hdr> packet{};
  packet.tcp = header_of(segment);
  packet.ip.version = 6;
  packet.ip.payload_len = htons(sizeof(tcphdr));
  packet.ip.nexthdr = IPPROTO_TCP;
  packet.ip.hop_limit = 255;
  packet.ip.saddr = from.sin6_addr;
  packet.ip.daddr = to.sin6_addr;
  Checksum sum;
  sum.add(from.sin6_addr);
  sum.add(to.sin6_addr);
  sum.add(PseudoHeader{});
  sum.add(header_of(segment));
  packet.tcp.check = sum.value();
  to.sin6_port = 0;  // raw(7): must be zero or the protocol
  KernelAddress target;
  std::memcpy(&target.storage, &to, sizeof to);
  target.size = sizeof to;
  return send_raw(AF_INET6, packet, target, context);
}

}  // namespace

absl::Status inject_segment(const Segment& segment, RestoreContext& context) {
  return speaks_ipv4(segment.to) ? send_ipv4(segment, context) : send_ipv6(segment, context);
}

}  // namespace godwit::resource
