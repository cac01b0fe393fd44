#include "kernel/proc/memory.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <vector>

namespace godwit::kernel {
namespace {

TEST(MemoryTest, ReadsTheLinesThatCount) {
  const auto info = parse_memory_info(
      "MemTotal:       24684000 kB\nMemFree:         1 kB\nMemAvailable:   23990000 kB\n"
      "SwapFree:            512 kB\nHugePages_Total:       0\n");
  ASSERT_TRUE(info.ok()) << info.status();
  EXPECT_EQ(info->total, uint64_t{24684000} << 10);
  EXPECT_EQ(info->available, uint64_t{23990000} << 10);
  EXPECT_EQ(info->swap_free, 512u << 10);
  const auto memory = parse_process_memory(
      "Name:\tRssAnon:\nVmSwap:\t       8 kB\nRssAnon:\t     100 kB\nRssShmem:\t      20 kB\n"
      "HugetlbPages:\t    4096 kB\n");
  ASSERT_TRUE(memory.ok()) << memory.status();
  EXPECT_EQ(memory->anonymous, 100u << 10);
  EXPECT_EQ(memory->shared, 20u << 10);
  EXPECT_EQ(memory->swapped, 8u << 10);
  EXPECT_EQ(memory->huge, 4u << 20);
}

TEST(MemoryTest, RefusesWhatIsNoAmount) {
  EXPECT_FALSE(parse_memory_info("MemTotal: 1 kB\n").ok());
  EXPECT_FALSE(parse_memory_info("MemTotal: 1 kB\nMemAvailable: x kB\n").ok());
  EXPECT_FALSE(parse_process_memory("RssAnon: 99999999999999999999 kB\n").ok());
  EXPECT_FALSE(parse_process_memory("RssAnon: 18446744073709551615 kB\n").ok());
  EXPECT_EQ(parse_process_memory("Name:\tzombie\n")->anonymous, 0u);
}

TEST(MemoryTest, SeesWhatThisProcessTouches) {
  const auto before = read_process_memory(HostPid{::getpid()});
  ASSERT_TRUE(before.ok()) << before.status();
  const std::vector<char> touched(64 << 20, 'x');
  const auto after = read_process_memory(HostPid{::getpid()});
  ASSERT_TRUE(after.ok());
  EXPECT_GT(after->anonymous, before->anonymous + (60u << 20));
  EXPECT_GT(read_memory_info()->available, 0u);
}

}  // namespace
}  // namespace godwit::kernel
