#include "vm/domain_change.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "vm/domain.h"
#include "vm/saved_domain.h"

namespace godwit::vm {
namespace {

using testing::HasSubstr;

constexpr char kDomain[] = R"(<domain type='kvm'>
  <name>web</name><uuid>6f6e6f64-0000-4000-8000-000000000001</uuid>
  <devices>
    <disk type='file' device='disk'><source file='/images/web.qcow2' index='1'/><target dev='vda'/></disk>
    <disk type='file' device='cdrom'><source file='/images/medium.iso'/><target dev='hda'/><readonly/></disk>
    <interface type='bridge'><mac address='52:54:00:00:00:09'/><source bridge='gw0'/></interface>
    <interface type='bridge'><mac address='52:54:00:00:00:0a'/><link state='up'/></interface>
  </devices></domain>)";

TEST(DomainChange, MakesAnotherOne) {
  DomainChange change;
  change.name = "copy";
  change.uuid = "6f6e6f64-0000-4000-8000-000000000002";
  change.files["/images/web.qcow2"] = "/images/copy-vda.qcow2";
  change.unplugged = true;
  const auto xml = changed_domain(kDomain, change);
  if (absl::IsUnimplemented(xml.status())) GTEST_SKIP() << xml.status();
  ASSERT_TRUE(xml.ok()) << xml.status();
  const auto domain = parse_domain(*xml);
  ASSERT_TRUE(domain.ok()) << domain.status();
  EXPECT_EQ(domain->name, "copy");
  EXPECT_EQ(domain->uuid, change.uuid);
  ASSERT_EQ(domain->disks.size(), 2u);
  EXPECT_EQ(domain->disks[0].source, "/images/copy-vda.qcow2");
  EXPECT_EQ(domain->disks[1].source, "/images/medium.iso");
  ASSERT_EQ(domain->interfaces.size(), 2u);
  EXPECT_EQ(domain->interfaces[0].mac, "52:54:00:00:00:09");
  EXPECT_THAT(*xml, HasSubstr(R"(<link state="down")"));
  EXPECT_EQ(xml->find(R"(state="up")"), std::string::npos);
}

TEST(DomainChange, SaysWhatAnInterfaceIsWithoutALink) {
  const auto interfaces = unplugged_interfaces(kDomain);
  if (absl::IsUnimplemented(interfaces.status())) GTEST_SKIP() << interfaces.status();
  ASSERT_TRUE(interfaces.ok()) << interfaces.status();
  ASSERT_EQ(interfaces->size(), 2u);
  for (const std::string& each : *interfaces) EXPECT_THAT(each, HasSubstr(R"(<link state="down")"));
}

TEST(DomainChange, RefusesWhatIsNoDomain) {
  EXPECT_FALSE(changed_domain("<network/>", {}).ok());
  EXPECT_FALSE(changed_domain("domain", {}).ok());
}

TEST(SavedDomain, BeginsAsLibvirtReadsIt) {
  const std::string head = saved_domain_head("<domain/>");
  ASSERT_EQ(head.size(), 92 + 10u);
  EXPECT_EQ(head.substr(0, 16), "LibvirtQemudSave");
  EXPECT_EQ(head[16], 2);
  EXPECT_EQ(head[20], 10);
  EXPECT_EQ(head.substr(92), std::string("<domain/>\0", 10));
}

}  // namespace
}  // namespace godwit::vm
