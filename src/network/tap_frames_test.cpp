#include "network/tap_frames.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <poll.h>
#include <sys/ioctl.h>

#include <algorithm>
#include <cstring>
#include <optional>

#include "base/clock.h"
#include "network/announce.h"
#include "network/frames.h"
#include "network/netlink.h"
#include "network/netns.h"

namespace godwit::network {
namespace {

constexpr size_t kOffloadHeader = 10;
constexpr MacAddress kOne{{2, 0, 0, 0, 0, 1}};
constexpr MacAddress kTwo{{2, 0, 0, 0, 0, 2}};

// The guest's end of it is the descriptor, as QEMU has it.
class TapTest : public testing::Test {
 protected:
  void SetUp() override {
    if (::geteuid() != 0) GTEST_SKIP() << "needs root";
    auto netns = create_anonymous_netns();
    ASSERT_TRUE(netns.ok()) << netns.status();
    auto inside = NetnsScope::enter(netns->get());
    ASSERT_TRUE(inside.ok()) << inside.status();
    inside_.emplace(*std::move(inside));
    guest_ = UniqueFd(::open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK));
    ASSERT_TRUE(guest_) << std::strerror(errno);
    ifreq request{};
    std::strcpy(request.ifr_name, "tap0");
    request.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR;
    ASSERT_EQ(::ioctl(guest_.get(), TUNSETIFF, &request), 0) << std::strerror(errno);
    auto netlink = Netlink::open();
    ASSERT_TRUE(netlink.ok());
    tap_ = *netlink->ifindex_of("tap0");
    LinkChange up;
    up.up = true;
    ASSERT_TRUE(netlink->change_link(tap_, up).ok());
    ASSERT_TRUE(netlink->wait_operational("tap0", Deadline::in(absl::Seconds(5))).ok());
  }

  // With its offload header.
  std::string next_of_guest() {
    std::string frame(2048, '\0');
    for (;;) {
      pollfd one{guest_.get(), POLLIN, 0};
      if (::poll(&one, 1, 5000) != 1) return "";
      const ssize_t n = ::read(guest_.get(), frame.data(), frame.size());
      if (n <= 0) return "";
      std::string got = frame.substr(0, static_cast<size_t>(n));
      // The kernel's own chatter aside.
      if (got.find("\x80\x35", kOffloadHeader) != std::string::npos) return got;
    }
  }
  void send_to_guest(const MacAddress& mac) {
    // Not past the queue, as a FrameSender does: what goes there nobody sees.
    const auto sender = TapSender::open(tap_);
    ASSERT_TRUE(sender.ok());
    ASSERT_TRUE(sender->send(std::string(kOffloadHeader, '\0') + reverse_arp(mac).bytes).ok());
  }
  static std::vector<std::string> of(std::vector<std::string> frames, const MacAddress& mac) {
    const std::string wanted(reinterpret_cast<const char*>(mac.bytes.data()), mac.bytes.size());
    std::erase_if(frames, [&](const std::string& each) {
      return each.find(wanted, kOffloadHeader) == std::string::npos;
    });
    return frames;
  }
  static size_t count(std::vector<std::string> frames, const MacAddress& mac) {
    return of(std::move(frames), mac).size();
  }
  // All that were missed until one of `mac` was.
  static std::vector<std::string> until_seen(TapRecorder& recorder, const MacAddress& mac) {
    const Deadline deadline = Deadline::in(absl::Seconds(5));
    std::vector<std::string> all;
    while (count(all, mac) == 0 && !deadline.passed())
      for (std::string& each : recorder.missed(clock_ns(CLOCK_REALTIME)))
        all.push_back(std::move(each));
    return all;
  }

  UniqueFd guest_;
  int tap_ = 0;
  std::optional<NetnsScope> inside_;
};

TEST_F(TapTest, WhatGoesToTheGuestIsSeenAndCanBeGivenAgain) {
  auto recorder = TapRecorder::open(tap_);
  ASSERT_TRUE(recorder.ok()) << recorder.status();
  send_to_guest(kOne);
  const std::string first = next_of_guest();
  ASSERT_FALSE(first.empty());
  // Among what the kernel says by itself meanwhile.
  const auto seen = of(until_seen(**recorder, kOne), kOne);
  ASSERT_EQ(seen.size(), 1u);
  EXPECT_EQ(seen.back().substr(kOffloadHeader), first.substr(kOffloadHeader));
  // Once only.
  EXPECT_EQ(count((*recorder)->missed(clock_ns(CLOCK_REALTIME)), kOne), 0u);
  const auto sender = TapSender::open(tap_);
  ASSERT_TRUE(sender.ok()) << sender.status();
  ASSERT_TRUE(sender->send(seen.back()).ok());
  EXPECT_EQ(next_of_guest().substr(kOffloadHeader), first.substr(kOffloadHeader));
}

TEST_F(TapTest, WhatCameLongBeforeItsLastSignOfLifeIsNotMissed) {
  auto recorder = TapRecorder::open(tap_);
  ASSERT_TRUE(recorder.ok()) << recorder.status();
  send_to_guest(kOne);
  ASSERT_FALSE(next_of_guest().empty());
  const timespec pause{0, 30'000'000};
  ::nanosleep(&pause, nullptr);
  const std::string alive = std::string(kOffloadHeader, '\0') + reverse_arp(kTwo).bytes;
  ASSERT_EQ(::write(guest_.get(), alive.data(), alive.size()), static_cast<ssize_t>(alive.size()));
  ::nanosleep(&pause, nullptr);
  send_to_guest(kTwo);
  const auto missed = until_seen(**recorder, kTwo);
  EXPECT_EQ(count(missed, kTwo), 1u);
  EXPECT_EQ(count(missed, kOne), 0u);
}

TEST_F(TapTest, WhatAPeerSaysIsAFrameIsLookedAt) {
  const auto sender = TapSender::open(tap_);
  ASSERT_TRUE(sender.ok()) << sender.status();
  EXPECT_FALSE(sender->send("").ok());
  EXPECT_FALSE(sender->send(std::string(20, 'x')).ok());
  EXPECT_FALSE(sender->send(std::string(size_t{100} << 10, 'x')).ok());
}

}  // namespace
}  // namespace godwit::network
