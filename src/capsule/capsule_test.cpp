#include "capsule/capsule.h"

#include <signal.h>

#include "capsule/test_service.h"

namespace godwit::capsule {
namespace {

TEST(CapsuleTest, RunsAProgramAndKeepsItsExitCodeAndOutput) {
  TestService service;
  auto capsule = service.sh("echo out; echo err >&2; printf tail; exit 7");
  ASSERT_STATUS_OK(capsule.status());
  auto info = capsule->wait_exit(soon());
  ASSERT_STATUS_OK(info.status());
  EXPECT_EQ(info->state(), CAPSULE_EXITED);
  EXPECT_TRUE(info->exit_known());
  EXPECT_EQ(info->exit_code(), 7);
  EXPECT_EQ(*service.log(1), "out\ntail");
  EXPECT_EQ(*service.log(2), "err\n");
  auto again = service.open();
  ASSERT_STATUS_OK(again.status());
  EXPECT_EQ(again->info()->exit_code(), 7);
}

}  // namespace
}  // namespace godwit::capsule
