// A service's sockets in its clone: they are closed to whom the original talks to, and say nothing.
#include <linux/if_packet.h>
#include <net/ethernet.h>
#include <net/if.h>

#include "resource/tcp_socket/testing_connection.h"
#include "resource/udp_socket/udp_socket.h"
#include "resource/udp_socket/udp_socket.pb.h"

namespace godwit::resource::testing {
namespace {

using std::string_literals::operator""s;

constexpr char kClone4[] = "10.9.0.3", kClone6[] = "fd00:9::3";

// All that leaves an interface of IP, by protocol.
class Sniffer {
 public:
  explicit Sniffer(const Network& network)
      : fd_(network.in([] {
          UniqueFd fd(::socket(AF_PACKET, SOCK_DGRAM | SOCK_CLOEXEC, htons(ETH_P_ALL)));
          sockaddr_ll at{};
          at.sll_family = AF_PACKET;
          at.sll_protocol = htons(ETH_P_ALL);
          at.sll_ifindex = static_cast<int>(::if_nametoindex("eth0"));
          EXPECT_EQ(::bind(fd.get(), reinterpret_cast<sockaddr*>(&at), sizeof at), 0);
          return fd;
        })) {}
  int sent(uint8_t protocol) const {
    int count = 0;
    while (true) {
      unsigned char packet[64];
      sockaddr_ll from{};
      socklen_t size = sizeof from;
      const ssize_t n = ::recvfrom(fd_.get(), packet, sizeof packet, MSG_DONTWAIT,
                                   reinterpret_cast<sockaddr*>(&from), &size);
      if (n < 0) return count;
      if (from.sll_pkttype != PACKET_OUTGOING) continue;
      const uint8_t which = from.sll_protocol == htons(ETH_P_IP) ? packet[9] : packet[6];
      if (which == protocol) ++count;
    }
  }

 private:
  UniqueFd fd_;
};

class CloneTest : public TcpSocketTest {
 protected:
  void SetUp() override {
    ASSERT_TRUE(networks_.destination.ip("addr del 10.9.0.2/24 dev eth0"));
    ASSERT_TRUE(networks_.destination.ip("addr del fd00:9::2/64 dev eth0"));
    ASSERT_TRUE(networks_.destination.ip("addr add 10.9.0.3/24 dev eth0"));
    ASSERT_TRUE(networks_.destination.ip("addr add fd00:9::3/64 dev eth0 nodad"));
    ASSERT_TRUE(addresses_.add(kMine4, kClone4).ok());
    ASSERT_TRUE(addresses_.add("fd00:9::2", kClone6).ok());
    ASSERT_TRUE(networks_.connect_destination(true));
  }
  std::string cloned(const absl::StatusOr<std::string>& state) {
    EXPECT_TRUE(state.ok()) << state.status();
    auto changed = tcp_socket_kind().for_clone(*state, addresses_);
    EXPECT_TRUE(changed.ok()) << changed.status();
    return changed.value_or("");
  }
  // The original's socket stays: out of repair mode again.
  UniqueFd clone() {
    capture_files_.is_final = false;
    const std::string early = cloned(capture(mine_.get()));
    capture_files_.is_final = true;
    const std::string last = cloned(capture(mine_.get()));
    EXPECT_TRUE(tcp_end_capture(mine_.get()).ok());
    state_ = parsed(last);
    UniqueFd there = restore(early, last);
    finish(there.get(), last);
    return there;
  }
  // As of a connection that the peer has reset.
  static void expect_reset(int fd, const std::string& unread) {
    pollfd polled{fd, POLLIN | POLLOUT, 0};
    EXPECT_EQ(::poll(&polled, 1, 0), 1);
    EXPECT_NE(polled.revents & (POLLERR | POLLHUP), 0);
    char buffer[4096];
    std::string got;
    ssize_t n = 0;
    while ((n = ::recv(fd, buffer, sizeof buffer, MSG_DONTWAIT)) > 0)
      got.append(buffer, static_cast<size_t>(n));
    EXPECT_EQ(got, unread);
    if (n < 0) {
      EXPECT_EQ(errno, ECONNRESET);
    }
    EXPECT_EQ(::recv(fd, buffer, sizeof buffer, MSG_DONTWAIT), 0);
    EXPECT_EQ(::send(fd, "x", 1, MSG_NOSIGNAL), -1);
    EXPECT_EQ(errno, EPIPE);
  }
  CloneAddresses addresses_;
};

TEST_F(CloneTest, AConnectionIsResetAndTheOriginalGoesOn) {
  connect(kMine4, 8100);
  expect_flow();
  const Sniffer sniffer(networks_.destination);
  const UniqueFd there = clone();
  EXPECT_TRUE(state_.ended());
  expect_reset(there.get(), "");
  EXPECT_EQ(sniffer.sent(IPPROTO_TCP), 0);
  expect_flow();
}

TEST_F(CloneTest, WhatWasReceivedIsReadBeforeTheEndAndNothingIsSent) {
  connect(kMine4, 8101);
  const std::string in = pattern(3000, 1);
  ASSERT_EQ(::send(peer_.get(), in.data(), in.size(), 0), ssize_t(in.size()));
  ASSERT_TRUE(wait_until([&] { return bytes_in(mine_.get(), SIOCINQ) == int(in.size()); }));
  ASSERT_TRUE(networks_.connect_source(false));
  const std::string out = pattern(100000, 2);
  const ssize_t queued = ::send(mine_.get(), out.data(), out.size(), MSG_DONTWAIT);
  ASSERT_GT(queued, 0);
  const Sniffer sniffer(networks_.destination);
  const UniqueFd there = clone();
  expect_reset(there.get(), in);
  EXPECT_EQ(sniffer.sent(IPPROTO_TCP), 0);
  ASSERT_TRUE(networks_.connect_source(true));
  EXPECT_TRUE(read_bytes(peer_.get(), size_t(queued)) == out.substr(0, size_t(queued)));
  EXPECT_TRUE(read_bytes(mine_.get(), in.size()) == in);
}

TEST_F(CloneTest, AHalfClosedConnectionEndsAsSuch) {
  connect("fd00:9::2", 8102);
  ASSERT_EQ(::send(peer_.get(), "last words", 10, 0), 10);
  ASSERT_EQ(::shutdown(peer_.get(), SHUT_WR), 0);
  ASSERT_TRUE(wait_until([&] { return tcp_state(mine_.get()) == TCP_STATE_CLOSE_WAIT; }));
  const Sniffer sniffer(networks_.destination);
  const UniqueFd there = clone();
  expect_reset(there.get(), "last words");
}

TEST_F(CloneTest, OursThatWasShutDownEnds) {
  connect(kMine4, 8103);
  ASSERT_EQ(::send(mine_.get(), "request", 7, 0), 7);
  ASSERT_EQ(::shutdown(mine_.get(), SHUT_WR), 0);
  ASSERT_TRUE(wait_until([&] { return tcp_state(mine_.get()) == TCP_STATE_FIN_WAIT2; }));
  const Sniffer sniffer(networks_.destination);
  const UniqueFd there = clone();
  expect_reset(there.get(), "");
  EXPECT_EQ(sniffer.sent(IPPROTO_TCP), 0);
}

TEST_F(CloneTest, AListenerOnTheOldAddressListensOnTheNewOne) {
  mine_ = listener(kMine4, 8104);
  const UniqueFd there = clone();
  EXPECT_FALSE(state_.ended());
  const auto bound = local_address(there.get());
  ASSERT_TRUE(bound.ok());
  InternetAddress text;
  ASSERT_TRUE(encode_address(
                  *bound, [](auto action) { return action(); }, text)
                  .ok());
  EXPECT_EQ(text_of(text), "10.9.0.3:8104");
  const UniqueFd client = socket_in(networks_.peer, kClone4);
  const KernelAddress to = address(kClone4, 8104);
  EXPECT_EQ(::connect(client.get(), to.get(), to.size), 0) << strerror(errno);
}

TEST_F(CloneTest, UdpTalksToNobodyThatTheOriginalTalksTo) {
  UniqueFd udp =
      networks_.source.in([] { return UniqueFd(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0)); });
  const KernelAddress local = address(kMine4, 8105), remote = address(kPeer4, 8106);
  ASSERT_EQ(::bind(udp.get(), local.get(), local.size), 0);
  ASSERT_EQ(::connect(udp.get(), remote.get(), remote.size), 0);
  capture_files_.is_final = true;
  const auto state = udp_socket_kind().capture(open_file(udp.get()), source_);
  ASSERT_TRUE(state.ok()) << state.status();
  const auto changed = udp_socket_kind().for_clone(*state, addresses_);
  ASSERT_TRUE(changed.ok()) << changed.status();
  restore_files_.is_final = true;
  const Sniffer sniffer(networks_.destination);
  const auto there = udp_socket_kind().create(1, *changed, destination_);
  ASSERT_TRUE(there.ok()) << there.status();
  EXPECT_EQ(::send(there->get(), "secret", 6, 0), 6);
  ASSERT_TRUE(wait_until([&] { return ::send(there->get(), "secret", 6, 0) < 0; }));
  EXPECT_EQ(errno, ECONNREFUSED);
  EXPECT_EQ(sniffer.sent(IPPROTO_UDP), 0);
  // Within the service it goes on.
  UdpSocketState inside;
  ASSERT_TRUE(inside.ParseFromString(*state));
  inside.mutable_remote()->set_ip("\x7f\0\0\1"s);
  const auto kept = udp_socket_kind().for_clone(inside.SerializeAsString(), addresses_);
  UdpSocketState same;
  ASSERT_TRUE(kept.ok() && same.ParseFromString(*kept));
  EXPECT_EQ(text_of(same.remote()), "127.0.0.1:8106");
  EXPECT_EQ(text_of(same.local()), "10.9.0.3:8105");
}

TEST(CloneAddressesTest, KnowsMappedAndInnerAddresses) {
  CloneAddresses addresses;
  ASSERT_TRUE(addresses.add("10.9.0.2", "10.9.0.3").ok());
  EXPECT_FALSE(addresses.add("10.9.0.2", "fd00::1").ok());
  EXPECT_FALSE(addresses.add("x", "fd00::1").ok());
  const std::string prefix = "\0\0\0\0\0\0\0\0\0\0\xff\xff"s;
  EXPECT_EQ(addresses.translated("\x0a\x09\0\x02"s), "\x0a\x09\0\x03"s);
  EXPECT_EQ(addresses.translated(prefix + "\x0a\x09\0\x02"s), prefix + "\x0a\x09\0\x03"s);
  EXPECT_EQ(addresses.translated("\x0a\x09\0\x04"s), "\x0a\x09\0\x04"s);
  EXPECT_TRUE(addresses.is_inside("\x0a\x09\0\x03"s));
  EXPECT_TRUE(addresses.is_inside(prefix + "\x7f\0\0\x09"s));
  EXPECT_TRUE(addresses.is_inside(std::string(15, '\0') + '\1'));
  EXPECT_FALSE(addresses.is_inside("\x0a\x09\0\x02"s));
  EXPECT_FALSE(addresses.is_inside(""));
}

}  // namespace
}  // namespace godwit::resource::testing
