#include "kernel/proc/maps.h"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <cstdlib>
#include <random>
#include <string>

namespace godwit::kernel {
namespace {

TEST(Maps, EveryFieldIsRead) {
  const auto maps = parse_maps(
      "55d0c0a00000-55d0c0a21000 rw-p 00000000 00:00 0                          [heap]\n"
      "7f0000000000-7f0000001000 r-xs 00003000 fe:1a 18446744073709551615       /a b/c (deleted)\n"
      "7f0000002000-7f0000003000 ---p 00000000 00:00 0 \n"
      "ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]\n");
  ASSERT_TRUE(maps.ok()) << maps.status();
  ASSERT_EQ(maps->size(), 4U);
  const Mapping& heap = (*maps)[0];
  EXPECT_EQ(heap.start, 0x55d0c0a00000U);
  EXPECT_EQ(heap.size(), 0x21000U);
  EXPECT_TRUE(heap.read && heap.write && !heap.execute && !heap.shared && heap.anonymous());
  EXPECT_EQ(heap.path, "[heap]");
  const Mapping& file = (*maps)[1];
  EXPECT_TRUE(file.read && !file.write && file.execute && file.shared && !file.anonymous());
  EXPECT_EQ(file.offset, 0x3000U);
  EXPECT_EQ(file.dev, makedev(0xfe, 0x1a));
  EXPECT_EQ(file.inode, UINT64_MAX);
  EXPECT_EQ(file.path, "/a b/c (deleted)");
  EXPECT_EQ((*maps)[2].path, "");
  EXPECT_FALSE((*maps)[2].of_kernel());
  EXPECT_TRUE((*maps)[3].of_kernel());
}

TEST(Maps, NewlineInAPathIsUnescaped) {
  const auto maps = parse_maps("1000-2000 r--p 00000000 08:01 7    /x\\012y\\z\n");
  ASSERT_TRUE(maps.ok());
  EXPECT_EQ((*maps)[0].path, "/x\ny\\z");
}

// The kernel looks again for each page of text; what has become one with its neighbour comes twice.
TEST(Maps, WhatComesAgainIsCutToWhatIsNew) {
  const auto maps = parse_maps(
      "1000-3000 rw-p 00000000 00:00 0\n1000-5000 rw-p 00000000 00:00 0\n"
      "4000-7000 r--p 00002000 08:01 7    /x\n5000-6000 r--p 00003000 08:01 7    /x\n");
  ASSERT_TRUE(maps.ok()) << maps.status();
  ASSERT_EQ(maps->size(), 3U);
  EXPECT_EQ((*maps)[1].start, 0x3000U);
  EXPECT_EQ((*maps)[1].end, 0x5000U);
  EXPECT_EQ((*maps)[1].offset, 0U);
  EXPECT_EQ((*maps)[2].start, 0x5000U);
  EXPECT_EQ((*maps)[2].end, 0x7000U);
  EXPECT_EQ((*maps)[2].offset, 0x3000U);
}

TEST(Maps, HostileTextIsAnErrorThatQuotesIt) {
  for (const char* text :
       {"x", "\n", "1000", "1000-", "2000-1000 r--p 00000000 00:00 0\n",
        "1000-1000 r--p 00000000 00:00 0\n", "1000-2000 r--q 00000000 00:00 0\n",
        "1000-2000 rrrp 00000000 00:00 0\n", "1000-2000 r--p 00000000 00:00\n",
        "1000-2000 r--p 00000000 00:00 0x\n", "1000-2000 r--pp 00000000 00:00 0\n",
        "11112222333344445-2000 r--p 0 00:00 0\n", "-1000-2000 r--p 00000000 00:00 0\n",
        "1000-2000 r--p 00000000 00:00 99999999999999999999999\n"}) {
    const auto maps = parse_maps(text);
    EXPECT_FALSE(maps.ok()) << text;
    EXPECT_EQ(maps.status().code(), absl::StatusCode::kInvalidArgument);
  }
  EXPECT_TRUE(parse_maps("")->empty());
}

TEST(Maps, SmapsGivesTheFlags) {
  const auto maps = parse_smaps(
      "1000-2000 rw-p 00000000 00:00 0    [anon:A: b]\nSize:   4 kB\nTHPeligible:  0\n"
      "ProtectionKey:         0\nVmFlags: rd wr mr mw me ac sd lo \n"
      "3000-4000 rw-p 00000000 00:00 0 \nSize: 4 kB\n");
  ASSERT_TRUE(maps.ok()) << maps.status();
  ASSERT_EQ(maps->size(), 2U);
  EXPECT_TRUE((*maps)[0].has_flag("lo"));
  EXPECT_TRUE((*maps)[0].has_flag("rd"));
  EXPECT_FALSE((*maps)[0].has_flag("d "));
  EXPECT_FALSE((*maps)[0].has_flag("hg"));
  EXPECT_EQ((*maps)[1].vm_flags, "");
  EXPECT_FALSE(parse_smaps("Size: 4 kB\n").ok());
  EXPECT_FALSE(parse_smaps("1000-2000 rw-p 00000000 00:00 0\nVmFlags: rdwr\n").ok());
  EXPECT_FALSE(parse_smaps("1000-2000 rw-p 00000000 00:00 0\nsize: 4\n").ok());
}

TEST(Maps, OwnMappingsAreFound) {
  const size_t size = 5 * 4096;
  void* const place = ::mmap(nullptr, size, PROT_READ, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(place, MAP_FAILED);
  const auto address = reinterpret_cast<uint64_t>(place);
  for (const auto& maps : {read_maps(HostPid{::getpid()}), read_smaps(HostPid{::getpid()})}) {
    ASSERT_TRUE(maps.ok()) << maps.status();
    bool found = false;
    bool vdso = false;
    for (const Mapping& m : *maps) {
      vdso = vdso || (m.path == "[vdso]" && m.of_kernel());
      if (m.start != address) continue;
      found = true;
      EXPECT_EQ(m.size(), size);
      EXPECT_TRUE(m.shared && m.read && !m.write);
      EXPECT_EQ(m.path, "/dev/zero (deleted)");
    }
    EXPECT_TRUE(found);
    EXPECT_TRUE(vdso);
  }
  // All below an address, flags and all; where nothing is above, all.
  const auto below = read_smaps_below(HostPid{::getpid()}, address + size);
  ASSERT_TRUE(below.ok()) << below.status();
  ASSERT_FALSE(below->empty());
  EXPECT_EQ(below->back().start, address);
  EXPECT_TRUE(below->back().has_flag("sh"));
  const auto all = read_smaps_below(HostPid{::getpid()}, UINT64_MAX);
  ASSERT_TRUE(all.ok()) << all.status();
  EXPECT_GT(all->size(), below->size());
  EXPECT_TRUE(read_smaps_below(HostPid{::getpid()}, 1)->empty());
  ::munmap(place, size);
}

TEST(Maps, DamagedTextNeverCrashes) {
  const std::string good =
      "1000-2000 rw-p 00000000 fe:01 12    /a\\012b\nVmFlags: rd wr \n3000-4000 r--s 00000000 "
      "00:00 0\n";
  std::mt19937 random(7);
  for (int i = 0; i < 20'000; ++i) {
    std::string text = good;
    for (int change = 0; change < 3; ++change) {
      text[random() % text.size()] = static_cast<char>(random());
    }
    text.resize(random() % (text.size() + 1));
    (void)parse_maps(text);
    (void)parse_smaps(text);
  }
}

}  // namespace
}  // namespace godwit::kernel
