// For this folder's tests: a lab of their own, capsules without programs, captures.
#ifndef GODWIT_NETWORK_LAB_FIXTURE_H_
#define GODWIT_NETWORK_LAB_FIXTURE_H_

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <linux/if_packet.h>
#include <net/ethernet.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <optional>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/status.h"
#include "network/lab.h"
#include "network/netns.h"
#include "network/port.h"

#define GW_ASSERT_OK(expr)                                          \
  do {                                                              \
    const absl::Status gw_test_status = (expr);                     \
    ASSERT_TRUE(gw_test_status.ok()) << message_of(gw_test_status); \
  } while (false)
#define GW_EXPECT_OK(expr)                                          \
  do {                                                              \
    const absl::Status gw_test_status = (expr);                     \
    EXPECT_TRUE(gw_test_status.ok()) << message_of(gw_test_status); \
  } while (false)

namespace godwit::network {

// In a test a failure here ends the test with its reason; GoogleTest catches, TearDown cleans up.
template <typename T>
T must(absl::StatusOr<T> value) {
  if (!value.ok()) throw std::runtime_error(std::string(message_of(value.status())));
  return *std::move(value);
}
inline void must(const absl::Status& status) {
  if (!status.ok()) throw std::runtime_error(std::string(message_of(status)));
}

inline sockaddr_storage socket_address(const IpAddress& ip, uint16_t port, socklen_t& length) {
  sockaddr_storage storage{};
  if (ip.is_v6()) {
    auto* v6 = reinterpret_cast<sockaddr_in6*>(&storage);
    v6->sin6_family = AF_INET6;
    v6->sin6_port = htons(port);
    std::memcpy(&v6->sin6_addr, ip.bytes.data(), 16);
    length = sizeof *v6;
  } else {
    auto* v4 = reinterpret_cast<sockaddr_in*>(&storage);
    v4->sin_family = AF_INET;
    v4->sin_port = htons(port);
    std::memcpy(&v4->sin_addr, ip.bytes.data(), 4);
    length = sizeof *v4;
  }
  return storage;
}

inline bool readable(int fd, int timeout_ms) {
  pollfd waiting{fd, POLLIN, 0};
  return ::poll(&waiting, 1, timeout_ms) > 0;
}

// A socket in another namespace; it stays there.
inline UniqueFd socket_in(int netns, int family, int type) {
  const NetnsScope inside = must(NetnsScope::enter(netns));
  UniqueFd fd(::socket(family, type | SOCK_CLOEXEC, 0));
  EXPECT_TRUE(fd) << errno;
  return fd;
}
inline UniqueFd bound_socket(int netns, int type, const IpAddress& ip, uint16_t port) {
  UniqueFd fd = socket_in(netns, ip.family, type);
  const int on = 1;
  ::setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  socklen_t length = 0;
  const sockaddr_storage address = socket_address(ip, port, length);
  EXPECT_EQ(::bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), length), 0) << errno;
  return fd;
}
inline UniqueFd connected_socket(int netns, int type, const IpAddress& ip, uint16_t port) {
  UniqueFd fd = socket_in(netns, ip.family, type);
  socklen_t length = 0;
  const sockaddr_storage address = socket_address(ip, port, length);
  EXPECT_EQ(::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), length), 0) << errno;
  return fd;
}

// Frames that come in on one port of the switch.
class Capture {
 public:
  Capture(const std::string& netns, const std::string& device) {
    const NetnsScope inside = must(NetnsScope::enter_named(netns));
    Netlink netlink = must(Netlink::open());
    socket_.reset(::socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    const int size = 64 << 20;
    ::setsockopt(socket_.get(), SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof size);
    sockaddr_ll address{};
    address.sll_family = AF_PACKET;
    address.sll_protocol = htons(ETH_P_ALL);
    address.sll_ifindex = must(netlink.ifindex_of(device));
    EXPECT_EQ(::bind(socket_.get(), reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
  }
  // Those from `mac` since the last call.
  std::vector<std::string> from(const MacAddress& mac) {
    std::vector<std::string> frames;
    std::string buffer(65536, '\0');
    for (;;) {
      sockaddr_ll source{};
      socklen_t length = sizeof source;
      const ssize_t got = ::recvfrom(socket_.get(), buffer.data(), buffer.size(), 0,
                                     reinterpret_cast<sockaddr*>(&source), &length);
      if (got < 0) return frames;
      if (source.sll_pkttype == PACKET_OUTGOING || got < 14) continue;
      if (std::memcmp(buffer.data() + 6, mac.bytes.data(), 6) != 0) continue;
      frames.push_back(buffer.substr(0, static_cast<size_t>(got)));
    }
  }

 private:
  UniqueFd socket_;
};

inline size_t resets_among(const std::vector<std::string>& frames) {
  size_t resets = 0;
  for (const std::string& frame : frames) {
    const auto byte = [&](size_t at) {
      return at < frame.size() ? static_cast<uint8_t>(frame[at]) : uint8_t{0};
    };
    const bool v4 = byte(12) == 0x08 && byte(13) == 0x00 && byte(23) == IPPROTO_TCP;
    const bool v6 = byte(12) == 0x86 && byte(13) == 0xdd && byte(20) == IPPROTO_TCP;
    if (v4 && (byte(14 + (byte(14) & 15) * 4u + 13) & 4) != 0) ++resets;
    if (v6 && (byte(14 + 40 + 13) & 4) != 0) ++resets;
  }
  return resets;
}

// What a machine has and a test must leave as it was.
struct Belongings {  // of these tests' labs: others come and go beside them
  std::multiset<std::string> mounts;
  std::set<std::string> names;
  std::set<std::string> links;

  static Belongings now() {
    Belongings all;
    std::ifstream mounts("/proc/self/mountinfo");
    for (std::string line; std::getline(mounts, line);) {
      std::string field;
      size_t at = 0;
      for (int i = 0; i < 4; ++i) at = line.find(' ', at) + 1;
      const std::string point = line.substr(at, line.find(' ', at) - at);
      if (point.find("gwnet") != std::string::npos) all.mounts.insert(point);
    }
    for (const std::string& name : named_netns("gwnet")) all.names.insert(name);
    for (const auto& entry : std::filesystem::directory_iterator("/sys/class/net")) {
      const std::string name = entry.path().filename().string();
      if (name.starts_with("gw")) all.links.insert(name);
    }
    return all;
  }
};

// A lab, and a state folder for each node. Nothing of it is there when the test is over.
class LabTest : public testing::Test {
 protected:
  void make_lab(bool overlay, uint32_t nodes = 2) {
    LabSpec spec;
    spec.id = id_;
    spec.nodes = nodes;
    spec.overlay = overlay;
    lab_ = must(LabNetwork::of(spec));
    must(lab_->up());
  }
  void SetUp() override { state_ = std::filesystem::temp_directory_path() / id_; }
  void TearDown() override {
    GW_EXPECT_OK(LabNetwork::down(id_));
    EXPECT_TRUE(named_netns(id_ + "-").empty());
    std::ifstream mounts("/proc/self/mountinfo");
    for (std::string line; std::getline(mounts, line);) {
      EXPECT_EQ(line.find(id_), std::string::npos) << line;
    }
    EXPECT_FALSE(std::filesystem::exists(state_)) << "left: " << state_;
  }
  std::string pin_dir(uint32_t node) const { return fmt::format("{}/n{}", state_.string(), node); }

  // A port of the lab's service 0 at `node`, for the capsule `netns`.
  PortSpec port_spec(uint32_t node, int netns) const {
    std::filesystem::create_directories(state_);
    PortSpec spec;
    spec.service = "echo";
    spec.capsule_netns = netns;
    spec.addresses = {lab_->service_address(0), lab_->service_address6(0)};
    spec.gateways = lab_->service_gateways();
    spec.mtu = lab_->service_mtu();
    spec.pin_dir = pin_dir(node);
    return spec;
  }
  NetnsScope on_node(uint32_t node) const {
    return must(NetnsScope::enter_named(lab_->node_netns(node)));
  }
  Port make_port(uint32_t node, int netns) const {
    const NetnsScope inside = on_node(node);
    return must(Port::create(port_spec(node, netns)));
  }
  void remove_port(uint32_t node) const {
    {
      const NetnsScope inside = on_node(node);
      GW_EXPECT_OK(Port::remove("echo", pin_dir(node)));
    }
    EXPECT_FALSE(std::filesystem::exists(pin_dir(node)));
    std::error_code ignored;
    std::filesystem::remove(state_, ignored);  // when the last node's has gone
  }

  const std::string id_ = fmt::format("gwnet{}", ::getpid());
  std::filesystem::path state_;
  std::optional<LabNetwork> lab_;
};

}  // namespace godwit::network

#endif  // GODWIT_NETWORK_LAB_FIXTURE_H_
