#include "resource/tcp_socket/tcp_socket.h"

#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <linux/sockios.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/ioctl.h>

#include <cstring>

#include "base/clock.h"
#include "resource/socket_options/address.h"
#include "resource/socket_options/options.h"
#include "resource/socket_options/testing_networks.h"
#include "resource/tcp_socket/tcp_socket.pb.h"

namespace godwit::resource {
namespace {

using testing::FakeCaptureContext;
using testing::FakeRestoreContext;
using ::testing::HasSubstr;
using testing::NetworkCapture;
using testing::NetworkRestore;
using testing::Networks;

constexpr char kMine4[] = "10.9.0.2", kPeer4[] = "10.9.0.1";

KernelAddress address(const std::string& ip, int port) {
  InternetAddress text;
  in6_addr bytes{};
  const bool v6 = ip.find(':') != std::string::npos;
  EXPECT_EQ(::inet_pton(v6 ? AF_INET6 : AF_INET, ip.c_str(), &bytes), 1);
  text.set_ip(&bytes, v6 ? 16 : 4);
  text.set_port(static_cast<uint32_t>(port));
  return *decode_address(text, [](auto action) { return action(); });
}

std::string pattern(size_t size, int seed) {
  std::string bytes(size, '\0');
  uint32_t x = static_cast<uint32_t>(seed) * 2654435761U + 1;
  for (char& c : bytes) {
    x = x * 1664525 + 1013904223;
    c = static_cast<char>(x >> 24);
  }
  return bytes;
}

// Exactly `size` bytes, or fewer at the end of the stream or of 20 seconds.
std::string read_bytes(int fd, size_t size) {
  const Deadline deadline = Deadline::in(absl::Seconds(20));
  std::string got;
  while (got.size() < size && !deadline.passed()) {
    pollfd p{.fd = fd, .events = POLLIN, .revents = 0};
    if (::poll(&p, 1, deadline.remaining_ms()) <= 0) break;
    char buffer[65536];
    const ssize_t n = ::recv(fd, buffer, std::min(sizeof buffer, size - got.size()), MSG_DONTWAIT);
    if (n == 0) break;
    if (n < 0 && errno != EAGAIN) break;
    if (n > 0) got.append(buffer, static_cast<size_t>(n));
  }
  return got;
}

bool wait_until(absl::FunctionRef<bool()> condition) {
  const Deadline deadline = Deadline::in(absl::Seconds(20));
  while (!condition()) {
    if (deadline.passed()) return false;
    ::poll(nullptr, 0, 1);
  }
  return true;
}

int tcp_state(int fd) {
  tcp_info info{};
  socklen_t size = sizeof info;
  EXPECT_EQ(::getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &size), 0);
  return info.tcpi_state;
}

int bytes_in(int fd, unsigned long request) {
  int bytes = -1;
  EXPECT_EQ(::ioctl(fd, request, &bytes), 0);
  return bytes;
}

class TcpSocketTest : public ::testing::Test {
 protected:
  UniqueFd listener(const std::string& ip, int port, bool at_source = true) {
    UniqueFd fd = socket_in(at_source ? networks_.source : networks_.destination, ip);
    const int one = 1;
    ::setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    const KernelAddress a = address(ip, port);
    EXPECT_EQ(::bind(fd.get(), a.get(), a.size), 0) << strerror(errno);
    EXPECT_EQ(::listen(fd.get(), 77), 0);
    return fd;
  }
  UniqueFd socket_in(const testing::Network& network, const std::string& ip) {
    return network.in([&] {
      return UniqueFd(::socket(ip.find(':') != std::string::npos ? AF_INET6 : AF_INET,
                               SOCK_STREAM | SOCK_CLOEXEC, 0));
    });
  }
  // A connection into the capsule: `mine` is the accepted end.
  void connect(const std::string& ip, int port) {
    const UniqueFd listening = listener(ip, port);
    peer_ = socket_in(networks_.peer, ip);
    const KernelAddress to = address(ip, port);
    ASSERT_EQ(::connect(peer_.get(), to.get(), to.size), 0) << strerror(errno);
    mine_.reset(::accept4(listening.get(), nullptr, nullptr, SOCK_CLOEXEC));
    ASSERT_TRUE(mine_);
  }

  absl::StatusOr<std::string> capture(int fd) {
    return tcp_socket_kind().capture(testing::open_file(fd), source_);
  }
  TcpSocketState parsed(const std::string& state) {
    TcpSocketState message;
    EXPECT_TRUE(message.ParseFromString(state));
    return message;
  }
  // Early with the state of a round, then with the final one, as the engine does.
  UniqueFd restore(const std::string& early, const std::string& final_state) {
    restore_files_.is_final = false;
    auto fd = tcp_socket_kind().create(1, early, destination_);
    EXPECT_TRUE(fd.ok()) << fd.status();
    if (!fd.ok()) return UniqueFd();
    restore_files_.is_final = true;
    auto updated = tcp_socket_kind().update(fd->get(), early, final_state, destination_);
    EXPECT_TRUE(updated.ok() && *updated) << updated.status();
    return *std::move(fd);
  }
  void finish(int fd, const std::string& state) {
    tracee::Batch batch;
    auto check = tcp_socket_kind().finish(fd, state, {1}, 5, batch, destination_);
    EXPECT_TRUE(check.ok()) << check.status();
  }
  // Moves mine_ to the destination and proves that its state is the same there.
  void move() {
    capture_files_.is_final = false;
    auto early = capture(mine_.get());
    ASSERT_TRUE(early.ok()) << early.status();
    ASSERT_TRUE(networks_.connect_source(false));
    capture_files_.is_final = true;
    auto state = capture(mine_.get());
    ASSERT_TRUE(state.ok()) << state.status();
    state_ = parsed(*state);
    SCOPED_TRACE(tcp_socket_kind().describe(*state));
    UniqueFd there = restore(*early, *state);
    ASSERT_TRUE(there);
    finish(there.get(), *state);
    // Again, and compared: only clocks have moved on, and what was unsent may now be sent.
    auto again = capture(there.get());
    ASSERT_TRUE(again.ok()) << again.status();
    ASSERT_TRUE(tcp_end_capture(there.get()).ok());
    TcpSocketState first = state_, second = parsed(*again);
    for (TcpSocketState* s : {&first, &second}) {
      s->mutable_connection()->clear_timestamp();
      s->mutable_connection()->clear_unsent();
      s->mutable_connection()->clear_round_trip_us();
      s->mutable_connection()->clear_fin_unsent();
      s->mutable_common()->clear_status_flags();
    }
    EXPECT_TRUE(first.connection().receive_queue() == second.connection().receive_queue());
    EXPECT_TRUE(first.connection().send_queue() == second.connection().send_queue());
    for (TcpSocketState* s : {&first, &second}) {
      s->mutable_connection()->clear_receive_queue();
      s->mutable_connection()->clear_send_queue();
    }
    EXPECT_EQ(first.DebugString(), second.DebugString());
    tcp_info info{};
    socklen_t size = sizeof info;
    ASSERT_EQ(::getsockopt(there.get(), IPPROTO_TCP, TCP_INFO, &info, &size), 0);
    // Lost data is sent again soon, not after the 3 seconds of a connection without history.
    EXPECT_TRUE(info.tcpi_unacked == 0 || info.tcpi_rto < 1'000'000U) << info.tcpi_rto;
    mine_ = std::move(there);  // the source's, in repair mode, closes without a word
    ASSERT_TRUE(networks_.connect_destination(true));
  }
  // What the source sends goes to a station that does not exist; what it gets still arrives.
  void lose_what_is_sent() {
    ASSERT_TRUE(networks_.source.ip(
        "neigh replace 10.9.0.1 lladdr 02:00:00:00:00:99 dev eth0 nud permanent"));
  }
  void expect_flow(size_t bytes = 300000) {
    for (const auto& [from, to] :
         {std::pair(mine_.get(), peer_.get()), std::pair(peer_.get(), mine_.get())}) {
      const std::string sent = pattern(bytes, from);
      std::string got;
      size_t at = 0;
      while (at < sent.size()) {
        const ssize_t n =
            ::send(from, sent.data() + at, std::min<size_t>(20000, sent.size() - at), MSG_NOSIGNAL);
        ASSERT_GT(n, 0) << strerror(errno);
        got += read_bytes(to, static_cast<size_t>(n));
        at += static_cast<size_t>(n);
      }
      ASSERT_EQ(got.size(), sent.size());
      ASSERT_TRUE(got == sent);
    }
  }

  Networks networks_;
  FakeCaptureContext capture_files_;
  FakeRestoreContext restore_files_;
  NetworkCapture source_{networks_.source, capture_files_};
  NetworkRestore destination_{networks_.destination, restore_files_};
  UniqueFd mine_, peer_;
  TcpSocketState state_;
};

TEST_F(TcpSocketTest, IdleConnectionMovesAndDataFlowsBothWays) {
  connect(kMine4, 8000);
  expect_flow();
  move();
  EXPECT_EQ(state_.state(), TCP_STATE_ESTABLISHED);
  EXPECT_TRUE(state_.connection().timestamps());
  expect_flow();
}

TEST_F(TcpSocketTest, Ipv6ConnectionMoves) {
  connect("fd00:9::2", 8001);
  move();
  expect_flow();
}

TEST_F(TcpSocketTest, MappedIpv4ConnectionMoves) {
  UniqueFd listening = listener("::", 8002);
  peer_ = socket_in(networks_.peer, kMine4);
  const KernelAddress to = address(kMine4, 8002);
  ASSERT_EQ(::connect(peer_.get(), to.get(), to.size), 0);
  mine_.reset(::accept4(listening.get(), nullptr, nullptr, SOCK_CLOEXEC));
  ASSERT_EQ(::send(peer_.get(), "end", 3, 0), 3);
  ASSERT_EQ(::shutdown(peer_.get(), SHUT_WR), 0);
  ASSERT_TRUE(wait_until([&] { return tcp_state(mine_.get()) == TCP_STATE_CLOSE_WAIT; }));
  move();
  EXPECT_EQ(state_.family(), AF_INET6);
  EXPECT_EQ(read_bytes(mine_.get(), 10), "end");
  ASSERT_EQ(::send(mine_.get(), "reply", 5, MSG_NOSIGNAL), 5);
  EXPECT_EQ(read_bytes(peer_.get(), 5), "reply");
}

TEST_F(TcpSocketTest, ConnectionsWithoutTimestampsMove) {
  for (const auto* network : {&networks_.source, &networks_.peer, &networks_.destination})
    ASSERT_TRUE(network->in(
        [] { return kernel::write_file("/proc/sys/net/ipv4/tcp_timestamps", "0").ok(); }));
  connect(kMine4, 8003);
  move();
  EXPECT_FALSE(state_.connection().timestamps());
  expect_flow();
}

TEST_F(TcpSocketTest, UnreadDataInBothDirectionsArriveOnce) {
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

TEST_F(TcpSocketTest, SentButUnacknowledgedDataIsSentAgain) {
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

TEST_F(TcpSocketTest, FullWindowsBothWaysStayExact) {
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

TEST_F(TcpSocketTest, CloseWaitKeepsDataAndEndOfStream) {
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

TEST_F(TcpSocketTest, FinWait2StillReads) {
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

TEST_F(TcpSocketTest, FinWait1SendsItsFinAgain) {
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

TEST_F(TcpSocketTest, FinBehindUnsentDataArrivesAfterThem) {
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

TEST_F(TcpSocketTest, LastAckMoves) {
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

TEST_F(TcpSocketTest, ClosingMoves) {
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

TEST_F(TcpSocketTest, EveryOptionOfAConnectionMoves) {
  connect(kMine4, 8020);
  const int fd = mine_.get();
  const struct {
    int level, name, value;
  } ints[] = {{SOL_SOCKET, SO_KEEPALIVE, 1},
              {SOL_SOCKET, SO_OOBINLINE, 1},
              {SOL_SOCKET, SO_DONTROUTE, 1},
              {SOL_SOCKET, SO_REUSEADDR, 0},
              {SOL_SOCKET, SO_REUSEPORT, 1},
              {SOL_SOCKET, SO_PRIORITY, 5},
              {SOL_SOCKET, SO_RCVLOWAT, 3},
              {SOL_SOCKET, SO_MARK, 77},
              {SOL_SOCKET, SO_TIMESTAMP, 1},
              {SOL_SOCKET, SO_PEEK_OFF, 4},
              {SOL_SOCKET, SO_ZEROCOPY, 1},
              {SOL_SOCKET, SO_SNDBUF, 50000},
              {SOL_SOCKET, SO_RCVBUF, 60000},
              {IPPROTO_TCP, TCP_NODELAY, 1},
              {IPPROTO_TCP, TCP_KEEPIDLE, 33},
              {IPPROTO_TCP, TCP_KEEPINTVL, 11},
              {IPPROTO_TCP, TCP_KEEPCNT, 4},
              {IPPROTO_TCP, TCP_LINGER2, 17},
              {IPPROTO_TCP, TCP_USER_TIMEOUT, 90000},
              {IPPROTO_TCP, TCP_NOTSENT_LOWAT, 16384},
              {IPPROTO_TCP, TCP_THIN_LINEAR_TIMEOUTS, 1},
              {IPPROTO_TCP, TCP_INQ, 1},
              {IPPROTO_IP, IP_TOS, 0x10},
              {IPPROTO_IP, IP_TTL, 61},
              {IPPROTO_IP, IP_MTU_DISCOVER, 2},
              {IPPROTO_IP, IP_RECVERR, 1},
              {IPPROTO_IP, IP_MINTTL, 3},
              {IPPROTO_IP, IP_FREEBIND, 1},
              {IPPROTO_IP, IP_TRANSPARENT, 1},
              {IPPROTO_TCP, TCP_CORK, 1}};
  for (const auto& option : ints)
    ASSERT_TRUE(set_int_option(fd, option.level, option.name, option.value).ok()) << option.name;
  const linger lingering{1, 13};
  ASSERT_EQ(::setsockopt(fd, SOL_SOCKET, SO_LINGER, &lingering, sizeof lingering), 0);
  const timeval time{3, 250000};
  ASSERT_EQ(::setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &time, sizeof time), 0);
  ASSERT_EQ(::setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &time, sizeof time), 0);
  ASSERT_EQ(::setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, "reno", 4), 0);
  ASSERT_EQ(::setsockopt(fd, SOL_SOCKET, SO_BINDTODEVICE, "eth0", 4), 0);
  ASSERT_EQ(::fchown(fd, 33, 44), 0);
  ASSERT_EQ(::fcntl(fd, F_SETFL, O_NONBLOCK), 0);
  ASSERT_EQ(::send(peer_.get(), "0123456789", 10, 0), 10);
  ASSERT_TRUE(wait_until([&] { return bytes_in(fd, SIOCINQ) == 10; }));
  move();
  const int moved = mine_.get();
  EXPECT_EQ(state_.congestion(), "reno");
  EXPECT_EQ(state_.common().bind_device(), "eth0");
  EXPECT_EQ(state_.common().buffer_lock(), 3U);
  EXPECT_EQ(*get_int_option(moved, SOL_SOCKET, SO_PEEK_OFF), 4);
  EXPECT_EQ(*get_int_option(moved, SOL_SOCKET, SO_RCVBUF), 120000);
  EXPECT_EQ(::fcntl(moved, F_GETFL) & O_NONBLOCK, O_NONBLOCK);
  char peeked[4] = {};
  EXPECT_EQ(::recv(moved, peeked, 4, MSG_PEEK), 4);
  EXPECT_EQ(std::string(peeked, 4), "4567");
}

TEST_F(TcpSocketTest, RollbackLeavesTheSourceUnharmed) {
  connect(kMine4, 8030);
  ASSERT_EQ(*get_int_option(mine_.get(), SOL_SOCKET, SO_REUSEADDR), 1);
  ASSERT_EQ(::send(peer_.get(), "hello", 5, 0), 5);
  ASSERT_TRUE(wait_until([&] { return bytes_in(mine_.get(), SIOCINQ) == 5; }));
  ASSERT_TRUE(networks_.connect_source(false));
  ASSERT_EQ(::send(mine_.get(), "world", 5, 0), 5);
  ASSERT_TRUE(capture(mine_.get()).ok());
  EXPECT_EQ(*get_int_option(mine_.get(), IPPROTO_TCP, TCP_REPAIR), 1);
  // Another process does it, by pidfd, for any descriptor, twice.
  const UniqueFd pidfd = *kernel::pidfd_open({::getpid()});
  const int fds[] = {mine_.get(), 0, 1, 99999, pidfd.get()};
  EXPECT_TRUE(tcp_end_capture_of(pidfd.get(), fds).ok());
  EXPECT_TRUE(tcp_end_capture_of(pidfd.get(), fds).ok());
  EXPECT_EQ(*get_int_option(mine_.get(), IPPROTO_TCP, TCP_REPAIR), 0);
  EXPECT_EQ(*get_int_option(mine_.get(), SOL_SOCKET, SO_REUSEADDR), 1);
  ASSERT_TRUE(networks_.connect_source(true));
  EXPECT_EQ(read_bytes(mine_.get(), 5), "hello");
  EXPECT_EQ(read_bytes(peer_.get(), 5), "world");
  expect_flow();
}

TEST_F(TcpSocketTest, ARoundDoesNotDisturbTheConnection) {
  connect(kMine4, 8031);
  capture_files_.is_final = false;
  const auto first = capture(mine_.get());
  expect_flow();
  EXPECT_EQ(*first, *capture(mine_.get()));  // traffic alone changes nothing
  EXPECT_EQ(*get_int_option(mine_.get(), IPPROTO_TCP, TCP_REPAIR), 0);
  EXPECT_FALSE(parsed(*first).has_connection());
}

TEST_F(TcpSocketTest, ListenerWithConnectionsOnItsPortMoves) {
  UniqueFd listening = listener(kMine4, 8040);
  for (const auto& [name, value] : {std::pair(TCP_DEFER_ACCEPT, 7), std::pair(TCP_FASTOPEN, 5),
                                    std::pair(TCP_MAXSEG, 1200), std::pair(TCP_SAVE_SYN, 1)})
    ASSERT_TRUE(set_int_option(listening.get(), IPPROTO_TCP, name, value).ok());
  ASSERT_TRUE(set_int_option(listening.get(), IPPROTO_TCP, TCP_DEFER_ACCEPT, 0).ok());
  const KernelAddress to = address(kMine4, 8040);
  std::vector<UniqueFd> peers, accepted;
  for (int i = 0; i < 3; ++i) {
    peers.push_back(socket_in(networks_.peer, kMine4));
    ASSERT_EQ(::connect(peers.back().get(), to.get(), to.size), 0);
    accepted.emplace_back(::accept4(listening.get(), nullptr, nullptr, SOCK_CLOEXEC));
  }
  capture_files_.is_final = false;
  const std::string early = *capture(listening.get());
  std::vector<std::string> early_states, states;
  for (const UniqueFd& fd : accepted) early_states.push_back(*capture(fd.get()));
  ASSERT_TRUE(networks_.connect_source(false));
  capture_files_.is_final = true;
  const std::string last = *capture(listening.get());
  EXPECT_EQ(early, last);
  EXPECT_EQ(parsed(last).backlog(), 77U);
  EXPECT_EQ(tcp_socket_kind().describe(last), "tcp 10.9.0.2:8040 listen");
  for (const UniqueFd& fd : accepted) states.push_back(*capture(fd.get()));

  UniqueFd moved = restore(early, last);
  EXPECT_EQ(parsed(*capture(moved.get())).SerializeAsString(), last);
  std::vector<UniqueFd> there;
  for (size_t i = 0; i < states.size(); ++i) there.push_back(restore(early_states[i], states[i]));
  for (size_t i = 0; i < states.size(); ++i) finish(there[i].get(), states[i]);
  finish(moved.get(), last);
  accepted.clear();
  listening.reset();
  ASSERT_TRUE(networks_.connect_destination(true));
  for (size_t i = 0; i < peers.size(); ++i) {
    mine_ = std::move(there[i]);
    peer_ = std::move(peers[i]);
    expect_flow(1000);
  }
  peer_ = socket_in(networks_.peer, kMine4);
  ASSERT_EQ(::connect(peer_.get(), to.get(), to.size), 0);
  mine_.reset(::accept4(moved.get(), nullptr, nullptr, SOCK_CLOEXEC));
  expect_flow(1000);
}

TEST_F(TcpSocketTest, ReusePortGroupOfAnotherUserMovesAndGrows) {
  std::vector<UniqueFd> there;
  for (int i = 0; i < 2; ++i) {
    UniqueFd fd = socket_in(networks_.source, kMine4);
    ASSERT_TRUE(set_int_option(fd.get(), SOL_SOCKET, SO_REUSEPORT, 1).ok());
    ASSERT_EQ(::fchown(fd.get(), 1234, 1234), 0);
    const KernelAddress a = address(kMine4, 8041);
    ASSERT_EQ(::bind(fd.get(), a.get(), a.size), 0);
    ASSERT_EQ(::listen(fd.get(), 5), 0);
    const std::string state = *capture(fd.get());
    there.push_back(restore(state, state));
  }
  // One more of the same user may join, one of ours may not.
  const KernelAddress a = address(kMine4, 8041);
  for (const uid_t uid : {1234, 0}) {
    UniqueFd fd = socket_in(networks_.destination, kMine4);
    ASSERT_TRUE(set_int_option(fd.get(), SOL_SOCKET, SO_REUSEPORT, 1).ok());
    ASSERT_EQ(::fchown(fd.get(), uid, uid), 0);
    EXPECT_EQ(::bind(fd.get(), a.get(), a.size), uid == 1234 ? 0 : -1);
  }
}

TEST_F(TcpSocketTest, UnconnectedSocketsMove) {
  UniqueFd fresh = socket_in(networks_.source, kMine4);
  UniqueFd bound = socket_in(networks_.source, "::1");
  ASSERT_TRUE(set_int_option(bound.get(), IPPROTO_IPV6, IPV6_V6ONLY, 1).ok());
  ASSERT_TRUE(set_int_option(bound.get(), IPPROTO_IPV6, IPV6_TCLASS, 0x20).ok());
  ASSERT_TRUE(set_int_option(bound.get(), IPPROTO_IPV6, IPV6_UNICAST_HOPS, 9).ok());
  ASSERT_TRUE(set_int_option(bound.get(), SOL_SOCKET, SO_RCVBUF, 1 << 20).ok());
  const KernelAddress a = address("fd00:9::2", 8050);
  ASSERT_EQ(::bind(bound.get(), a.get(), a.size), 0);
  for (const int fd : {fresh.get(), bound.get()}) {
    const std::string state = *capture(fd);
    UniqueFd moved = restore(state, state);
    finish(moved.get(), state);
    EXPECT_EQ(*capture(moved.get()), state) << parsed(state).DebugString();
  }
}

TEST_F(TcpSocketTest, BothEndsInsideTheTreeMove) {
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

TEST_F(TcpSocketTest, PassingStatesAskForAnotherTry) {
  const auto expect_retry = [&](int fd, const std::string& why) {
    capture_files_.is_final = true;
    const auto state = capture(fd);
    EXPECT_EQ(state.status().code(), absl::StatusCode::kUnavailable) << state.status();
    EXPECT_THAT(std::string(message_of(state.status())), HasSubstr(why));
    EXPECT_EQ(*get_int_option(fd, IPPROTO_TCP, TCP_REPAIR), 0);
  };
  const UniqueFd listening = listener(kMine4, 8070);
  peer_ = socket_in(networks_.peer, kMine4);
  const KernelAddress to = address(kMine4, 8070);
  ASSERT_EQ(::connect(peer_.get(), to.get(), to.size), 0);
  expect_retry(listening.get(), "1 connections not yet accepted");
  mine_.reset(::accept4(listening.get(), nullptr, nullptr, SOCK_CLOEXEC));

  ASSERT_EQ(::send(peer_.get(), "!", 1, MSG_OOB), 1);
  ASSERT_TRUE(wait_until([&] {
    pollfd p{.fd = mine_.get(), .events = POLLPRI, .revents = 0};
    return ::poll(&p, 1, 0) == 1;
  }));
  expect_retry(mine_.get(), "urgent data");

  const linger reset{1, 0};
  ASSERT_EQ(::setsockopt(peer_.get(), SOL_SOCKET, SO_LINGER, &reset, sizeof reset), 0);
  peer_.reset();
  ASSERT_TRUE(wait_until([&] { return tcp_state(mine_.get()) == TCP_STATE_CLOSE; }));
  expect_retry(mine_.get(), "over");
  EXPECT_EQ(*get_int_option(mine_.get(), SOL_SOCKET, SO_ERROR), ECONNRESET);  // still there

  UniqueFd connecting = socket_in(networks_.source, kMine4);
  ASSERT_EQ(::fcntl(connecting.get(), F_SETFL, O_NONBLOCK), 0);
  const KernelAddress nobody = address("10.9.0.99", 1);
  ASSERT_EQ(::connect(connecting.get(), nobody.get(), nobody.size), -1);
  expect_retry(connecting.get(), "being made");
}

TEST_F(TcpSocketTest, DamagedStatesAreErrors) {
  connect(kMine4, 8080);
  const std::string state = *capture(mine_.get());
  for (size_t size = 1; size < state.size(); size += 7) {
    auto made = tcp_socket_kind().create(1, state.substr(0, size), destination_);
    if (made.ok()) continue;  // a message may end anywhere between two fields
    EXPECT_FALSE(made.status().message().empty());
  }
  EXPECT_EQ(tcp_socket_kind().create(1, "\xff\xff", destination_).status().code(),
            absl::StatusCode::kDataLoss);
  TcpSocketState odd = parsed(state);
  odd.mutable_connection()->set_unsent(5);
  EXPECT_EQ(tcp_socket_kind().create(1, odd.SerializeAsString(), destination_).status().code(),
            absl::StatusCode::kDataLoss);
}

}  // namespace
}  // namespace godwit::resource
