// Connections that are read by views, and made at the destination before the freeze.
#include "resource/tcp_socket/repair.h"
#include "resource/tcp_socket/testing_connection.h"

namespace godwit::resource::testing {
namespace {

class TcpSeenTest : public TcpSocketTest {
 protected:
  void SetUp() override {
    auto views = FileViews::open(256);
    if (!views.ok()) GTEST_SKIP() << "no views of files here: " << views.status();
    views_ = *std::move(views);
  }
  const FileView& view_of(int fd) {
    const auto all = views_->read({::getpid()});
    EXPECT_TRUE(all.ok()) << all.status();
    for (const FileView& view : *all)
      if (static_cast<int>(view.fd) == fd) return view;
    std::abort();
  }
  // As a round does.
  OpenFile round_of(int fd) {
    context_.is_final = false;
    OpenFile file = open_file(fd);
    file.settled = kind_.settle(file, context_);
    file.view = &view_of(fd);
    return file;
  }
  std::string round_state(const OpenFile& file) {
    context_.is_final = false;
    const auto state = kind_.capture(file, context_);
    EXPECT_TRUE(state.ok()) << state.status();
    return *state;
  }
  // As the freeze does with one that stands and is idle.
  absl::StatusOr<std::string> seen_state(const OpenFile& before) {
    context_.is_final = true;
    OpenFile file = before;
    file.fd = -1;
    file.settled_before = before.settled;
    file.settled.clear();
    file.view = &view_of(before.fd);
    if (!kind_.stands(before, *file.view, context_) || !kind_.seen_whole(*file.view))
      return absl::NotFoundError("must be taken");
    return kind_.capture(file, context_);
  }
  // As the freeze does with all others; the socket is left in repair mode.
  std::string taken_state(int fd) {
    context_.is_final = true;
    const auto state = kind_.capture(open_file(fd), context_);
    EXPECT_TRUE(state.ok()) << state.status();
    return *state;
  }
  void expect_same_as_taken(const std::string& ip, int port) {
    connect(ip, port);
    expect_flow();
    ASSERT_TRUE(set_int_option(mine_.get(), SOL_SOCKET, SO_KEEPALIVE, 1).ok());
    ASSERT_TRUE(idle());
    const OpenFile round = round_of(mine_.get());
    const std::string early = round_state(round);
    const auto seen = seen_state(round);
    ASSERT_TRUE(seen.ok()) << seen.status();
    EXPECT_EQ(*seen, early);
    TcpSocketState by_view = parsed(*seen), by_repair = parsed(taken_state(mine_.get()));
    // In milliseconds the lowest bit cannot be read.
    EXPECT_NEAR(by_view.connection().timestamp_offset(), by_repair.connection().timestamp_offset(),
                1000);
    for (TcpSocketState* state : {&by_view, &by_repair}) {
      state->mutable_connection()->clear_timestamp_offset();
      state->mutable_connection()->clear_round_trip_us();  // is not needed without data under way
    }
    EXPECT_EQ(by_view.DebugString(), by_repair.DebugString());
    ASSERT_TRUE(tcp_end_capture(mine_.get()).ok());
  }
  // All has been acknowledged, too.
  bool idle() {
    return wait_until([&] { return kind_.seen_whole(view_of(mine_.get())); });
  }

  const FileKind& kind_ = tcp_socket_kind();
  std::unique_ptr<FileViews> views_;
  WatchedCapture context_{source_};
};

TEST_F(TcpSeenTest, AViewSaysWhatRepairModeDoes) { expect_same_as_taken(kMine4, 7100); }
TEST_F(TcpSeenTest, AViewSaysWhatRepairModeDoesOfIpv6) {
  // What it is otherwise the route says.
  connect("fd00:9::2", 7101);
  EXPECT_FALSE(seen_state(round_of(mine_.get())).ok());
  ASSERT_TRUE(set_int_option(mine_.get(), IPPROTO_IPV6, IPV6_UNICAST_HOPS, 9).ok());
  ASSERT_TRUE(idle());
  const OpenFile round = round_of(mine_.get());
  const std::string early = round_state(round);
  EXPECT_EQ(seen_state(round).value(), early);
  EXPECT_EQ(text_of(parsed(early).remote()).find("[fd00:9::1]"), 0U);
}

TEST_F(TcpSeenTest, WhatTheProgramChangedDoesNotStand) {
  connect(kMine4, 7102);
  const int fd = mine_.get();
  ASSERT_TRUE(idle());
  const OpenFile round = round_of(fd);
  ASSERT_TRUE(seen_state(round).ok());
  context_.changed = true;
  EXPECT_FALSE(seen_state(round).ok()) << "an option";
  context_.changed = false;
  ASSERT_EQ(::fcntl(fd, F_SETFL, O_NONBLOCK), 0);
  EXPECT_FALSE(seen_state(round).ok()) << "status flags";
  ASSERT_EQ(::fcntl(fd, F_SETFL, 0), 0);
  ASSERT_EQ(::fchown(fd, 5, 6), 0);
  EXPECT_FALSE(seen_state(round).ok()) << "the inode's owner";
  ASSERT_EQ(::fchown(fd, 0, 0), 0);
  ASSERT_TRUE(seen_state(round).ok());
  ASSERT_EQ(::fcntl(fd, F_SETOWN, ::getpid()), 0);
  EXPECT_FALSE(seen_state(round).ok()) << "the owner of its signals";
}

TEST_F(TcpSeenTest, WhatIsUnderWayIsTaken) {
  connect(kMine4, 7103);
  ASSERT_TRUE(idle());
  const OpenFile round = round_of(mine_.get());
  ASSERT_TRUE(seen_state(round).ok());
  ASSERT_EQ(::send(peer_.get(), "unread", 6, 0), 6);
  ASSERT_TRUE(wait_until([&] { return bytes_in(mine_.get(), SIOCINQ) == 6; }));
  EXPECT_FALSE(seen_state(round).ok());
  EXPECT_FALSE(parsed(round_state(round_of(mine_.get()))).has_connection());
  EXPECT_EQ(read_bytes(mine_.get(), 6), "unread");
  ASSERT_TRUE(idle());
  lose_what_is_sent();
  ASSERT_EQ(::send(mine_.get(), "lost", 4, 0), 4);
  EXPECT_FALSE(seen_state(round).ok());
  ASSERT_EQ(::shutdown(peer_.get(), SHUT_WR), 0);
  EXPECT_FALSE(seen_state(round).ok());
}

TEST_F(TcpSeenTest, AnIdleConnectionIsMadeInTheRoundAndGoesLive) {
  connect(kMine4, 7104);
  expect_flow();
  ASSERT_TRUE(set_int_option(mine_.get(), SOL_SOCKET, SO_KEEPALIVE, 1).ok());
  ASSERT_TRUE(idle());
  const OpenFile round = round_of(mine_.get());
  const std::string early = round_state(round);
  restore_files_.is_final = false;
  auto there = kind_.create(1, early, destination_);
  ASSERT_TRUE(there.ok()) << there.status();
  EXPECT_EQ(tcp_state(there->get()), TCP_STATE_ESTABLISHED);
  EXPECT_EQ(*get_int_option(there->get(), SOL_SOCKET, SO_KEEPALIVE), 0);  // waits
  ASSERT_TRUE(networks_.connect_source(false));
  ASSERT_EQ(seen_state(round).value(), early);  // so nobody updates it
  restore_files_.is_final = true;
  finish(there->get(), early);
  EXPECT_EQ(*get_int_option(there->get(), SOL_SOCKET, SO_KEEPALIVE), 1);
  EXPECT_EQ(*get_int_option(there->get(), SOL_SOCKET, SO_REUSEADDR), 1);
  TcpSocketState first = parsed(early), second = parsed(taken_state(there->get()));
  ASSERT_TRUE(tcp_end_capture(there->get()).ok());
  for (TcpSocketState* state : {&first, &second}) {
    state->mutable_connection()->clear_timestamp_offset();
    state->mutable_common()->clear_status_flags();
  }
  EXPECT_EQ(first.DebugString(), second.DebugString());
  ASSERT_TRUE(tcp_silence(mine_.get()).ok());
  mine_ = *std::move(there);
  ASSERT_TRUE(networks_.connect_destination(true));
  expect_flow();
}

TEST_F(TcpSeenTest, OneThatWasUsedSinceTheRoundIsBroughtUpToDate) {
  connect(kMine4, 7105);
  ASSERT_TRUE(set_int_option(mine_.get(), SOL_SOCKET, SO_KEEPALIVE, 1).ok());
  ASSERT_TRUE(idle());
  const std::string first = round_state(round_of(mine_.get()));
  restore_files_.is_final = false;
  auto there = kind_.create(1, first, destination_);
  ASSERT_TRUE(there.ok()) << there.status();
  expect_flow();
  ASSERT_TRUE(idle());
  const std::string second = round_state(round_of(mine_.get()));
  ASSERT_TRUE(*kind_.update(there->get(), first, second, destination_));
  EXPECT_EQ(tcp_state(there->get()), TCP_STATE_ESTABLISHED);
  EXPECT_EQ(*get_int_option(there->get(), SOL_SOCKET, SO_KEEPALIVE), 0);
  expect_flow();
  ASSERT_EQ(::send(peer_.get(), "unread", 6, 0), 6);
  ASSERT_TRUE(wait_until([&] { return bytes_in(mine_.get(), SIOCINQ) == 6; }));
  ASSERT_TRUE(networks_.connect_source(false));
  ASSERT_EQ(::send(mine_.get(), "on its way", 10, 0), 10);
  const std::string last = taken_state(mine_.get());
  restore_files_.is_final = true;
  const auto updated = kind_.update(there->get(), second, last, destination_);
  ASSERT_TRUE(updated.ok() && *updated) << updated.status();
  finish(there->get(), last);
  EXPECT_EQ(*get_int_option(there->get(), SOL_SOCKET, SO_KEEPALIVE), 1);
  EXPECT_EQ(*get_int_option(there->get(), SOL_SOCKET, SO_ERROR), 0);
  mine_ = *std::move(there);
  ASSERT_TRUE(networks_.connect_destination(true));
  EXPECT_EQ(read_bytes(mine_.get(), 6), "unread");
  EXPECT_EQ(read_bytes(peer_.get(), 10), "on its way");
  expect_flow();
}

TEST_F(TcpSeenTest, OneThatCouldNotBeMadeInTheRoundIsMadeLast) {
  connect(kMine4, 7106);
  ASSERT_TRUE(idle());
  const std::string state = round_state(round_of(mine_.get()));
  restore_files_.is_final = false;
  auto before = kind_.create(1, state, destination_);
  ASSERT_TRUE(before.ok()) << before.status();
  // Its addresses are taken: no error, no connection.
  auto there = kind_.create(2, state, destination_);
  ASSERT_TRUE(there.ok()) << there.status();
  EXPECT_EQ(tcp_state(there->get()), TCP_STATE_CLOSE);
  kind_.retire(before->get());
  ASSERT_TRUE(networks_.connect_source(false));
  restore_files_.is_final = true;
  finish(there->get(), state);
  EXPECT_EQ(tcp_state(there->get()), TCP_STATE_ESTABLISHED);
  ASSERT_TRUE(tcp_silence(mine_.get()).ok());
  mine_ = *std::move(there);
  ASSERT_TRUE(networks_.connect_destination(true));
  expect_flow();
}

}  // namespace
}  // namespace godwit::resource::testing
