#include "resource/signal_owner/signal_owner.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/syscall.h>

#include "resource/testing_contexts.h"
#include "resource/testing_tasks.h"

namespace godwit::resource {
namespace {

using testing::FakeCaptureContext;
using testing::open_file;
using testing::StoppedChild;

struct Pipe {
  UniqueFd read, write;
  Pipe() {
    int ends[2];
    EXPECT_EQ(::pipe2(ends, O_CLOEXEC), 0);
    read.reset(ends[0]);
    write.reset(ends[1]);
  }
};

void own(int fd, __pid_type type, int id) {
  const f_owner_ex owner{.type = type, .pid = id};
  EXPECT_EQ(::fcntl(fd, F_SETOWN_EX, &owner), 0);
}

std::vector<std::string> refusals_of(int fd) {
  std::vector<Refusal> refusals;
  EXPECT_TRUE(refuse_signal_owner(open_file(fd), FakeCaptureContext(), refusals).ok());
  std::vector<std::string> codes;
  for (const Refusal& one : refusals) codes.push_back(one.code);
  return codes;
}

TEST(SignalOwnerTest, NobodyHasNone) {
  const Pipe pipe;
  const auto owner = signal_owner_of(open_file(pipe.read.get()));
  ASSERT_TRUE(owner.ok()) << owner.status();
  EXPECT_FALSE(owner->has_value());
  EXPECT_TRUE(refusals_of(pipe.read.get()).empty());
}

// Asked for again in another process, by a batch.
TEST(SignalOwnerTest, EveryField) {
  ::setpgid(0, 0);
  ::signal(SIGRTMIN + 3, SIG_IGN);  // comes when the pipe's end is closed
  const Pipe pipe;
  const int fd = pipe.read.get();
  for (const __pid_type type : {F_OWNER_TID, F_OWNER_PID, F_OWNER_PGRP}) {
    own(fd, type, type == F_OWNER_PGRP ? ::getpgrp() : ::getpid());
    ASSERT_EQ(::fcntl(fd, F_SETSIG, SIGRTMIN + 3), 0);
    ASSERT_EQ(::fcntl(fd, F_SETFL, O_ASYNC | O_NONBLOCK), 0);
    const OpenFile file = open_file(fd);
    const auto owner = signal_owner_of(file);
    ASSERT_TRUE(owner.ok() && owner->has_value()) << owner.status();
    EXPECT_EQ((*owner)->type(), type + 1);
    EXPECT_EQ((*owner)->signal(), SIGRTMIN + 3);
    EXPECT_TRUE(refusals_of(fd).empty());
    own(fd, F_OWNER_PID, 0);
    ASSERT_EQ(::fcntl(fd, F_SETSIG, 0), 0);
    ASSERT_EQ(::fcntl(fd, F_SETFL, 0), 0);

    StoppedChild husk;  // has a copy of the descriptor
    tracee::Batch batch;
    const auto check =
        add_signal_owner_calls(**owner, fd, static_cast<uint32_t>(file.status_flags), batch);
    ASSERT_TRUE(husk.run(batch).ok());
    const absl::Status done = check(batch);
    EXPECT_TRUE(done.ok()) << done;
    const OpenFile again = open_file(fd);
    EXPECT_EQ(again.status_flags, file.status_flags);
    const auto as_it_is = signal_owner_of(again);
    ASSERT_TRUE(as_it_is.ok() && as_it_is->has_value());
    EXPECT_EQ((*as_it_is)->SerializeAsString(), (*owner)->SerializeAsString());
  }
}

TEST(SignalOwnerTest, OwnersThatCannotBeNamedAreRefused) {
  const Pipe pipe;
  const int fd = pipe.read.get();
  const auto ended = [](const std::function<void()>& body) {
    const pid_t pid = ::fork();
    if (pid == 0) {
      body();
      ::_exit(0);
    }
    siginfo_t info{};
    ::waitid(P_PID, static_cast<id_t>(pid), &info, WEXITED | WNOWAIT);
    return pid;
  };
  const pid_t zombie = ended([] {});
  own(fd, F_OWNER_PID, zombie);
  EXPECT_TRUE(refusals_of(fd).empty());
  ::waitpid(zombie, nullptr, 0);
  EXPECT_TRUE(refusals_of(fd).empty());  // nobody any more (Linux 5.12)

  // A group without its leader.
  int alive[2];
  ASSERT_EQ(::pipe(alive), 0);
  const pid_t leader = ended([&] {
    ::setpgid(0, 0);
    if (::fork() != 0) return;
    ::close(alive[1]);
    char byte = 0;
    ::_exit(::read(alive[0], &byte, 1) == 0 ? 0 : 1);
  });
  own(fd, F_OWNER_PGRP, leader);
  ::waitpid(leader, nullptr, 0);
  EXPECT_EQ(refusals_of(fd), std::vector<std::string>{"fd.async"});
  ::close(alive[0]);
  ::close(alive[1]);

  const auto outside = static_cast<pid_t>(
      ::syscall(SYS_clone, CLONE_NEWPID | SIGCHLD, nullptr, nullptr, nullptr, nullptr));
  if (outside == 0)
    for (;;) ::pause();
  own(fd, F_OWNER_PID, outside);
  EXPECT_EQ(refusals_of(fd), std::vector<std::string>{"fd.async"});
  ::kill(outside, SIGKILL);
  ::waitpid(outside, nullptr, 0);

  const UniqueFd folder(::open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  own(folder.get(), F_OWNER_PID, ::getpid());
  EXPECT_EQ(refusals_of(folder.get()), std::vector<std::string>{"fd.async"});
}

}  // namespace
}  // namespace godwit::resource
