#include "resource/seccomp/seccomp.h"

#include <gtest/gtest.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>

#include "resource/testing_tasks.h"

namespace godwit::resource {
namespace {

using testing::StoppedChild;

void allow_everything() {
  sock_filter code[] = {{.code = BPF_RET | BPF_K, .jt = 0, .jf = 0, .k = SECCOMP_RET_ALLOW}};
  sock_fprog program{.len = 1, .filter = code};
  if (::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 ||
      ::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0)
    ::_exit(110);
}

void be_strict() {
  if (::prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT) != 0) ::_exit(110);
}

std::string refusal_of(StoppedChild& child) {
  std::vector<Refusal> refusals;
  EXPECT_TRUE(seccomp_resource().precheck(child.view(), refusals).ok());
  if (refusals.size() != 1) return {};
  EXPECT_NE(refusals[0].way_out, "");
  return refusals[0].code;
}

TEST(SeccompTest, WithoutItThereIsNothing) {
  StoppedChild child;
  std::vector<Refusal> refusals;
  ASSERT_TRUE(seccomp_resource().precheck(child.view(), refusals).ok());
  EXPECT_TRUE(refusals.empty());
  const absl::StatusOr<std::string> state = child.capture(seccomp_resource());
  ASSERT_TRUE(state.ok()) << state.status();
  EXPECT_EQ(*state, "");
  EXPECT_TRUE(child.restore(seccomp_resource(), "").ok());
}

TEST(SeccompTest, FiltersAreRefused) {
  StoppedChild child(allow_everything);
  EXPECT_EQ(refusal_of(child), "seccomp.filter");
  EXPECT_EQ(child.capture(seccomp_resource()).status().code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(child.finish(), 0);  // unharmed
}

TEST(SeccompTest, StrictModeIsRefused) {
  StoppedChild child(be_strict);
  EXPECT_EQ(refusal_of(child), "seccomp.strict");
  EXPECT_EQ(child.capture(seccomp_resource()).status().code(),
            absl::StatusCode::kFailedPrecondition);
}

}  // namespace
}  // namespace godwit::resource
