#include <gtest/gtest.h>

#include <cerrno>

#include "base/status.h"
#include "base/unique_fd.h"

namespace godwit {
namespace {

TEST(StatusTest, ErrnoSurvivesAnnotation) {
  const absl::Status status = annotate(errno_status(ESRCH, "kill(1)"), "stop the tree");
  EXPECT_EQ(errno_of(status), ESRCH);
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(status.message(), "stop the tree: kill(1): No such process");
}

TEST(StatusTest, OkHasNoErrno) { EXPECT_EQ(errno_of(absl::OkStatus()), 0); }

}  // namespace
}  // namespace godwit
