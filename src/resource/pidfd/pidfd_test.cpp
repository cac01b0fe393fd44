#include "resource/pidfd/pidfd.h"

#include <gtest/gtest.h>
#include <poll.h>
#include <sched.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "resource/pidfd/pidfd.pb.h"
#include "resource/testing_contexts.h"

namespace godwit::resource {
namespace {

using testing::FakeCaptureContext;
using testing::FakeRestoreContext;
using testing::open_file;

UniqueFd pidfd(pid_t pid, int flags) {
  return UniqueFd(static_cast<int>(::syscall(SYS_pidfd_open, pid, flags)));
}

class Child {
 public:
  explicit Child(int namespaces = 0) {
    pid_ = static_cast<pid_t>(
        ::syscall(SYS_clone, namespaces | SIGCHLD, nullptr, nullptr, nullptr, nullptr));
    if (pid_ == 0)
      for (;;) ::pause();
  }
  ~Child() { reap(); }
  pid_t pid() const { return pid_; }
  void end() const {
    ::kill(pid_, SIGKILL);
    siginfo_t info{};
    ::waitid(P_PID, static_cast<id_t>(pid_), &info, WEXITED | WNOWAIT);
  }
  void reap() {
    if (pid_ <= 0) return;
    end();
    ::waitpid(std::exchange(pid_, 0), nullptr, 0);
  }

 private:
  pid_t pid_ = 0;
};

bool readable(int fd) {
  pollfd polled{fd, POLLIN, 0};
  return ::poll(&polled, 1, 0) == 1;
}

std::string capture(int fd) {
  const FakeCaptureContext source;
  const OpenFile file = open_file(fd);
  EXPECT_TRUE(pidfd_kind().recognise(file));
  const auto state = pidfd_kind().capture(file, source);
  EXPECT_TRUE(state.ok()) << state.status();
  return state.value_or("");
}

UniqueFd restore(const std::string& state) {
  FakeRestoreContext destination;
  auto made = pidfd_kind().create(1, state, destination);
  EXPECT_TRUE(made.ok()) << made.status();
  return made.ok() ? *std::move(made) : UniqueFd();
}

TEST(PidfdTest, OfARunningProcess) {
  const Child child;
  for (const int flags : {0, O_NONBLOCK, O_EXCL, O_NONBLOCK | O_EXCL}) {
    const UniqueFd fd = pidfd(child.pid(), flags);
    if (!fd) continue;  // before Linux 6.9
    const std::string state = capture(fd.get());
    PidfdState parsed;
    ASSERT_TRUE(parsed.ParseFromString(state));
    EXPECT_EQ(parsed.pid(), child.pid());
    EXPECT_EQ(parsed.flags(), static_cast<uint32_t>(flags));
    const UniqueFd made = restore(state);
    EXPECT_EQ(capture(made.get()), state);
    EXPECT_FALSE(readable(made.get()));
    EXPECT_EQ(::syscall(SYS_pidfd_send_signal, made.get(), 0, nullptr, 0), 0);
  }
}

TEST(PidfdTest, OfAZombieAndOfOneThatWasWaitedFor) {
  Child child;
  const UniqueFd fd = pidfd(child.pid(), O_NONBLOCK);
  ASSERT_TRUE(fd);
  child.end();
  const std::string zombie = capture(fd.get());
  const UniqueFd of_zombie = restore(zombie);
  EXPECT_EQ(capture(of_zombie.get()), zombie);
  EXPECT_TRUE(readable(of_zombie.get()));
  child.reap();
  const std::string ended = capture(fd.get());
  PidfdState parsed;
  ASSERT_TRUE(parsed.ParseFromString(ended));
  EXPECT_EQ(parsed.pid(), 0);
  const UniqueFd of_ended = restore(ended);
  EXPECT_EQ(capture(of_ended.get()), ended);
  EXPECT_TRUE(readable(of_ended.get()));
  EXPECT_EQ(::syscall(SYS_pidfd_send_signal, of_ended.get(), 0, nullptr, 0), -1);
  EXPECT_EQ(errno, ESRCH);
  EXPECT_EQ(::waitpid(-1, nullptr, WNOHANG), -1);  // nobody is left of its making
}

TEST(PidfdTest, OutsideIsRefused) {
  const Child other(CLONE_NEWPID);
  const UniqueFd fd = pidfd(other.pid(), 0);
  ASSERT_TRUE(fd);
  const FakeCaptureContext source;
  std::vector<Refusal> refusals;
  ASSERT_TRUE(pidfd_kind().precheck(open_file(fd.get()), source, refusals).ok());
  ASSERT_EQ(refusals.size(), 1U);
  EXPECT_EQ(refusals[0].code, "pidfd.outside");
  EXPECT_FALSE(pidfd_kind().capture(open_file(fd.get()), source).ok());
}

TEST(PidfdTest, DamagedStatesAreRefused) {
  FakeRestoreContext destination;
  PidfdState state;
  state.set_pid(-3);
  EXPECT_TRUE(
      absl::IsDataLoss(pidfd_kind().create(1, state.SerializeAsString(), destination).status()));
  state.set_pid(0);
  state.set_flags(1U << 30);
  EXPECT_TRUE(
      absl::IsDataLoss(pidfd_kind().create(1, state.SerializeAsString(), destination).status()));
  EXPECT_TRUE(absl::IsDataLoss(pidfd_kind().create(1, "\xff", destination).status()));
}

}  // namespace
}  // namespace godwit::resource
