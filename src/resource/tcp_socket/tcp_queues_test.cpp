#include "resource/tcp_socket/testing_connection.h"

namespace godwit::resource::testing {
namespace {

using TcpQueuesTest = TcpSocketTest;

TEST_F(TcpQueuesTest, UnreadDataInBothDirectionsArriveOnce) {
  connect(kMine4, 8004);
  const std::string in = pattern(50000, 1), out = pattern(60000, 2);
  ASSERT_EQ(::send(peer_.get(), in.data(), in.size(), 0), ssize_t(in.size()));
  ASSERT_EQ(::send(mine_.get(), out.data(), out.size(), 0), ssize_t(out.size()));
  ASSERT_TRUE(wait_until([&] {
    return bytes_in(mine_.get(), SIOCINQ) == int(in.size()) && bytes_in(mine_.get(), SIOCOUTQ) == 0;
  }));
  move();
  EXPECT_EQ(state_.connection().receive_queue(), in);
  EXPECT_TRUE(read_bytes(mine_.get(), in.size()) == in);
  EXPECT_TRUE(read_bytes(peer_.get(), out.size()) == out);
  expect_flow();
}

TEST_F(TcpQueuesTest, SentButUnacknowledgedDataIsSentAgain) {
  connect(kMine4, 8005);
  lose_what_is_sent();
  const std::string out = pattern(200000, 3);
  const ssize_t queued = ::send(mine_.get(), out.data(), out.size(), MSG_DONTWAIT);
  ASSERT_GT(queued, 0);
  move();
  EXPECT_EQ(state_.connection().send_queue(), out.substr(0, size_t(queued)));
  EXPECT_GT(state_.connection().unsent(), 0U);
  EXPECT_LT(state_.connection().unsent(), size_t(queued));
  EXPECT_TRUE(read_bytes(peer_.get(), size_t(queued)) == out.substr(0, size_t(queued)));
  expect_flow();
}

TEST_F(TcpQueuesTest, FullWindowsBothWaysStayExact) {
  connect(kMine4, 8006);
  std::string in = pattern(8 << 20, 4), out = pattern(8 << 20, 5);
  const auto fill = [](int fd, std::string& bytes) {
    size_t at = 0;
    while (at < bytes.size()) {
      const ssize_t n = ::send(fd, bytes.data() + at, bytes.size() - at, MSG_DONTWAIT);
      if (n > 0) {
        at += size_t(n);
        continue;
      }
      pollfd p{.fd = fd, .events = POLLOUT, .revents = 0};
      if (::poll(&p, 1, 400) <= 0) break;  // full: the other side does not read
    }
    bytes.resize(at);
  };
  fill(peer_.get(), in);
  fill(mine_.get(), out);
  move();
  EXPECT_GT(state_.connection().unsent(), 0U);
  EXPECT_GT(state_.connection().receive_queue().size(), 100000U);
  EXPECT_TRUE(read_bytes(mine_.get(), in.size()) == in);
  EXPECT_TRUE(read_bytes(peer_.get(), out.size()) == out);
  expect_flow();
}

TEST_F(TcpQueuesTest, CloseWaitKeepsDataAndEndOfStream) {
  connect(kMine4, 8010);
  ASSERT_EQ(::send(peer_.get(), "last words", 10, 0), 10);
  ASSERT_EQ(::shutdown(peer_.get(), SHUT_WR), 0);
  ASSERT_TRUE(wait_until([&] { return tcp_state(mine_.get()) == TCP_STATE_CLOSE_WAIT; }));
  move();
  EXPECT_EQ(tcp_state(mine_.get()), TCP_STATE_CLOSE_WAIT);
  EXPECT_EQ(read_bytes(mine_.get(), 100), "last words");  // and then the end
  const std::string out = pattern(100000, 6);
  ASSERT_EQ(::send(mine_.get(), out.data(), out.size(), MSG_NOSIGNAL), ssize_t(out.size()));
  EXPECT_TRUE(read_bytes(peer_.get(), out.size()) == out);
  mine_.reset();
  EXPECT_EQ(read_bytes(peer_.get(), 1), "");
  EXPECT_TRUE(wait_until([&] { return tcp_state(peer_.get()) == TCP_STATE_CLOSE; }));
}

TEST_F(TcpQueuesTest, FinWait2StillReads) {
  connect(kMine4, 8011);
  ASSERT_EQ(::send(mine_.get(), "request", 7, 0), 7);
  ASSERT_EQ(::shutdown(mine_.get(), SHUT_WR), 0);
  ASSERT_TRUE(wait_until([&] { return tcp_state(mine_.get()) == TCP_STATE_FIN_WAIT2; }));
  move();
  EXPECT_EQ(tcp_state(mine_.get()), TCP_STATE_FIN_WAIT2);
  EXPECT_EQ(read_bytes(peer_.get(), 100), "request");
  const std::string in = pattern(100000, 7);
  ASSERT_EQ(::send(peer_.get(), in.data(), in.size(), MSG_NOSIGNAL), ssize_t(in.size()));
  EXPECT_TRUE(read_bytes(mine_.get(), in.size()) == in);
  peer_.reset();
  EXPECT_EQ(read_bytes(mine_.get(), 1), "");
}

TEST_F(TcpQueuesTest, FinWait1SendsItsFinAgain) {
  connect(kMine4, 8012);
  lose_what_is_sent();
  ASSERT_EQ(::send(mine_.get(), "request", 7, 0), 7);
  ASSERT_EQ(::shutdown(mine_.get(), SHUT_WR), 0);
  move();
  EXPECT_EQ(state_.state(), TCP_STATE_FIN_WAIT1);
  EXPECT_FALSE(state_.connection().fin_unsent());
  EXPECT_EQ(read_bytes(peer_.get(), 100), "request");
  EXPECT_TRUE(wait_until([&] { return tcp_state(mine_.get()) == TCP_STATE_FIN_WAIT2; }));
}

TEST_F(TcpQueuesTest, FinBehindUnsentDataArrivesAfterThem) {
  connect(kMine4, 8013);
  lose_what_is_sent();
  const std::string out = pattern(200000, 8);
  const ssize_t queued = ::send(mine_.get(), out.data(), out.size(), MSG_DONTWAIT);
  ASSERT_EQ(::shutdown(mine_.get(), SHUT_WR), 0);
  move();
  EXPECT_EQ(state_.state(), TCP_STATE_FIN_WAIT1);
  EXPECT_TRUE(state_.connection().fin_unsent());
  EXPECT_TRUE(read_bytes(peer_.get(), out.size()) == out.substr(0, size_t(queued)));
  EXPECT_TRUE(wait_until([&] { return tcp_state(mine_.get()) == TCP_STATE_FIN_WAIT2; }));
}

TEST_F(TcpQueuesTest, LastAckMoves) {
  connect(kMine4, 8014);
  ASSERT_EQ(::send(peer_.get(), "unread", 6, 0), 6);
  ASSERT_EQ(::shutdown(peer_.get(), SHUT_WR), 0);
  ASSERT_TRUE(wait_until([&] { return tcp_state(mine_.get()) == TCP_STATE_CLOSE_WAIT; }));
  lose_what_is_sent();
  ASSERT_EQ(::send(mine_.get(), "answer", 6, 0), 6);
  ASSERT_EQ(::shutdown(mine_.get(), SHUT_WR), 0);
  move();
  EXPECT_EQ(state_.state(), TCP_STATE_LAST_ACK);
  EXPECT_EQ(read_bytes(peer_.get(), 100), "answer");
  EXPECT_EQ(read_bytes(mine_.get(), 100), "unread");
  EXPECT_TRUE(wait_until([&] { return tcp_state(mine_.get()) == TCP_STATE_CLOSE; }));
}

TEST_F(TcpQueuesTest, ClosingMoves) {
  connect(kMine4, 8015);
  // Both close at once, and what this side sends is lost.
  lose_what_is_sent();
  ASSERT_EQ(::shutdown(mine_.get(), SHUT_WR), 0);
  ASSERT_EQ(::shutdown(peer_.get(), SHUT_WR), 0);
  ASSERT_TRUE(wait_until([&] { return tcp_state(mine_.get()) == TCP_STATE_CLOSING; }));
  move();
  EXPECT_EQ(state_.state(), TCP_STATE_CLOSING);
  EXPECT_EQ(read_bytes(mine_.get(), 1), "");
  EXPECT_EQ(read_bytes(peer_.get(), 1), "");
}

TEST_F(TcpQueuesTest, BothEndsInsideTheTreeMove) {
  const UniqueFd listening = listener("127.0.0.1", 8060);
  peer_ = socket_in(networks_.source, kMine4);
  const KernelAddress to = address("127.0.0.1", 8060);
  ASSERT_EQ(::connect(peer_.get(), to.get(), to.size), 0);
  mine_.reset(::accept4(listening.get(), nullptr, nullptr, SOCK_CLOEXEC));
  const std::string a = pattern(100000, 9), b = pattern(70000, 10);
  ASSERT_EQ(::send(mine_.get(), a.data(), a.size(), 0), ssize_t(a.size()));
  ASSERT_EQ(::send(peer_.get(), b.data(), b.size(), 0), ssize_t(b.size()));
  ASSERT_EQ(::shutdown(peer_.get(), SHUT_WR), 0);
  ASSERT_TRUE(wait_until([&] { return tcp_state(peer_.get()) == TCP_STATE_FIN_WAIT2; }));
  const std::string mine = *capture(mine_.get()), peer = *capture(peer_.get());
  UniqueFd mine_there = restore(mine, mine), peer_there = restore(peer, peer);
  finish(mine_there.get(), mine);
  finish(peer_there.get(), peer);
  EXPECT_EQ(tcp_state(mine_there.get()), TCP_STATE_CLOSE_WAIT);
  EXPECT_EQ(tcp_state(peer_there.get()), TCP_STATE_FIN_WAIT2);
  EXPECT_TRUE(read_bytes(peer_there.get(), a.size()) == a);
  EXPECT_TRUE(read_bytes(mine_there.get(), b.size() + 1) == b);
  ASSERT_EQ(::send(mine_there.get(), "more", 4, MSG_NOSIGNAL), 4);
  EXPECT_EQ(read_bytes(peer_there.get(), 4), "more");
}

}  // namespace
}  // namespace godwit::resource::testing
