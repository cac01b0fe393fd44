// Pages of MAP_HUGETLB memory through tracker, stream and applier, as UffdTracker has them.
#include "pages/huge_tracker.h"

#include <gtest/gtest.h>

#include <fstream>

#include "kernel/huge_pages.h"
#include "kernel/huge_pages_for_test.h"
#include "pages/rig_for_test.h"
#include "pages/whole_tracker.h"

namespace godwit::pages {
namespace {

constexpr uint64_t B = Rig::kBase;
constexpr uint64_t kHuge = 2 * kMiB;
constexpr int kHugeFlags = MAP_HUGETLB | (21 << 26);
constexpr int kReadWrite = PROT_READ | PROT_WRITE;

PageRange huge(uint64_t index, uint64_t count = 1) {
  return {B + index * kHuge, B + (index + count) * kHuge};
}

// Pages that are there.
uint64_t pages_there(const Puppet& puppet) {
  const auto maps = kernel::huge_pages_of(puppet.pid());
  EXPECT_TRUE(maps.ok()) << maps.status();
  uint64_t pages = 0;
  for (const auto& own : maps->own) pages += own.pages;
  return pages;
}

std::string page_at(const Puppet& puppet, uint64_t address) {
  const UniqueFd mem(
      ::open(("/proc/" + std::to_string(puppet.pid().value) + "/mem").c_str(), O_RDONLY));
  std::string page(kPageSize, '\0');
  EXPECT_EQ(::pread(mem.get(), page.data(), kPageSize, static_cast<off_t>(address)),
            ssize_t{kPageSize});
  return page;
}

#define NEEDS_HUGE_PAGES(count)               \
  const kernel::HugePagesForTest pool(count); \
  if (!pool.there()) GTEST_SKIP() << "the kernel has no huge pages to give"

TEST(HugeTracker, WhatIsWrittenIsDirtyAndTheRestStaysUntouched) {
  NEEDS_HUGE_PAGES(16);
  Rig rig;
  rig.map(B, 8 * kHuge, kReadWrite, kHugeFlags | MAP_NORESERVE);
  rig.source.fill(B, kHuge, 1);
  rig.source.poke(B + 3 * kHuge, 0);  // of zeros, but there
  ASSERT_TRUE(rig.tracker->start(rig.mappings()).ok());
  ScanResult first = rig.round();
  EXPECT_EQ(first.dirty_file, (PageSet{huge(0), huge(3)}));
  EXPECT_TRUE(first.dirty.empty());
  EXPECT_TRUE(rig.round().dirty_file.empty());
  rig.source.poke(B + kHuge - 8, 99);
  rig.source.poke(B + 5 * kHuge + 4096, 98);
  EXPECT_EQ(rig.round().dirty_file, (PageSet{huge(0), huge(5)}));
  EXPECT_TRUE(rig.round(ScanMode::kFrozen).dirty_file.empty());
  EXPECT_EQ(rig.first_difference(), 0U);
}

TEST(HugeTracker, PagesArePopulatedWhereTheyWere) {
  NEEDS_HUGE_PAGES(6);
  Rig rig;
  rig.map(B, 8 * kHuge, kReadWrite, kHugeFlags | MAP_NORESERVE);
  rig.source.fill(B + kHuge, kHuge, 1);
  rig.source.poke(B + 3 * kHuge, 0);
  ASSERT_TRUE(rig.tracker->start(rig.mappings()).ok());
  rig.round(ScanMode::kFrozen);
  EXPECT_EQ(pages_there(rig.source), 2U);
  EXPECT_EQ(pages_there(rig.husk), 2U);
}

// The mark stays with the zeros that come after a drop: no write is seen.
TEST(HugeTracker, WhatIsDroppedIsDroppedAndReadAgainIsZero) {
  NEEDS_HUGE_PAGES(16);
  for (const ScanMode mode : {ScanMode::kRunning, ScanMode::kFrozen}) {
    Rig rig;
    rig.map(B, 4 * kHuge, kReadWrite, kHugeFlags);
    for (uint64_t i = 0; i < 4; ++i) rig.source.fill(B + i * kHuge, kHuge, i + 1);
    ASSERT_TRUE(rig.tracker->start(rig.mappings()).ok());
    rig.round();
    EXPECT_EQ(rig.source.call(SYS_madvise, B, 3 * kHuge, MADV_DONTNEED), 0);
    rig.source.touch(B + 5);               // zeros, never written
    rig.source.poke(B + kHuge + 800, 12);  // one word of zeros
    ScanResult seen = rig.round(mode);
    EXPECT_TRUE(seen.dirty_file.contains(B));
    EXPECT_TRUE(seen.dirty_file.contains(B + kHuge));
    EXPECT_FALSE(seen.dirty_file.contains(B + 3 * kHuge));
    if (mode == ScanMode::kRunning) {
      EXPECT_FALSE(seen.dropped.contains(B + 2 * kHuge)) << "it may be on its way";
      EXPECT_TRUE(rig.round(mode).dropped.contains(B + 2 * kHuge));
    } else {
      EXPECT_TRUE(seen.dirty_file.contains(B + 2 * kHuge));
    }
    EXPECT_EQ(rig.first_difference(), 0U);
  }
}

TEST(HugeTracker, AMappingThatIsMadeAnewIsAllDirty) {
  NEEDS_HUGE_PAGES(16);
  Rig rig;
  rig.map(B, 4 * kHuge, kReadWrite, kHugeFlags);
  for (uint64_t i = 0; i < 4; ++i) rig.source.fill(B + i * kHuge, kHuge, i + 1);
  ASSERT_TRUE(rig.tracker->start(rig.mappings()).ok());
  rig.round();
  rig.map(B + kHuge, kHuge, kReadWrite, kHugeFlags);
  rig.source.poke(B + kHuge, 7);
  rig.unmap(B + 3 * kHuge, kHuge);
  EXPECT_EQ(rig.round().dirty_file, (PageSet{huge(1)}));
  EXPECT_EQ(rig.first_difference(), 0U);
}

// What the program may not write, or not even read.
TEST(HugeTracker, ProtectionsKeepNothingBack) {
  NEEDS_HUGE_PAGES(16);
  Rig rig;
  rig.map(B, 4 * kHuge, kReadWrite, kHugeFlags);
  for (uint64_t i = 0; i < 4; ++i) rig.source.fill(B + i * kHuge, kHuge, i + 1);
  rig.protect(B + kHuge, kHuge, PROT_READ);
  rig.protect(B + 2 * kHuge, kHuge, PROT_NONE);
  ASSERT_TRUE(rig.tracker->start(rig.mappings()).ok());
  EXPECT_EQ(rig.round().dirty_file, (PageSet{huge(0, 4)}));
  rig.protect(B + 2 * kHuge, kHuge, kReadWrite);
  rig.source.fill(B + 2 * kHuge, kHuge, 9);
  rig.protect(B + 2 * kHuge, kHuge, PROT_NONE);
  EXPECT_EQ(rig.round().dirty_file, (PageSet{huge(2)}));
  EXPECT_EQ(rig.first_difference(), 0U);
}

TEST(HugeTracker, WritersLoseNothing) {
  NEEDS_HUGE_PAGES(16);
  Rig rig;
  rig.map(B, 8 * kHuge, kReadWrite, kHugeFlags);
  ASSERT_TRUE(rig.tracker->start(rig.mappings()).ok());
  rig.source.start_writers(B, 8 * kHuge, 2, 20'000);
  for (int i = 0; i < 20; ++i) rig.round();
  rig.source.stop_writers();
  rig.round(ScanMode::kFrozen);
  EXPECT_EQ(rig.first_difference(), 0U);
  // The program runs on, and is frozen again.
  rig.source.poke(B + 5 * kHuge + 77 * 8, 3);
  rig.round(ScanMode::kFrozen);
  EXPECT_EQ(rig.first_difference(), 0U);
}

TEST(HugeTracker, AForkedChildHasItsOwn) {
  NEEDS_HUGE_PAGES(16);
  Rig rig;
  rig.map(B, 4 * kHuge, kReadWrite, kHugeFlags);
  rig.source.fill(B, 4 * kHuge, 1);
  ASSERT_TRUE(rig.tracker->start(rig.mappings()).ok());
  rig.round();
  const int64_t child = rig.source.fork_sleeper();
  ASSERT_GT(child, 0);
  EXPECT_TRUE(rig.round().dirty_file.empty());
  rig.source.poke(B + kHuge, 5);  // copied
  EXPECT_EQ(rig.round().dirty_file, (PageSet{huge(1)}));
  EXPECT_EQ(rig.first_difference(), 0U);
  ::kill(static_cast<pid_t>(child), SIGKILL);
}

TEST(HugeTracker, StopLetsGo) {
  NEEDS_HUGE_PAGES(8);
  Rig rig;
  rig.map(B, 4 * kHuge, kReadWrite, kHugeFlags);
  rig.source.fill(B, 4 * kHuge, 1);
  ASSERT_TRUE(rig.tracker->start(rig.mappings()).ok());
  rig.round();
  ASSERT_TRUE(rig.tracker->stop(ScanMode::kRunning).ok());
  std::ifstream smaps("/proc/" + std::to_string(rig.source.pid().value) + "/smaps");
  for (std::string line; std::getline(smaps, line);)
    if (line.starts_with("VmFlags:")) {
      EXPECT_EQ(line.find(" uw"), std::string::npos) << line;
    }
}

TEST(HugeTracker, LargerPages) {
  const kernel::HugePagesForTest pool(2, kGiB);
  if (!pool.there()) GTEST_SKIP() << "the kernel has no pages of 1 GiB to give";
  Rig rig;
  rig.map(B, kGiB, kReadWrite, MAP_HUGETLB | (30 << 26));
  rig.source.fill(B + kGiB - kMiB, kMiB, 1);
  ASSERT_TRUE(rig.tracker->start(rig.mappings()).ok());
  EXPECT_EQ(rig.round().dirty_file, (PageSet{{B, B + kGiB}}));
  EXPECT_TRUE(rig.round().dirty_file.empty());
  rig.source.poke(B + kGiB / 2, 5);
  EXPECT_EQ(rig.round().dirty_file, (PageSet{{B, B + kGiB}}));
  EXPECT_TRUE(rig.round(ScanMode::kFrozen).dirty_file.empty());
  for (const uint64_t at : {B, B + kGiB / 2, B + kGiB - kMiB, B + kGiB - kPageSize})
    EXPECT_EQ(page_at(rig.source, at), page_at(rig.husk, at)) << at - B;
}

TEST(HugeTracker, WithoutATracker) {
  NEEDS_HUGE_PAGES(6);
  Rig rig;
  rig.map(B, 4 * kHuge, kReadWrite, kHugeFlags | MAP_NORESERVE);
  rig.source.fill(B + kHuge, kHuge, 1);
  auto tracker = WholeTracker::make(rig.source.pid());
  ASSERT_TRUE(tracker.ok());
  ScanResult found;
  ASSERT_TRUE((*tracker)->scan(rig.mappings(), ScanMode::kFrozen, found).ok());
  EXPECT_EQ(found.dirty_file, (PageSet{huge(1)}));
}

}  // namespace
}  // namespace godwit::pages
