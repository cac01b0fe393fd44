#include "kernel/kernel_memory.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/aio_abi.h>
#include <poll.h>
#include <sched.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>

namespace godwit::kernel {
namespace {

TEST(KernelMemory, AFileIsFoundAndItsMembersAreWhatCallsSay) {
  if (::geteuid() != 0) GTEST_SKIP() << "reading kernel memory needs root";
  auto opened = KernelMemory::open();
  ASSERT_TRUE(opened.ok()) << opened.status();
  const KernelMemory& memory = **opened;
  const UniqueFd fd(::eventfd(7, EFD_CLOEXEC | EFD_NONBLOCK));
  const auto file = memory.file(fd.get());
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ(*memory.number(*file, "file", "f_flags") & O_NONBLOCK,
            static_cast<uint64_t>(O_NONBLOCK));
  struct stat stat {};
  ASSERT_EQ(::fstat(fd.get(), &stat), 0);
  const auto inode = memory.pointer(*file, "file", "f_inode");
  ASSERT_TRUE(inode.ok());
  EXPECT_EQ(*memory.number(*inode, "inode", "i_ino"), stat.st_ino);
  const auto context = memory.pointer(*file, "file", "private_data");
  ASSERT_TRUE(context.ok());
  EXPECT_EQ(*memory.number(*context, "eventfd_ctx", "count"), 7U);
}

TEST(KernelMemory, WhatIsNotThereIsAnError) {
  if (::geteuid() != 0) GTEST_SKIP() << "reading kernel memory needs root";
  auto opened = KernelMemory::open();
  ASSERT_TRUE(opened.ok()) << opened.status();
  std::byte byte{};
  EXPECT_FALSE((*opened)->read(KernelAddress{0}, std::span(&byte, 1)).ok());
  EXPECT_FALSE((*opened)->read(KernelAddress{0xffff800000000000}, std::span(&byte, 1)).ok());
  EXPECT_EQ((*opened)->file(-1).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ((*opened)->file(1 << 20).status().code(), absl::StatusCode::kNotFound);
  EXPECT_FALSE((*opened)->number(KernelAddress{1}, "file", "no_such_member").ok());
}

TEST(KernelMemory, ATaskIsFoundByItsNumber) {
  if (::geteuid() != 0) GTEST_SKIP() << "reading kernel memory needs root";
  auto opened = KernelMemory::open();
  ASSERT_TRUE(opened.ok()) << opened.status();
  const auto task = (*opened)->task(HostPid{::getpid()});
  ASSERT_TRUE(task.ok()) << task.status();
  std::string comm(16, '\0');
  const auto at = (*opened)->member(*task, "task_struct", "comm");
  ASSERT_TRUE(at.ok());
  ASSERT_TRUE((*opened)->read(*at, std::as_writable_bytes(std::span(comm.data(), 16))).ok());
  EXPECT_STREQ(comm.c_str(), ::program_invocation_short_name);
}

// A queue's requests, which are counted on whichever CPU they are made and end.
TEST(KernelMemory, WhatEachCpuCountsIsSummedUp) {
  if (::geteuid() != 0) GTEST_SKIP() << "reading kernel memory needs root";
  auto opened = KernelMemory::open();
  ASSERT_TRUE(opened.ok()) << opened.status();
  const KernelMemory& memory = **opened;
  unsigned long queue = 0;
  ASSERT_EQ(::syscall(SYS_io_setup, 16, &queue), 0);
  const auto references = [&]() -> absl::StatusOr<int64_t> {
    const auto task = memory.task(HostPid{::getpid()});
    const auto mm = memory.pointer(*task, "task_struct", "mm");
    const auto table = memory.pointer(*mm, "mm_struct", "ioctx_table");
    const auto list = memory.member(*table, "kioctx_table", "table");
    KernelAddress first;
    if (absl::Status read = memory.read(*list, std::as_writable_bytes(std::span(&first, 1)));
        !read.ok())
      return read;
    return memory.references(*memory.member(first, "kioctx", "reqs"));
  };
  EXPECT_EQ(references().value_or(-1), 1);  // the queue's own
  int pipe[2];
  ASSERT_EQ(::pipe2(pipe, O_CLOEXEC), 0);
  iocb requests[5]{};
  for (iocb& one : requests) {
    one.aio_lio_opcode = IOCB_CMD_POLL;
    one.aio_fildes = static_cast<uint32_t>(pipe[0]);
    one.aio_buf = POLLIN;
  }
  const long cpus = ::sysconf(_SC_NPROCESSORS_CONF);
  EXPECT_EQ(memory.of_cpus({0})->size(), static_cast<size_t>(cpus));
  cpu_set_t before;
  ASSERT_EQ(::sched_getaffinity(0, sizeof before, &before), 0);
  for (int i = 0; i < 5; ++i) {
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(i % cpus, &one);
    (void)::sched_setaffinity(0, sizeof one, &one);  // one that is off does not matter
    iocb* list[] = {&requests[i]};
    ASSERT_EQ(::syscall(SYS_io_submit, queue, 1, list), 1);
    EXPECT_EQ(references().value_or(-1), i + 2);
  }
  ASSERT_EQ(::write(pipe[1], "x", 1), 1);
  io_event events[5];
  ASSERT_EQ(::syscall(SYS_io_getevents, queue, 5, 5, events, nullptr), 5);
  (void)::sched_setaffinity(0, sizeof before, &before);
  for (int i = 0; i < 1000 && references().value_or(-1) != 1; ++i) ::usleep(1000);
  EXPECT_EQ(references().value_or(-1), 1);
  ::syscall(SYS_io_destroy, queue);
  ::close(pipe[0]);
  ::close(pipe[1]);
}

}  // namespace
}  // namespace godwit::kernel
