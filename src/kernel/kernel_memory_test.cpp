#include "kernel/kernel_memory.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <unistd.h>

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

}  // namespace
}  // namespace godwit::kernel
