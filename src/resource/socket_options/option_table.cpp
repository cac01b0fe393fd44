// getsockopt(2) costs 0.25 us here, and a connection's options are read inside the freeze: an
// option that cannot matter to a kind of socket is not read for it.
//
// Left out on purpose, being no settings: SO_INCOMING_CPU and SO_INCOMING_NAPI_ID (where the last
// packet came in), TCP_QUICKACK (a mode that the kernel leaves by itself), SO_SNDLOWAT (constant).
#include "resource/socket_options/option_table.h"

#include <linux/in.h>
#include <linux/in6.h>
#include <linux/netlink.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <sys/socket.h>

namespace godwit::resource {
namespace {

// linux/tcp.h of Linux 6.15.
constexpr int kTcpRtoMaxMs = 44;

// asm-generic/socket.h of Linux 6.5 and 6.16.
constexpr int kSoPassPidfd = 76;
constexpr int kSoPassRights = 83;

constexpr uint32_t kConnection = kUseTcpConnection;
constexpr uint32_t kIdle = kUseTcpIdle;
constexpr uint32_t kTcp = kConnection | kIdle;
constexpr uint32_t kDatagram = kUseUdp;
constexpr uint32_t kInternet = kTcp | kDatagram;
constexpr uint32_t kLocal = kUseUnix | kUseNetlink;
constexpr uint32_t kAll = kInternet | kLocal;

using enum OptionForm;
constexpr auto k4 = OptionFamily::kInet;
constexpr auto k6 = OptionFamily::kInet6;

constexpr OptionSpec kTable[] = {
    // What bind() looks at comes first.
    {SOL_SOCKET, SO_REUSEADDR, kAll, 0},
    {SOL_SOCKET, SO_REUSEPORT, kInternet, 0},
    {IPPROTO_IPV6, IPV6_V6ONLY, kIdle | kDatagram, 0, kInt, k6},
    {IPPROTO_IP, IP_FREEBIND, kInternet, 0},
    {IPPROTO_IP, IP_TRANSPARENT, kInternet, 0},
    {IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, kIdle | kDatagram, 0},
    {IPPROTO_IP, IP_LOCAL_PORT_RANGE, kIdle | kDatagram, 0},

    {SOL_SOCKET, SO_DEBUG, kIdle | kDatagram | kLocal, 0},
    {SOL_SOCKET, SO_DONTROUTE, kInternet, 0},
    {SOL_SOCKET, SO_BROADCAST, kIdle | kDatagram | kLocal, 0},
    {SOL_SOCKET, SO_KEEPALIVE, kTcp, 0},
    {SOL_SOCKET, SO_OOBINLINE, kTcp, 0},
    {SOL_SOCKET, SO_NO_CHECK, kDatagram, 0},
    {IPPROTO_IP, IP_TOS, kInternet, 0},       // changes the priority,
    {SOL_SOCKET, SO_PRIORITY, kInternet, 0},  // so that comes after it
    {SOL_SOCKET, SO_LINGER, kTcp, -1, kLinger},
    {SOL_SOCKET, SO_PASSCRED, kLocal, 0},
    {SOL_SOCKET, SO_PASSSEC, kUseUnix, 0},
    {SOL_SOCKET, kSoPassPidfd, kUseUnix, 0},
    {SOL_SOCKET, kSoPassRights, kUseUnix, 1},
    {SOL_SOCKET, SO_RCVLOWAT, kTcp | kUseUnix, 1},
    {SOL_SOCKET, SO_RCVTIMEO, kAll, 0, kTime},
    {SOL_SOCKET, SO_SNDTIMEO, kAll, 0, kTime},
    {SOL_SOCKET, SO_MARK, kInternet, 0},
    {SOL_SOCKET, SO_RCVMARK, kDatagram, 0},
    {SOL_SOCKET, SO_RXQ_OVFL, kDatagram | kLocal, 0},
    {SOL_SOCKET, SO_TIMESTAMP, kAll, 0},
    {SOL_SOCKET, SO_TIMESTAMPNS, kAll, 0},
    {SOL_SOCKET, SO_TIMESTAMP_NEW, kIdle | kDatagram | kLocal, 0},
    {SOL_SOCKET, SO_TIMESTAMPNS_NEW, kIdle | kDatagram | kLocal, 0},
    {SOL_SOCKET, SO_TIMESTAMPING, kInternet, 0, kTimestamping},
    {SOL_SOCKET, SO_PEEK_OFF, kTcp | kDatagram | kUseUnix, -1},
    {SOL_SOCKET, SO_SELECT_ERR_QUEUE, kIdle | kDatagram | kLocal, 0},
    {SOL_SOCKET, SO_BUSY_POLL, kIdle | kDatagram, 0},
    {SOL_SOCKET, SO_PREFER_BUSY_POLL, kIdle | kDatagram, 0},
    {SOL_SOCKET, SO_MAX_PACING_RATE, kTcp, -1, kUnsigned64},
    {SOL_SOCKET, SO_ZEROCOPY, kInternet, 0},
    {SOL_SOCKET, SO_TXREHASH, kIdle, 1},

    {IPPROTO_TCP, TCP_NODELAY, kTcp, 0},
    {IPPROTO_TCP, TCP_MAXSEG, kIdle, 536},
    {IPPROTO_TCP, TCP_KEEPIDLE, kTcp, 7200},
    {IPPROTO_TCP, TCP_KEEPINTVL, kTcp, 75},
    {IPPROTO_TCP, TCP_KEEPCNT, kTcp, 9},
    {IPPROTO_TCP, TCP_SYNCNT, kIdle, 6},
    {IPPROTO_TCP, TCP_LINGER2, kTcp, 60},
    {IPPROTO_TCP, TCP_DEFER_ACCEPT, kIdle, 0},
    {IPPROTO_TCP, TCP_WINDOW_CLAMP, kIdle, 0},
    {IPPROTO_TCP, TCP_THIN_LINEAR_TIMEOUTS, kTcp, 0},
    {IPPROTO_TCP, TCP_USER_TIMEOUT, kTcp, 0},
    {IPPROTO_TCP, TCP_FASTOPEN, kIdle, 0},
    {IPPROTO_TCP, TCP_FASTOPEN_CONNECT, kIdle, 0},
    {IPPROTO_TCP, TCP_FASTOPEN_NO_COOKIE, kIdle, 0},
    {IPPROTO_TCP, TCP_NOTSENT_LOWAT, kTcp, 0},
    {IPPROTO_TCP, TCP_SAVE_SYN, kIdle, 0},
    {IPPROTO_TCP, TCP_INQ, kTcp, 0},
    {IPPROTO_TCP, TCP_TX_DELAY, kTcp, 0},
    {IPPROTO_TCP, kTcpRtoMaxMs, kTcp, 120000},

    {IPPROTO_UDP, UDP_CORK, kDatagram, 0},
    {IPPROTO_UDP, UDP_NO_CHECK6_TX, kDatagram, 0},
    {IPPROTO_UDP, UDP_NO_CHECK6_RX, kDatagram, 0},
    {IPPROTO_UDP, UDP_SEGMENT, kDatagram, 0},
    {IPPROTO_UDP, UDP_GRO, kDatagram, 0},

    {IPPROTO_IP, IP_TTL, kInternet, 64},
    {IPPROTO_IP, IP_MTU_DISCOVER, kInternet, 1},
    {IPPROTO_IP, IP_RECVERR, kInternet, 0},
    {IPPROTO_IP, IP_MINTTL, kTcp, 0},
    {IPPROTO_IP, IP_RECVTOS, kDatagram, 0},
    {IPPROTO_IP, IP_RECVTTL, kDatagram, 0},
    {IPPROTO_IP, IP_PKTINFO, kDatagram, 0},
    {IPPROTO_IP, IP_RECVOPTS, kDatagram, 0},
    {IPPROTO_IP, IP_RETOPTS, kDatagram, 0},
    {IPPROTO_IP, IP_RECVORIGDSTADDR, kDatagram, 0},
    {IPPROTO_IP, IP_CHECKSUM, kDatagram, 0},
    {IPPROTO_IP, IP_RECVFRAGSIZE, kDatagram, 0},
    {IPPROTO_IP, IP_RECVERR_RFC4884, kDatagram, 0},
    {IPPROTO_IP, IP_MULTICAST_TTL, kDatagram, 1, kInt, k4},
    {IPPROTO_IP, IP_MULTICAST_LOOP, kDatagram, 1, kInt, k4},
    {IPPROTO_IP, IP_MULTICAST_ALL, kDatagram, 1, kInt, k4},

    {SOL_NETLINK, NETLINK_PKTINFO, kUseNetlink, 0},
    {SOL_NETLINK, NETLINK_BROADCAST_ERROR, kUseNetlink, 0},
    {SOL_NETLINK, NETLINK_NO_ENOBUFS, kUseNetlink, 0},
    {SOL_NETLINK, NETLINK_LISTEN_ALL_NSID, kUseNetlink, 0},
    {SOL_NETLINK, NETLINK_CAP_ACK, kUseNetlink, 0},
    {SOL_NETLINK, NETLINK_EXT_ACK, kUseNetlink, 0},
    {SOL_NETLINK, NETLINK_GET_STRICT_CHK, kUseNetlink, 0},

    {IPPROTO_IPV6, IPV6_TCLASS, kInternet, 0, kInt, k6},
    {IPPROTO_IPV6, IPV6_UNICAST_HOPS, kInternet, 64, kInt, k6},
    {IPPROTO_IPV6, IPV6_MTU_DISCOVER, kInternet, 1, kInt, k6},
    {IPPROTO_IPV6, IPV6_RECVERR, kInternet, 0, kInt, k6},
    {IPPROTO_IPV6, IPV6_DONTFRAG, kDatagram, 0, kInt, k6},
    {IPPROTO_IPV6, IPV6_FLOWINFO_SEND, kInternet, 0, kInt, k6},
    {IPPROTO_IPV6, IPV6_AUTOFLOWLABEL, kIdle | kDatagram, 1, kInt, k6},
    {IPPROTO_IPV6, IPV6_MINHOPCOUNT, kTcp, 0, kInt, k6},
    {IPPROTO_IPV6, IPV6_ADDR_PREFERENCES, kIdle | kDatagram, 0x500, kInt, k6},
    {IPPROTO_IPV6, IPV6_RECVPKTINFO, kInternet, 0, kInt, k6},
    {IPPROTO_IPV6, IPV6_RECVHOPLIMIT, kDatagram, 0, kInt, k6},
    {IPPROTO_IPV6, IPV6_RECVTCLASS, kDatagram, 0, kInt, k6},
    {IPPROTO_IPV6, IPV6_RECVRTHDR, kDatagram, 0, kInt, k6},
    {IPPROTO_IPV6, IPV6_RECVHOPOPTS, kDatagram, 0, kInt, k6},
    {IPPROTO_IPV6, IPV6_RECVDSTOPTS, kDatagram, 0, kInt, k6},
    {IPPROTO_IPV6, IPV6_RECVPATHMTU, kDatagram, 0, kInt, k6},
    {IPPROTO_IPV6, IPV6_RECVORIGDSTADDR, kDatagram, 0, kInt, k6},
    {IPPROTO_IPV6, IPV6_RECVFRAGSIZE, kDatagram, 0, kInt, k6},
    {IPPROTO_IPV6, IPV6_MULTICAST_HOPS, kDatagram, 1, kInt, k6},
    {IPPROTO_IPV6, IPV6_MULTICAST_LOOP, kDatagram, 1, kInt, k6},
    {IPPROTO_IPV6, IPV6_MULTICAST_ALL, kDatagram, 1, kInt, k6},
};

}  // namespace

std::span<const OptionSpec> option_table() { return kTable; }

}  // namespace godwit::resource
