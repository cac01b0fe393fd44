#include "vm/domain.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace godwit::vm {
namespace {

constexpr char kDomain[] = R"(<domain type='kvm' id='3'>
  <name>web</name><uuid>6f6e6f64-0000-4000-8000-000000000001</uuid>
  <memory unit='MiB'>512</memory><vcpu placement='static'>2</vcpu>
  <os><type arch='x86_64' machine='pc-q35-7.2'>hvm</type></os>
  <cpu mode='custom' match='exact'><model fallback='forbid'>Skylake</model></cpu>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <disk type='file' device='disk'><driver name='qemu' type='qcow2'/>
      <source file='/images/web.qcow2'/>
      <backingStore type='file'><source file='/images/base.qcow2'/></backingStore>
      <target dev='vda'/></disk>
    <disk type='block' device='disk'><source dev='/dev/vg/web'/><target dev='vdb'/><shareable/></disk>
    <disk type='file' device='cdrom'><target dev='sda'/><readonly/></disk>
    <interface type='bridge'><mac address='52:54:00:00:00:09'/><source bridge='gw0'/>
      <target dev='vnet3'/></interface>
    <interface type='direct'><mac address='52:54:00:00:00:0a'/><source dev='eth1'/></interface>
    <hostdev mode='subsystem' type='pci'><source><address domain='0x0000' bus='0x42' slot='0x00'
      function='0x1'/></source></hostdev>
    <filesystem type='mount'><source dir='/srv'/><target dir='srv'/></filesystem>
  </devices></domain>)";

TEST(Domain, SaysWhatItIs) {
  const auto domain = parse_domain(kDomain);
  if (absl::IsUnimplemented(domain.status())) GTEST_SKIP() << domain.status();
  ASSERT_TRUE(domain.ok()) << domain.status();
  EXPECT_EQ(domain->name, "web");
  EXPECT_EQ(domain->uuid, "6f6e6f64-0000-4000-8000-000000000001");
  EXPECT_EQ(domain->emulation, "kvm");
  EXPECT_EQ(domain->machine, "pc-q35-7.2");
  EXPECT_EQ(domain->memory_bytes, uint64_t{512} << 20);
  EXPECT_EQ(domain->cpus, 2u);
  EXPECT_EQ(domain->cpu_model, "Skylake");
  EXPECT_THAT(domain->cpu_xml, testing::StartsWith("<cpu"));
  ASSERT_EQ(domain->disks.size(), 3u);
  EXPECT_EQ(domain->disks[0].source, "/images/web.qcow2");
  EXPECT_EQ(domain->disks[0].format, "qcow2");
  EXPECT_EQ(domain->disks[1].format, "");
  EXPECT_TRUE(domain->disks[0].backed);
  EXPECT_FALSE(domain->disks[0].read_only);
  EXPECT_EQ(domain->disks[1].source, "/dev/vg/web");
  EXPECT_TRUE(domain->disks[1].shareable);
  EXPECT_TRUE(domain->disks[2].source.empty());
  EXPECT_TRUE(domain->disks[2].read_only);
  ASSERT_EQ(domain->interfaces.size(), 2u);
  EXPECT_EQ(domain->interfaces[0].bridge, "gw0");
  EXPECT_EQ(domain->interfaces[0].tap, "vnet3");
  ASSERT_EQ(domain->host_devices.size(), 3u);
  EXPECT_EQ(domain->host_devices[0].name, "52:54:00:00:00:0a");
  EXPECT_THAT(domain->host_devices[1].name, testing::HasSubstr("bus=0x42"));
  EXPECT_EQ(domain->host_devices[2].name, "/srv");
}

TEST(Domain, MachineVersion) {
  EXPECT_EQ(machine_version("pc-i440fx-7.2"), 7);
  EXPECT_EQ(machine_version("pc-q35-10.1"), 10);
  EXPECT_EQ(machine_version("virt-9.0"), 9);
  for (const char* unknown : {"", "pc", "microvm", "xenfv-4", "-", "pc-i440fx-x.1", "9"})
    EXPECT_EQ(machine_version(unknown), 0) << unknown;
}

TEST(Domain, Video) {
  const auto video = [](const std::string& devices) {
    const auto domain =
        parse_domain("<domain><name>x</name><devices>" + devices + "</devices></domain>");
    return domain.ok() && domain->video;
  };
  if (absl::IsUnimplemented(parse_domain(kDomain).status())) GTEST_SKIP();
  EXPECT_TRUE(video("<video><model type='virtio'/></video>"));
  EXPECT_FALSE(video("<video><model type='none'/></video>"));
  EXPECT_FALSE(video(""));
}

TEST(Domain, UnitsOfMemory) {
  const auto bytes = [](const std::string& memory) -> uint64_t {
    const auto domain = parse_domain("<domain><name>x</name>" + memory + "</domain>");
    return domain.ok() ? domain->memory_bytes : 0;
  };
  if (absl::IsUnimplemented(parse_domain("").status())) GTEST_SKIP();
  EXPECT_EQ(bytes("<memory>4096</memory>"), uint64_t{4} << 20);
  EXPECT_EQ(bytes("<memory unit='KiB'>4096</memory>"), uint64_t{4} << 20);
  EXPECT_EQ(bytes("<memory unit='GiB'>2</memory>"), uint64_t{2} << 30);
  EXPECT_EQ(bytes("<memory unit='bytes'>77</memory>"), 77u);
}

TEST(Domain, WhatIsNoneIsAnError) {
  if (absl::IsUnimplemented(parse_domain("").status())) GTEST_SKIP();
  for (const char* each : {"", "<domain>", "<network><name>x</name></network>", "<domain/>"})
    EXPECT_TRUE(absl::IsInvalidArgument(parse_domain(each).status())) << each;
}

TEST(Capabilities, ModelsThatTheHypervisorHas) {
  const auto found = parse_capabilities(R"(<domainCapabilities><machine>pc-i440fx-7.2</machine>
    <vcpu max='255'/><cpu><mode name='host-passthrough' supported='no'/>
    <mode name='custom' supported='yes'><model usable='yes'>qemu64</model>
    <model usable='no'>Icelake</model><model usable='unknown'>kvm64</model></mode></cpu>
    </domainCapabilities>)");
  if (absl::IsUnimplemented(found.status())) GTEST_SKIP();
  ASSERT_TRUE(found.ok()) << found.status();
  EXPECT_EQ(found->most_cpus, 255u);
  EXPECT_THAT(found->cpu_modes, testing::ElementsAre("custom"));
  EXPECT_THAT(found->cpu_models, testing::ElementsAre("qemu64", "kvm64"));
}

}  // namespace
}  // namespace godwit::vm
