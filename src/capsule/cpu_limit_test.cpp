#include "capsule/cpu_limit.h"

#include <gtest/gtest.h>

#include "base/clock.h"
#include "capsule/test_service.h"

namespace godwit::capsule {
namespace {

// CPU time of the service in 300 ms.
double share(const CpuLimit& limit) {
  const int64_t before = *limit.used_ns(), begin = monotonic_ns();
  ::usleep(300'000);
  return static_cast<double>(*limit.used_ns() - before) /
         static_cast<double>(monotonic_ns() - begin);
}

TEST(CpuLimitTest, HoldsWhatForksWhileItIsSetAndLeavesNothing) {
  TestService service;
  auto capsule = service.sh("while :; do (while :; do :; done) & p=$!; sleep 0.02; kill $p; done");
  ASSERT_STATUS_OK(capsule.status());
  const auto limit = CpuLimit::find(capsule->work(), "test-limit");
  if (absl::IsFailedPrecondition(limit.status())) GTEST_SKIP() << limit.status();
  ASSERT_STATUS_OK(limit.status());
  const auto main = HostPid{capsule->info()->main_pid()};
  const auto groups = *kernel::read_file(fmt::format("/proc/{}/cgroup", main.value));
  ASSERT_STATUS_OK(limit->lift());  // nothing is set
  ASSERT_STATUS_OK(limit->set(0.05));
  // Found again, by whoever comes.
  const auto again = CpuLimit::find(capsule->work(), "test-limit");
  ASSERT_STATUS_OK(again.status());
  EXPECT_LT(share(*again), 0.3);
  ASSERT_STATUS_OK(again->set(0.1));
  ASSERT_STATUS_OK(again->lift());
  EXPECT_EQ(*kernel::read_file(fmt::format("/proc/{}/cgroup", main.value)), groups);
  ASSERT_STATUS_OK(limit->lift());
}

}  // namespace
}  // namespace godwit::capsule
