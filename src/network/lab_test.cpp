#include "network/lab.h"

#include <cstdlib>

#include "network/lab_fixture.h"

namespace godwit::network {
namespace {

// One datagram there and back, by any socket of namespace `from` to `ip` in namespace `to`.
bool echo_works(int from, int to, const IpAddress& ip) {
  const UniqueFd server = bound_socket(to, SOCK_DGRAM, ip, 7777);
  const UniqueFd client = connected_socket(from, SOCK_DGRAM, ip, 7777);
  char buffer[16];
  for (int attempt = 0; attempt < 3; ++attempt) {
    ::send(client.get(), "hello", 5, 0);
    if (!readable(server.get(), 1000)) continue;
    sockaddr_storage peer{};
    socklen_t length = sizeof peer;
    const ssize_t got = ::recvfrom(server.get(), buffer, sizeof buffer, 0,
                                   reinterpret_cast<sockaddr*>(&peer), &length);
    if (got != 5) continue;
    ::sendto(server.get(), buffer, 5, 0, reinterpret_cast<sockaddr*>(&peer), length);
    if (readable(client.get(), 1000)) return true;
  }
  return false;
}

using LabNetworkTest = LabTest;

TEST_F(LabNetworkTest, LanConnectsAll) {
  const Belongings before = Belongings::now();
  make_lab(false, 3);
  EXPECT_EQ(LabNetwork::nodes_up(id_).size(), 3u);
  GW_ASSERT_OK(lab_->up());  // again: nothing changes
  const UniqueFd client = must(open_named_netns(lab_->client_netns()));
  for (uint32_t node = 1; node <= 3; ++node) {
    const UniqueFd there = must(open_named_netns(lab_->node_netns(node)));
    EXPECT_TRUE(echo_works(client.get(), there.get(), lab_->node_address(node).ip));
    EXPECT_TRUE(echo_works(client.get(), there.get(), lab_->node_address6(node).ip));
  }
  GW_ASSERT_OK(LabNetwork::down(id_));
  GW_ASSERT_OK(LabNetwork::down(id_));
  const Belongings after = Belongings::now();
  EXPECT_EQ(before.mounts, after.mounts);
  EXPECT_EQ(before.names, after.names);
  EXPECT_EQ(before.links, after.links);
}

TEST_F(LabNetworkTest, IproutesToolSeesTheNames) {
  make_lab(false);
  const std::string command = fmt::format("ip netns exec {} ip -br addr show gw0 | grep -q {}",
                                          lab_->node_netns(1), lab_->node_address(1).text());
  EXPECT_EQ(std::system(command.c_str()), 0);
}

TEST_F(LabNetworkTest, HalfMadeLabIsCompletedAndRemoved) {
  make_lab(false);
  GW_ASSERT_OK(delete_named_netns(lab_->node_netns(2)));
  {
    // A file of a maker that died before the mount.
    std::ofstream orphan("/run/netns/" + lab_->node_netns(3));
  }
  EXPECT_EQ(LabNetwork::nodes_up(id_).size(), 2u);
  GW_ASSERT_OK(LabNetwork::down(id_));
  EXPECT_TRUE(named_netns(id_).empty());
  make_lab(false);
  const UniqueFd client = must(open_named_netns(lab_->client_netns()));
  const UniqueFd there = must(open_named_netns(lab_->node_netns(2)));
  EXPECT_TRUE(echo_works(client.get(), there.get(), lab_->node_address(2).ip));
}

TEST_F(LabNetworkTest, OverlayLetsTheClientInThroughAnyNode) {
  make_lab(true, 3);
  const UniqueFd client = must(open_named_netns(lab_->client_netns()));
  const UniqueFd capsule = must(create_anonymous_netns());
  Port port = make_port(2, capsule.get());
  GW_ASSERT_OK(port.set_phase(PortPhase::kSourceRunning));
  for (uint32_t gateway = 1; gateway <= 3; ++gateway) {
    GW_ASSERT_OK(lab_->route_client_through(gateway));
    EXPECT_TRUE(echo_works(client.get(), capsule.get(), lab_->service_address(0).ip)) << gateway;
    EXPECT_TRUE(echo_works(client.get(), capsule.get(), lab_->service_address6(0).ip)) << gateway;
  }
  remove_port(2);
}

TEST_F(LabNetworkTest, SpecsAreChecked) {
  LabSpec spec;
  spec.nodes = 0;
  EXPECT_FALSE(LabNetwork::of(spec).ok());
  spec = {};
  spec.subnet = "10.0.0.0/30";
  EXPECT_FALSE(LabNetwork::of(spec).ok());
  spec = {};
  spec.overlay = true;
  spec.underlay = "10.77.3.0/24";
  EXPECT_FALSE(LabNetwork::of(spec).ok());
}

}  // namespace
}  // namespace godwit::network
