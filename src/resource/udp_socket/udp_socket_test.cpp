#include "resource/udp_socket/udp_socket.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <poll.h>

#include "resource/socket_options/address.h"
#include "resource/socket_options/options.h"
#include "resource/socket_options/testing_networks.h"
#include "resource/udp_socket/udp_socket.pb.h"

namespace godwit::resource {
namespace {

KernelAddress address(const std::string& ip, uint32_t port) {
  InternetAddress text;
  in6_addr bytes{};
  const bool v6 = ip.find(':') != std::string::npos;
  EXPECT_EQ(::inet_pton(v6 ? AF_INET6 : AF_INET, ip.c_str(), &bytes), 1);
  text.set_ip(&bytes, v6 ? 16 : 4);
  text.set_port(port);
  return *decode_address(text, [](auto action) { return action(); });
}

class UdpSocketTest : public ::testing::Test {
 protected:
  UniqueFd socket(const testing::Network& network, const std::string& ip, uint32_t port) {
    UniqueFd fd = network.in([&] {
      return UniqueFd(::socket(ip.find(':') != std::string::npos ? AF_INET6 : AF_INET,
                               SOCK_DGRAM | SOCK_CLOEXEC, 0));
    });
    const KernelAddress a = address(ip, port);
    EXPECT_EQ(::bind(fd.get(), a.get(), a.size), 0) << strerror(errno);
    return fd;
  }
  absl::StatusOr<std::string> capture(int fd) {
    return udp_socket_kind().capture(testing::open_file(fd), capture_);
  }
  UniqueFd restore(const std::string& state) {
    auto fd = udp_socket_kind().create(1, state, restore_);
    EXPECT_TRUE(fd.ok()) << fd.status();
    if (!fd.ok()) return UniqueFd();
    auto same = udp_socket_kind().update(fd->get(), state, state, restore_);
    EXPECT_TRUE(same.ok() && *same) << same.status();
    return *std::move(fd);
  }
  // One datagram and who sent it.
  std::string receive(int fd) {
    pollfd events{.fd = fd, .events = POLLIN, .revents = 0};
    if (::poll(&events, 1, 5000) != 1) return "nothing";
    KernelAddress from;
    from.size = sizeof from.storage;
    char bytes[3000];
    const ssize_t got = ::recvfrom(fd, bytes, sizeof bytes, 0, from.get(), &from.size);
    InternetAddress text;
    EXPECT_TRUE(encode_address(
                    from, [](auto action) { return action(); }, text)
                    .ok());
    return text_of(text) + " " + std::string(bytes, static_cast<size_t>(std::max<ssize_t>(got, 0)));
  }
  bool set(const UniqueFd& fd, int level, int name, int value) {
    return set_int_option(fd.get(), level, name, value).ok();
  }
  void send(const UniqueFd& from, const KernelAddress& to, std::string_view text) {
    ASSERT_EQ(::sendto(from.get(), text.data(), text.size(), 0, to.get(), to.size),
              ssize_t(text.size()))
        << strerror(errno);
  }
  // All that lies in the queue.
  std::vector<std::string> drain(const UniqueFd& fd) {
    std::vector<std::string> all;
    pollfd events{.fd = fd.get(), .events = POLLIN, .revents = 0};
    while (::poll(&events, 1, 0) == 1) all.push_back(receive(fd.get()));
    return all;
  }
  // `bound` at the source gets datagrams of which none is read before it moves.
  void move_with_queue(const std::string& bound, const std::string& mine, const std::string& peer,
                       const std::string& seen_peer) {
    UniqueFd fd = socket(networks_.source, bound, 5300);
    const UniqueFd sender = socket(networks_.peer, peer, 1234);
    const KernelAddress to = address(mine, 5300);
    for (const char* text : {"first", "", "third one"}) send(sender, to, text);
    pollfd events{.fd = fd.get(), .events = POLLIN, .revents = 0};
    ASSERT_EQ(::poll(&events, 1, 5000), 1);
    const std::string state = *capture(fd.get());
    ASSERT_TRUE(networks_.connect_source(false) && networks_.connect_destination(true));
    const UniqueFd moved = restore(state);
    for (const char* text : {" first", " ", " third one"}) {
      EXPECT_EQ(receive(fd.get()), seen_peer + text);
      EXPECT_EQ(receive(moved.get()), seen_peer + text);
    }
    // The bridge takes a moment to use the port, and nobody repeats a datagram.
    pollfd arrived{.fd = moved.get(), .events = POLLIN, .revents = 0};
    for (int attempt = 0; attempt < 100 && ::poll(&arrived, 1, 50) == 0; ++attempt)
      ASSERT_EQ(::sendto(sender.get(), "new", 3, 0, to.get(), to.size), 3);
    EXPECT_EQ(receive(moved.get()), seen_peer + " new");
  }

  testing::Networks networks_;
  testing::FakeCaptureContext files_;
  testing::FakeRestoreContext made_;
  testing::NetworkCapture capture_{networks_.source, files_};
  testing::NetworkRestore restore_{networks_.destination, made_};
};

TEST_F(UdpSocketTest, UnreadDatagramsMove) {
  move_with_queue("0.0.0.0", "10.9.0.2", "10.9.0.1", "10.9.0.1:1234");
}
TEST_F(UdpSocketTest, UnreadIpv6DatagramsMove) {
  move_with_queue("::", "fd00:9::2", "fd00:9::1", "[fd00:9::1]:1234");
}
TEST_F(UdpSocketTest, UnreadMappedDatagramsMove) {
  move_with_queue("::", "10.9.0.2", "10.9.0.1", "[::ffff:10.9.0.1]:1234");
}

TEST_F(UdpSocketTest, UnreadDatagramsOfLoopbackKeepWhatCanBeAsked) {
  const UniqueFd fd = socket(networks_.source, "0.0.0.0", 5304);
  const UniqueFd sender = socket(networks_.source, "127.0.0.1", 1234);
  for (const auto& [level, name] :
       {std::pair(IPPROTO_IP, IP_PKTINFO), std::pair(IPPROTO_IP, IP_RECVTTL),
        std::pair(IPPROTO_IP, IP_RECVTOS)})
    ASSERT_TRUE(set(fd, level, name, 1));
  ASSERT_TRUE(set(sender, IPPROTO_IP, IP_TTL, 7) && set(sender, IPPROTO_IP, IP_TOS, 0x28));
  ASSERT_TRUE(set(fd, SOL_SOCKET, SO_RCVBUF, 4000));
  send(sender, address("127.0.0.5", 5304), "to a loopback address");
  send(sender, address("10.9.0.2", 5304), std::string(2000, 'x'));
  const std::string state = *capture(fd.get());
  const UniqueFd moved = restore(state);
  // The second capture tells destination, TTL and TOS as well as what was sent.
  EXPECT_EQ(*capture(moved.get()), state);
  const std::vector<std::string> wanted = {"127.0.0.1:1234 to a loopback address",
                                           "127.0.0.1:1234 " + std::string(2000, 'x')};
  EXPECT_EQ(drain(moved), wanted);
  EXPECT_EQ(drain(fd), wanted);
}

TEST_F(UdpSocketTest, DatagramsReachTheSocketThatHadThem) {
  // Of several on one port, and from a sender that connect(2) has shut out meanwhile.
  std::vector<UniqueFd> group;
  std::vector<std::string> states;
  const KernelAddress to = address("10.9.0.2", 5305);
  for (int i = 0; i < 3; ++i) {
    group.push_back(networks_.source.in(
        [&] { return UniqueFd(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0)); }));
    ASSERT_TRUE(set(group.back(), SOL_SOCKET, SO_REUSEPORT, 1));
    ASSERT_EQ(::bind(group.back().get(), to.get(), to.size), 0) << strerror(errno);
  }
  for (int port = 2000; port < 2020; ++port)
    send(socket(networks_.source, "10.9.0.2", port), to, std::to_string(port));
  const KernelAddress friendly = address("10.9.0.1", 53);
  ASSERT_EQ(::connect(group[1].get(), friendly.get(), friendly.size), 0);
  std::vector<UniqueFd> moved;
  for (const UniqueFd& fd : group) {
    states.push_back(*capture(fd.get()));
    moved.push_back(restore(states.back()));
  }
  size_t all = 0;
  for (size_t i = 0; i < group.size(); ++i) {
    EXPECT_EQ(*capture(moved[i].get()), states[i]);
    const auto wanted = drain(group[i]);
    all += wanted.size();
    EXPECT_EQ(drain(moved[i]), wanted);
  }
  EXPECT_EQ(all, 20U);
}

TEST_F(UdpSocketTest, BroadcastMulticastAndLostAddressesMoveOnce) {
  const UniqueFd fd = socket(networks_.source, "0.0.0.0", 5306);
  ASSERT_TRUE(set(fd, SOL_SOCKET, SO_REUSEADDR, 1));
  UdpSocketState state;
  ASSERT_TRUE(state.ParseFromString(*capture(fd.get())));
  std::vector<std::string> wanted;
  for (const char* to : {"255.255.255.255", "224.0.0.251", "239.1.2.3", "10.77.0.3", "10.9.0.2"}) {
    UdpDatagram& datagram = *state.add_queue();
    for (const auto& [text, field] :
         {std::pair("10.9.0.1", datagram.mutable_from()), std::pair(to, datagram.mutable_to())}) {
      in_addr bytes{};
      ASSERT_EQ(::inet_pton(AF_INET, text, &bytes), 1);
      field->set_ip(&bytes, 4);
      field->set_port(5306);
    }
    datagram.set_hop_limit(1);
    datagram.set_data(to);
    wanted.push_back(std::string("10.9.0.1:5306 ") + to);
  }
  const std::string bytes = state.SerializeAsString();
  const UniqueFd first = restore(bytes);
  const UniqueFd second = restore(bytes);
  EXPECT_EQ(*capture(second.get()), bytes);
  EXPECT_EQ(drain(first), wanted);
  EXPECT_EQ(drain(second), wanted);
}

TEST_F(UdpSocketTest, MergedDatagramsKeepTheirBorders) {
  const UniqueFd fd = socket(networks_.source, "127.0.0.1", 5307);
  const UniqueFd sender = socket(networks_.source, "127.0.0.1", 1234);
  constexpr int kSegment = 103;  // UDP_SEGMENT
  ASSERT_TRUE(set(fd, IPPROTO_UDP, 104 /* UDP_GRO */, 1) && set(sender, IPPROTO_UDP, kSegment, 4));
  send(sender, address("127.0.0.1", 5307), "one two thr");
  const UniqueFd moved = restore(*capture(fd.get()));
  const std::vector<std::string> wanted = {"127.0.0.1:1234 one ", "127.0.0.1:1234 two ",
                                           "127.0.0.1:1234 thr"};
  EXPECT_EQ(drain(moved), wanted);
  EXPECT_EQ(drain(fd).size(), 1U);
}

TEST_F(UdpSocketTest, CaptureLeavesTheQueueAndItsOptions) {
  const UniqueFd fd = socket(networks_.source, "10.9.0.2", 5302);
  const KernelAddress to = address("10.9.0.2", 5302);
  ASSERT_TRUE(set_int_option(fd.get(), SOL_SOCKET, SO_PEEK_OFF, 1).ok());
  for (const char* text : {"one", "two"})
    ASSERT_EQ(::sendto(fd.get(), text, 3, 0, to.get(), to.size), 3);
  const std::string state = *capture(fd.get());
  EXPECT_EQ(state, *capture(fd.get()));
  EXPECT_EQ(*get_int_option(fd.get(), SOL_SOCKET, SO_PEEK_OFF), 1);
  EXPECT_EQ(*get_int_option(fd.get(), IPPROTO_IP, IP_PKTINFO), 0);
  EXPECT_EQ(receive(fd.get()), "10.9.0.2:5302 one");
  EXPECT_EQ(receive(fd.get()), "10.9.0.2:5302 two");
}

TEST_F(UdpSocketTest, ConnectedSocketWithEveryOptionMoves) {
  const UniqueFd fd = socket(networks_.source, "10.9.0.2", 5301);
  const KernelAddress to = address("10.9.0.1", 99);
  ASSERT_EQ(::connect(fd.get(), to.get(), to.size), 0);
  const struct {
    int level, name, value;
  } ints[] = {{SOL_SOCKET, SO_REUSEADDR, 1},     {SOL_SOCKET, SO_REUSEPORT, 1},
              {SOL_SOCKET, SO_BROADCAST, 1},     {SOL_SOCKET, SO_NO_CHECK, 1},
              {SOL_SOCKET, SO_PRIORITY, 4},      {SOL_SOCKET, SO_MARK, 9},
              {SOL_SOCKET, SO_RCVBUF, 90000},    {SOL_SOCKET, SO_RXQ_OVFL, 1},
              {SOL_SOCKET, SO_PEEK_OFF, 3},      {SOL_SOCKET, SO_TIMESTAMPNS, 1},
              {SOL_SOCKET, SO_RCVMARK, 1},       {IPPROTO_IP, IP_TOS, 0x20},
              {IPPROTO_IP, IP_TTL, 7},           {IPPROTO_IP, IP_RECVTOS, 1},
              {IPPROTO_IP, IP_RECVTTL, 1},       {IPPROTO_IP, IP_PKTINFO, 1},
              {IPPROTO_IP, IP_RECVERR, 1},       {IPPROTO_IP, IP_MTU_DISCOVER, 3},
              {IPPROTO_IP, IP_MULTICAST_TTL, 5}, {IPPROTO_IP, IP_MULTICAST_LOOP, 0},
              {IPPROTO_IP, IP_MULTICAST_ALL, 0}, {IPPROTO_UDP, 104, 1}};
  for (const auto& option : ints)
    ASSERT_TRUE(set_int_option(fd.get(), option.level, option.name, option.value).ok())
        << option.name;
  ASSERT_EQ(::setsockopt(fd.get(), SOL_SOCKET, SO_BINDTODEVICE, "eth0", 4), 0);
  const std::string state = *capture(fd.get());
  const UniqueFd moved = restore(state);
  EXPECT_EQ(*capture(moved.get()), state);
  UdpSocketState parsed;
  ASSERT_TRUE(parsed.ParseFromString(state));
  EXPECT_GE(parsed.common().options_size(), 20);
  EXPECT_EQ(udp_socket_kind().describe(state), "udp 10.9.0.2:5301 -> 10.9.0.1:99, 0 datagrams");
}

}  // namespace
}  // namespace godwit::resource
