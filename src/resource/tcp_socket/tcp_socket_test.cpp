#include "resource/tcp_socket/testing_connection.h"

namespace godwit::resource::testing {
namespace {

using ::testing::HasSubstr;

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
  EXPECT_EQ(parsed(*capture(moved.get())).DebugString(), parsed(last).DebugString());
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

// An option set behind the watch's back shows which options were taken.
TEST_F(TcpSocketTest, OptionsOfTheLastRoundStandWhileNobodySetsAny) {
  connect(kMine4, 7050);
  WatchedCapture context(source_);
  const FileKind& kind = tcp_socket_kind();
  const std::string round = kind.settle(open_file(mine_.get()), context);
  ASSERT_FALSE(round.empty());
  ASSERT_TRUE(set_int_option(mine_.get(), IPPROTO_TCP, TCP_USER_TIMEOUT, 4321).ok());
  ASSERT_EQ(::fcntl(mine_.get(), F_SETFL, O_NONBLOCK), 0);
  const auto captured = [&] {
    OpenFile file = open_file(mine_.get());
    file.settled_before = round;
    file.settled = kind.settle(file, context);
    auto state = kind.capture(file, context);
    EXPECT_TRUE(state.ok()) << state.status();
    EXPECT_TRUE(tcp_end_capture(mine_.get()).ok());
    return parsed(*state).common();
  };
  const auto timeout = [](const SocketCommon& common) {
    for (const SocketOption& option : common.options())
      if (option.level() == IPPROTO_TCP && option.name() == TCP_USER_TIMEOUT) return option.value();
    return int64_t{0};
  };
  EXPECT_EQ(timeout(captured()), 0);  // in a later round, too
  context.is_final = true;
  const SocketCommon stands = captured();
  EXPECT_EQ(timeout(stands), 0);
  EXPECT_NE(stands.status_flags() & O_NONBLOCK, 0U);  // always read
  context.changed = true;
  EXPECT_EQ(timeout(captured()), 4321);
}

// recv(2) moves it.
TEST_F(TcpSocketTest, OptionsOfASocketWithAPeekOffsetNeverStand) {
  connect(kMine4, 7051);
  ASSERT_TRUE(set_int_option(mine_.get(), SOL_SOCKET, SO_PEEK_OFF, 3).ok());
  WatchedCapture context(source_);
  OpenFile file = open_file(mine_.get());
  const std::string round = tcp_socket_kind().settle(file, context);
  ASSERT_TRUE(set_int_option(mine_.get(), SOL_SOCKET, SO_PEEK_OFF, 5).ok());
  context.is_final = true;
  file.settled_before = round;
  file.settled = tcp_socket_kind().settle(file, context);
  auto state = tcp_socket_kind().capture(file, context);
  ASSERT_TRUE(state.ok()) << state.status();
  ASSERT_TRUE(tcp_end_capture(mine_.get()).ok());
  int64_t offset = -1;
  const TcpSocketState now = parsed(*state);
  for (const SocketOption& option : now.common().options())
    if (option.level() == SOL_SOCKET && option.name() == SO_PEEK_OFF) offset = option.value();
  EXPECT_EQ(offset, 5);
}

}  // namespace
}  // namespace godwit::resource::testing
