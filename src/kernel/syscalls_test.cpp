#include "kernel/syscalls.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <string>

#include "base/status.h"

namespace godwit::kernel {
namespace {

TEST(Syscalls, DescriptorsTravelOverASocketWithTheirDescription) {
  int ends[2];
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends), 0);
  const UniqueFd a(ends[0]);
  UniqueFd b(ends[1]);
  auto memory = memfd_create("travels", 0);
  ASSERT_TRUE(memory.ok());
  ASSERT_EQ(::write(memory->get(), "hello", 5), 5);
  ASSERT_TRUE(send_with_fds(b.get(), "x", {memory->get(), b.get()}).ok());
  b.reset();
  auto received = receive_with_fds(a.get(), 16);
  ASSERT_TRUE(received.ok()) << received.status();
  EXPECT_EQ(received->bytes, "x");
  ASSERT_EQ(received->fds.size(), 2U);
  EXPECT_EQ(::lseek(received->fds[0].get(), 0, SEEK_CUR), 5);
  EXPECT_NE(::fcntl(received->fds[0].get(), F_GETFD) & FD_CLOEXEC, 0);
  bool same = false;
  const HostPid self{::getpid()};
  ASSERT_TRUE(kcmp_same_file(self, received->fds[0].get(), self, memory->get(), same).ok());
  EXPECT_TRUE(same);
  ASSERT_TRUE(kcmp_same_file(self, a.get(), self, memory->get(), same).ok());
  EXPECT_FALSE(same);
  received->fds.clear();
  EXPECT_EQ(receive_with_fds(a.get(), 16).status().code(), absl::StatusCode::kOutOfRange);
}

TEST(Syscalls, OneMemoryOrTwo) {
  const HostPid self{::getpid()};
  bool same = false;
  ASSERT_TRUE(kcmp_same_memory(self, self, same).ok());
  EXPECT_TRUE(same);
  const pid_t child = ::fork();
  if (child == 0)
    for (;;) ::pause();
  EXPECT_TRUE(kcmp_same_memory(self, {child}, same).ok());
  EXPECT_FALSE(same);
  ::kill(child, SIGKILL);
  ::waitpid(child, nullptr, 0);
  EXPECT_EQ(errno_of(kcmp_same_memory(self, {child}, same)), ESRCH);
}

TEST(Syscalls, MessageThatIsTooLongIsAnErrorNotACut) {
  int ends[2];
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends), 0);
  const UniqueFd a(ends[0]);
  const UniqueFd b(ends[1]);
  ASSERT_TRUE(send_with_fds(b.get(), "four", {a.get()}).ok());
  EXPECT_EQ(receive_with_fds(a.get(), 3).status().code(), absl::StatusCode::kDataLoss);
  EXPECT_FALSE(send_with_fds(b.get(), "", {a.get()}).ok());
  EXPECT_FALSE(send_with_fds(b.get(), "x", std::vector<int>(254, a.get())).ok());
}

TEST(Syscalls, ReadFileHasALimitAndReadsAllOfIt) {
  auto memory = memfd_create("big", 0);
  ASSERT_TRUE(memory.ok());
  const std::string content(100'000, 'z');
  ASSERT_EQ(::write(memory->get(), content.data(), content.size()), 100'000);
  const std::string path = "/proc/self/fd/" + std::to_string(memory->get());
  const auto whole = read_file(path, content.size());
  ASSERT_TRUE(whole.ok());
  EXPECT_EQ(*whole, content);
  EXPECT_EQ(read_file(path, content.size() - 1).status().code(),
            absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(errno_of(read_file("/proc/self/no_such_thing").status()), ENOENT);
  ASSERT_TRUE(write_file(path, "ab").ok());
  EXPECT_EQ(read_file(path)->substr(0, 3), "abz");
}

TEST(Syscalls, LongLinksAreReadWhole) {
  char folder[] = "/tmp/godwit-kernel-XXXXXX";
  ASSERT_NE(::mkdtemp(folder), nullptr);
  const std::string link = std::string(folder) + "/link";
  const std::string target(1000, 'q');
  ASSERT_EQ(::symlink(target.c_str(), link.c_str()), 0);
  const auto read = readlinkat(AT_FDCWD, link);
  ASSERT_TRUE(read.ok());
  EXPECT_EQ(*read, target);
  const auto names = list_folder(folder);
  ASSERT_TRUE(names.ok());
  EXPECT_EQ(*names, std::vector<std::string>{"link"});
  EXPECT_EQ(::unlink(link.c_str()), 0);
  EXPECT_EQ(::rmdir(folder), 0);
}

TEST(Syscalls, DescriptorsOfAProcessAreTakenThroughItsPidfd) {
  const auto pidfd = pidfd_open(HostPid{::getpid()});
  ASSERT_TRUE(pidfd.ok());
  auto pipe = pipe2(O_NONBLOCK);
  ASSERT_TRUE(pipe.ok());
  const auto copy = pidfd_getfd(pidfd->get(), pipe->write.get());
  ASSERT_TRUE(copy.ok());
  ASSERT_EQ(::write(copy->get(), "p", 1), 1);
  char c = 0;
  EXPECT_EQ(::read(pipe->read.get(), &c, 1), 1);
  EXPECT_EQ(c, 'p');
  EXPECT_EQ(errno_of(pidfd_getfd(pidfd->get(), 1 << 20).status()), EBADF);
  EXPECT_EQ(*fcntl_int(pipe->read.get(), F_GETFL) & O_NONBLOCK, O_NONBLOCK);
}

}  // namespace
}  // namespace godwit::kernel
