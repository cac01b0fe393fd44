#include "kernel/huge_pages.h"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstring>

#include "kernel/huge_pages_for_test.h"
#include "kernel/syscalls.h"

namespace godwit::kernel {
namespace {

constexpr uint64_t kHuge = uint64_t{2} << 20;

UniqueFd memfd(uint64_t pages) {
  auto fd =
      memfd_create("test", MFD_CLOEXEC | MFD_HUGETLB | MFD_ALLOW_SEALING | huge_size_flag(kHuge));
  EXPECT_TRUE(fd.ok()) << fd.status();
  EXPECT_EQ(::ftruncate(fd->get(), static_cast<off_t>(pages * kHuge)), 0);
  return *std::move(fd);
}

uint64_t available() {
  const auto pools = read_huge_page_pools();
  EXPECT_TRUE(pools.ok()) << pools.status();
  for (const HugePages& pool : *pools)
    if (pool.page_bytes == kHuge) return pool.pages;
  return 0;
}

TEST(HugePages, SizesAreToldByDevice) {
  ASSERT_TRUE(has_huge_pages_of(kHuge));
  EXPECT_FALSE(has_huge_pages_of(kHuge + 1));
  EXPECT_FALSE(has_huge_pages_of(4096));
  const UniqueFd fd = memfd(1);
  struct stat stat {};
  ASSERT_EQ(::fstat(fd.get(), &stat), 0);
  EXPECT_EQ(huge_page_bytes(stat.st_dev), kHuge);
  EXPECT_EQ(huge_page_bytes_of(fd.get()), kHuge);
  const auto ordinary = memfd_create("test", MFD_CLOEXEC);
  ASSERT_TRUE(ordinary.ok());
  ASSERT_EQ(::fstat(ordinary->get(), &stat), 0);
  EXPECT_EQ(huge_page_bytes(stat.st_dev), 0U);
  EXPECT_EQ(huge_page_bytes_of(ordinary->get()), 0U);
}

TEST(HugePages, AHoleIsNotThereAndStaysOne) {
  const HugePagesForTest pool(4);
  if (!pool.there()) GTEST_SKIP() << "the kernel has no huge pages to give";
  const UniqueFd fd = memfd(4);
  EXPECT_EQ(*huge_pages_there(fd.get(), 4 * kHuge, kHuge), std::vector<bool>(4, false));
  void* memory = ::mmap(nullptr, 4 * kHuge, PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0);
  ASSERT_NE(memory, MAP_FAILED);
  static_cast<char*>(memory)[2 * kHuge + 5] = 1;
  const std::vector<bool> third = {false, false, true, false};
  EXPECT_EQ(*huge_pages_there(fd.get(), 4 * kHuge, kHuge), third);
  EXPECT_EQ(*huge_pages_there(fd.get(), 4 * kHuge, kHuge), third);
  ASSERT_TRUE(populate_huge_pages(static_cast<char*>(memory) + 4096, kHuge, kHuge).ok());
  const std::vector<bool> but_last = {true, true, true, false};
  EXPECT_EQ(*huge_pages_there(fd.get(), 4 * kHuge, kHuge), but_last);
  ASSERT_EQ(::madvise(memory, kHuge, MADV_REMOVE), 0);
  EXPECT_FALSE((*huge_pages_there(fd.get(), 4 * kHuge, kHuge))[0]);
  ::munmap(memory, 4 * kHuge);
}

TEST(HugePages, WhatIsReservedCannotBeHad) {
  const HugePagesForTest pool(4);
  if (!pool.there()) GTEST_SKIP() << "the kernel has no huge pages to give";
  const uint64_t before = available();
  ASSERT_GE(before, 4U);
  const int flags =
      MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | static_cast<int>(huge_size_flag(kHuge));
  void* reserved = ::mmap(nullptr, 3 * kHuge, PROT_READ | PROT_WRITE, flags, -1, 0);
  ASSERT_NE(reserved, MAP_FAILED);
  EXPECT_EQ(available(), before - 3);
  void* loose = ::mmap(nullptr, 8 * kHuge, PROT_READ | PROT_WRITE, flags | MAP_NORESERVE, -1, 0);
  ASSERT_NE(loose, MAP_FAILED);
  EXPECT_EQ(available(), before - 3);
  static_cast<char*>(loose)[3 * kHuge] = 1;
  EXPECT_EQ(available(), before - 4);
  const auto of = huge_pages_of(HostPid{::getpid()});
  ASSERT_TRUE(of.ok()) << of.status();
  uint64_t own = 0;
  for (const HugePages& one : of->own) own += one.pages;
  EXPECT_EQ(own, 4U);
  EXPECT_TRUE(of->objects.empty());
  const UniqueFd fd = memfd(2);
  void* shared = ::mmap(nullptr, 2 * kHuge, PROT_READ, MAP_SHARED | MAP_NORESERVE, fd.get(), 0);
  ASSERT_NE(shared, MAP_FAILED);
  const auto with = huge_pages_of(HostPid{::getpid()});
  ASSERT_EQ(with->objects.size(), 1U);
  EXPECT_EQ(with->objects[0].pages, 0U);
  EXPECT_EQ(with->objects[0].page_bytes, kHuge);
  ::munmap(shared, 2 * kHuge);
  ::munmap(loose, 8 * kHuge);
  ::munmap(reserved, 3 * kHuge);
  EXPECT_EQ(available(), before);
}

TEST(HugePages, APageThatIsNotToBeHadIsAnError) {
  if (available() != 0) GTEST_SKIP() << "somebody has a pool of huge pages";
  const UniqueFd fd = memfd(1);
  void* memory =
      ::mmap(nullptr, kHuge, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd.get(), 0);
  ASSERT_NE(memory, MAP_FAILED);
  const absl::Status populated = populate_huge_pages(memory, kHuge, kHuge);
  EXPECT_EQ(populated.code(), absl::StatusCode::kResourceExhausted) << populated;
  ::munmap(memory, kHuge);
}

}  // namespace
}  // namespace godwit::kernel
