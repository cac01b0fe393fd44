#include "pages/pinned.h"

#include <gtest/gtest.h>
#include <linux/io_uring.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/unique_fd.h"

namespace godwit::pages {
namespace {

// Buffers that are registered with io_uring are pinned as long as they are.
class PinnedPagesTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (::geteuid() != 0) GTEST_SKIP() << "reading kernel memory needs root";
    auto memory = kernel::KernelMemory::open();
    ASSERT_TRUE(memory.ok()) << memory.status();
    memory_ = *std::move(memory);
    auto pinned = PinnedPages::open(*memory_);
    ASSERT_TRUE(pinned.ok()) << pinned.status();
    pinned_.emplace(*std::move(pinned));
    io_uring_params params{};
    ring_.reset(static_cast<int>(::syscall(SYS_io_uring_setup, 4, &params)));
    ASSERT_TRUE(ring_) << "io_uring_setup: " << errno;
  }

  void pin(uint64_t at, uint64_t bytes) {
    iovec buffer{reinterpret_cast<void*>(at), bytes};
    ASSERT_EQ(::syscall(SYS_io_uring_register, ring_.get(), IORING_REGISTER_BUFFERS, &buffer, 1), 0)
        << errno;
  }

  uint64_t map(uint64_t bytes) {
    void* at = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return reinterpret_cast<uint64_t>(at);
  }

  PageSet among(PageRange range) {
    auto found = pinned_->among(HostPid{::getpid()}, PageSet({range}));
    EXPECT_TRUE(found.ok()) << found.status();
    return found.ok() ? *found : PageSet();
  }

  std::unique_ptr<kernel::KernelMemory> memory_;
  std::optional<PinnedPages> pinned_;
  UniqueFd ring_;
};

TEST_F(PinnedPagesTest, ThoseAndNoOthersAreFound) {
  constexpr uint64_t kPages = 300;
  const uint64_t at = map(kPages * kPageSize);
  ::madvise(reinterpret_cast<void*>(at), kPages * kPageSize, MADV_NOHUGEPAGE);
  for (uint64_t i = 0; i < kPages; i += 1)
    if (i != 7) *reinterpret_cast<volatile char*>(at + i * kPageSize) = 1;
  EXPECT_TRUE(among({at, at + kPages * kPageSize}).empty());
  pin(at + 140 * kPageSize, 3 * kPageSize);
  EXPECT_EQ(among({at, at + kPages * kPageSize}),
            PageSet({{at + 140 * kPageSize, at + 143 * kPageSize}}));
  EXPECT_EQ(among({at + 142 * kPageSize, at + 143 * kPageSize}).pages(), 1U);
  ASSERT_EQ(::syscall(SYS_io_uring_register, ring_.get(), IORING_UNREGISTER_BUFFERS, nullptr, 0),
            0);
  EXPECT_TRUE(among({at, at + kPages * kPageSize}).empty());
  ::munmap(reinterpret_cast<void*>(at), kPages * kPageSize);
}

TEST_F(PinnedPagesTest, AHugePageIsWhenAPartOfItIs) {
  constexpr uint64_t kHuge = uint64_t{2} << 20;
  const uint64_t mapped = map(2 * kHuge);
  const uint64_t at = (mapped + kHuge - 1) / kHuge * kHuge;
  ::madvise(reinterpret_cast<void*>(at), kHuge, MADV_HUGEPAGE);
  *reinterpret_cast<volatile char*>(at) = 1;
  if (::madvise(reinterpret_cast<void*>(at), kHuge, 25 /* MADV_COLLAPSE, Linux 6.1 */) != 0)
    GTEST_SKIP() << "no huge page is to be had: " << errno;
  EXPECT_TRUE(among({at, at + kHuge}).empty());
  pin(at + 100 * kPageSize, kPageSize);
  EXPECT_EQ(among({at, at + kHuge}).pages(), kHuge / kPageSize);
  EXPECT_EQ(among({at, at + kPageSize}).pages(), 1U);
  ::munmap(reinterpret_cast<void*>(mapped), 2 * kHuge);
}

}  // namespace
}  // namespace godwit::pages
