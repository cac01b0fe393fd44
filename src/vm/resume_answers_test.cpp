#include "vm/resume_answers.h"

#include <gtest/gtest.h>
#include <sys/socket.h>

#include <array>
#include <string>
#include <thread>

#include "base/unique_fd.h"

namespace godwit::vm {
namespace {

std::string command(char code, const std::string& data) {
  return std::string({0x08, 0, code, 0, static_cast<char>(data.size())}) + data;
}

class ResumeAnswersTest : public testing::Test {
 protected:
  ResumeAnswersTest() {
    std::array<int, 2> ends{};
    EXPECT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends.data()), 0);
    ours_ = UniqueFd(ends[0]);
    qemu_ = UniqueFd(ends[1]);
  }
  absl::Status answer(const std::string& said) {
    EXPECT_EQ(::send(qemu_.get(), said.data(), said.size(), 0), said.size());
    return answer_resume(ours_.get(), Deadline::in(absl::Milliseconds(200)));
  }
  std::string heard() {
    std::array<char, 1000> bytes{};
    const ssize_t got = ::recv(qemu_.get(), bytes.data(), bytes.size(), MSG_DONTWAIT);
    return got < 0 ? "" : std::string(bytes.data(), static_cast<size_t>(got));
  }
  UniqueFd ours_;
  UniqueFd qemu_;
};

const std::string kAnswer("\0\6\0\4\0\0\0\1", 8);

TEST_F(ResumeAnswersTest, AnswersOnceForEachBlockUntilItResumes) {
  const absl::Status answered =
      answer(command(10, "\6pc.ram") + command(10, "\xapc.bios ...") + command(9, ""));
  EXPECT_TRUE(answered.ok()) << answered;
  EXPECT_EQ(heard(), kAnswer + kAnswer);
}

TEST_F(ResumeAnswersTest, WaitsForTheRestOfACommand) {
  const std::string first = command(10, "\6pc.ram");
  EXPECT_TRUE(absl::IsDeadlineExceeded(answer(first.substr(0, 7))));
  EXPECT_EQ(heard(), "");
  std::thread later([&] {
    for (const char each : first + command(9, "")) ::send(qemu_.get(), &each, 1, 0);
  });
  EXPECT_TRUE(answer_resume(ours_.get(), Deadline::in(absl::Seconds(10))).ok());
  later.join();
  EXPECT_EQ(heard(), kAnswer);
}

TEST_F(ResumeAnswersTest, TakesNothingElse) {
  EXPECT_TRUE(absl::IsInvalidArgument(answer("QEVM")));
  EXPECT_TRUE(absl::IsInvalidArgument(answer(command(5, ""))));
  qemu_.reset();
  EXPECT_TRUE(absl::IsOutOfRange(answer_resume(ours_.get(), Deadline::in(absl::Seconds(10)))));
}

}  // namespace
}  // namespace godwit::vm
