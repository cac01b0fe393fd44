#include "resource/netlink_socket/netlink_socket.h"

#include <gtest/gtest.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <poll.h>
#include <sys/socket.h>

#include "resource/netlink_socket/netlink_socket.pb.h"
#include "resource/socket_options/options.h"
#include "resource/socket_options/testing_networks.h"

namespace godwit::resource {
namespace {

class NetlinkSocketTest : public ::testing::Test {
 protected:
  UniqueFd socket(int protocol) {
    return source_.in(
        [&] { return UniqueFd(::socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, protocol)); });
  }
  absl::StatusOr<std::string> capture(int fd) {
    return netlink_socket_kind().capture(testing::open_file(fd), capture_);
  }
  testing::Network source_, destination_;
  testing::FakeCaptureContext files_;
  testing::FakeRestoreContext made_;
  testing::NetworkCapture capture_{source_, files_};
  testing::NetworkRestore restore_{destination_, made_};
};

TEST_F(NetlinkSocketTest, PortGroupsAndOptionsMove) {
  const UniqueFd fd = socket(NETLINK_ROUTE);
  sockaddr_nl address{};
  address.nl_family = AF_NETLINK;
  address.nl_pid = 4711;
  address.nl_groups = RTMGRP_LINK | RTMGRP_IPV4_IFADDR;
  ASSERT_EQ(::bind(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
  ASSERT_TRUE(set_int_option(fd.get(), SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, 33).ok());
  for (const int name :
       {NETLINK_PKTINFO, NETLINK_BROADCAST_ERROR, NETLINK_NO_ENOBUFS, NETLINK_LISTEN_ALL_NSID,
        NETLINK_CAP_ACK, NETLINK_EXT_ACK, NETLINK_GET_STRICT_CHK})
    ASSERT_TRUE(set_int_option(fd.get(), SOL_NETLINK, name, 1).ok()) << name;
  ASSERT_TRUE(set_int_option(fd.get(), SOL_SOCKET, SO_RCVBUF, 70000).ok());
  auto state = capture(fd.get());
  ASSERT_TRUE(state.ok()) << state.status();
  auto moved = netlink_socket_kind().create(1, *state, restore_);
  ASSERT_TRUE(moved.ok()) << moved.status();
  auto same = netlink_socket_kind().update(moved->get(), *state, *state, restore_);
  EXPECT_TRUE(same.ok() && *same);
  EXPECT_EQ(*capture(moved->get()), *state);
  NetlinkSocketState parsed;
  ASSERT_TRUE(parsed.ParseFromString(*state));
  EXPECT_EQ(parsed.port(), 4711U);
  EXPECT_EQ(parsed.groups_size(), 3);
  EXPECT_EQ(parsed.common().options_size(), 7);
  // It hears of the destination's links.
  ASSERT_TRUE(destination_.ip("link add v0 type veth peer name v1"));
  pollfd events{.fd = moved->get(), .events = POLLIN, .revents = 0};
  EXPECT_EQ(::poll(&events, 1, 5000), 1);
  EXPECT_EQ(capture(moved->get()).status().code(), absl::StatusCode::kUnavailable);
}

TEST_F(NetlinkSocketTest, AFreshOneStaysWithoutAPort) {
  const UniqueFd fd = socket(NETLINK_GENERIC);
  const std::string state = *capture(fd.get());
  auto moved = netlink_socket_kind().create(1, state, restore_);
  ASSERT_TRUE(moved.ok()) << moved.status();
  EXPECT_EQ(*capture(moved->get()), state);
}

}  // namespace
}  // namespace godwit::resource
