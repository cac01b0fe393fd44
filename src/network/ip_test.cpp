#include "network/ip.h"

#include <gtest/gtest.h>

#include "network/announce.h"
#include "network/port.h"

namespace godwit::network {
namespace {

TEST(IpTest, TextSurvives) {
  for (const char* text : {"10.77.0.5", "fd77::5", "::1", "255.255.255.255"}) {
    EXPECT_EQ(parse_ip(text)->text(), text);
  }
  EXPECT_EQ(parse_prefix("10.77.0.5/16")->text(), "10.77.0.5/16");
  EXPECT_EQ(parse_prefix("10.77.0.5")->length, 32);
  EXPECT_EQ(parse_mac("02:ab:cd:ef:00:01")->text(), "02:ab:cd:ef:00:01");
}

TEST(IpTest, NonsenseIsRefused) {
  for (const char* text : {"", "10.77.0", "10.77.0.5.6", "fd77", "fd77:::1", "10.0.0.1 "}) {
    EXPECT_FALSE(parse_ip(text).ok()) << text;
  }
  for (const char* text : {"10.0.0.1/33", "10.0.0.1/", "10.0.0.1/x", "fd77::/129", "10.0.0.1/-1"}) {
    EXPECT_FALSE(parse_prefix(text).ok()) << text;
  }
  for (const char* text : {"", "02:ab:cd:ef:00", "02:ab:cd:ef:00:0g", "02-ab-cd-ef-00-01"}) {
    EXPECT_FALSE(parse_mac(text).ok()) << text;
  }
}

TEST(IpTest, HostsOfNetworks) {
  EXPECT_EQ(host_of(*parse_prefix("10.77.3.9/16"), 258).text(), "10.77.1.2");
  EXPECT_EQ(host_of(*parse_prefix("fd77::/64"), 0x12345).text(), "fd77::1:2345");
  EXPECT_EQ(network_of(*parse_prefix("10.77.200.9/17")).text(), "10.77.128.0/17");
}

TEST(IpTest, LinkLocalFollowsRfc4291) {
  EXPECT_EQ(link_local_of(*parse_mac("34:56:78:9a:bc:de")).text(), "fe80::3656:78ff:fe9a:bcde/64");
}

TEST(IpTest, NamesFitInterfaces) {
  const std::string name = Port::node_interface("a service with a very long name indeed");
  EXPECT_EQ(name.size(), 11u);
  EXPECT_NE(name, Port::node_interface("another"));
  EXPECT_EQ(mac_from_seed("x").bytes[0], 0x02);
  EXPECT_NE(mac_from_seed("x"), mac_from_seed("y"));
}

TEST(AnnouncementTest, OneFramePerFormAndAddress) {
  const Frames frames =
      announcement(mac_from_seed("x"), {*parse_prefix("10.1.2.3/24"), *parse_prefix("fd77::3/64")});
  ASSERT_EQ(frames.count(), 3u);
  EXPECT_EQ(frames.sizes, (std::vector<uint32_t>{42, 42, 86}));
}

}  // namespace
}  // namespace godwit::network
