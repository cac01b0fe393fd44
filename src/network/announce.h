// The frames by which everybody on the segment learns where a capsule is: a gratuitous ARP as
// request and as reply for each IPv4 address (RFC 5227, 5944: hosts differ in which one they take),
// an unsolicited neighbour advertisement for each IPv6 address (RFC 4861, 7.2.6). Bridges and VXLAN
// devices learn from their source address.
#ifndef GODWIT_NETWORK_ANNOUNCE_H_
#define GODWIT_NETWORK_ANNOUNCE_H_

#include <vector>

#include "network/frames.h"
#include "network/ip.h"

namespace godwit::network {

Frames announcement(const MacAddress& mac, const std::vector<IpPrefix>& addresses);

// For one whose addresses nobody knows: a reverse ARP request (RFC 903), which teaches bridges
// where `mac` is and which no host answers.
Frames reverse_arp(const MacAddress& mac);

}  // namespace godwit::network

#endif  // GODWIT_NETWORK_ANNOUNCE_H_
