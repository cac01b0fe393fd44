#include <gtest/gtest.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <fstream>

#include "base/fault_point.h"
#include "base/status.h"
#include "base/unique_fd.h"
#include "base/utf8.h"

namespace godwit {
namespace {

TEST(StatusTest, ErrnoSurvivesAnnotation) {
  const absl::Status status = annotate(errno_status(ESRCH, "kill(1)"), "stop the tree");
  EXPECT_EQ(errno_of(status), ESRCH);
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(status.message(), "stop the tree: kill(1): No such process");
}

TEST(StatusTest, OkHasNoErrno) { EXPECT_EQ(errno_of(absl::OkStatus()), 0); }

TEST(Utf8Test, OnlyWhatIsNotUtf8IsEscaped) {
  EXPECT_EQ(escape_non_utf8("/srv/\u00fcber/\U0001f426"), "/srv/\u00fcber/\U0001f426");
  EXPECT_EQ(escape_non_utf8("/srv/\xfc"
                            "ber"),
            "/srv/\\xfcber");
  // Overlong, a surrogate, cut off at the end.
  EXPECT_EQ(escape_non_utf8("\xc0\xaf"), "\\xc0\\xaf");
  EXPECT_EQ(escape_non_utf8("\xed\xa0\x80"), "\\xed\\xa0\\x80");
  EXPECT_EQ(escape_non_utf8("a\xe2\x82"), "a\\xe2\\x82");
}

TEST(FaultPointTest, AFileArmsOneHitOfOneName) {
  const std::string path = ::testing::TempDir() + "fault." + std::to_string(::getpid());
  ::setenv("GODWIT_FAULT", ("@" + path).c_str(), 1);
  EXPECT_TRUE(hit_fault_point("a.b").ok());
  std::ofstream(path) << "a.b=error\n";
  EXPECT_TRUE(hit_fault_point("a").ok());
  EXPECT_TRUE(hit_fault_point("a.bc").ok());
  EXPECT_EQ(hit_fault_point("a.b").code(), absl::StatusCode::kAborted);
  EXPECT_TRUE(hit_fault_point("a.b").ok());
  EXPECT_NE(::access(path.c_str(), F_OK), 0);
  std::ofstream(path + ".go") << "";
  std::ofstream(path) << "a.b=wait\n";
  EXPECT_TRUE(hit_fault_point("a.b").ok());
  ::unlink((path + ".go").c_str());
  ::unsetenv("GODWIT_FAULT");
}

}  // namespace
}  // namespace godwit
