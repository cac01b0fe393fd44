#include "kernel/proc/timens.h"

#include <gtest/gtest.h>
#include <unistd.h>

namespace godwit::kernel {
namespace {

TEST(TimeOffsets, BothClocksWithSign) {
  const auto offsets = parse_time_offsets("monotonic   -2   500000000\nboottime    864000   7\n");
  ASSERT_TRUE(offsets.ok()) << offsets.status();
  EXPECT_EQ(offsets->monotonic_ns, -1'500'000'000);
  EXPECT_EQ(offsets->boottime_ns, 864'000'000'000'007);
  for (const char* bad :
       {"", "monotonic 1 2\n", "monotonic 1 2\nboottime 1 -2\n",
        "monotonic 99999999999999 0\nboottime 0 0\n", "monotonic 1 1000000000\nboottime 0 0\n",
        "boottime 0 0\nmonotonic 0 0\n"}) {
    EXPECT_FALSE(parse_time_offsets(bad).ok()) << bad;
  }
  EXPECT_TRUE(read_time_offsets(HostPid{::getpid()}).ok());
}

}  // namespace
}  // namespace godwit::kernel
