#include "pages/uffd_tracker.h"

#include <gtest/gtest.h>

#include <random>

#include "base/status.h"
#include "pages/rig_for_test.h"

namespace godwit::pages {
namespace {

constexpr uint64_t P = kPageSize;
constexpr uint64_t B = Rig::kBase;

PageSet pages_at(uint64_t base, std::initializer_list<uint64_t> numbers) {
  PageSet set;
  for (const uint64_t n : numbers) set.add({base + n * P, base + (n + 1) * P});
  return set;
}

// Small pages unless a test wants others.
void map_small(Rig& rig, uint64_t address, uint64_t bytes, int prot = PROT_READ | PROT_WRITE) {
  rig.map(address, bytes, prot);
  rig.source.call(SYS_madvise, address, bytes, MADV_NOHUGEPAGE);
}

TEST(UffdTracker, FirstScanGivesWhatIsPopulatedThenOnlyWhatIsWritten) {
  Rig rig;
  map_small(rig, B, 64 * P);
  rig.source.fill(B + 3 * P, 2 * P, 1);
  rig.source.fill(B + 9 * P, P, 2);
  rig.source.touch(B + 20 * P);  // the zero page
  ASSERT_TRUE(rig.tracker->start(rig.mappings()).ok());
  ScanResult first = rig.round();
  EXPECT_EQ(first.dirty, pages_at(B, {3, 4, 9, 20}));
  EXPECT_TRUE(first.dropped.empty());
  rig.source.poke(B + 4 * P, 5);
  rig.source.poke(B + 30 * P, 5);
  rig.source.touch(B + 9 * P);
  rig.source.touch(B + 40 * P);
  ScanResult second = rig.round();
  EXPECT_EQ(second.dirty.intersect(pages_at(B, {3, 4, 9, 30})), pages_at(B, {4, 30}));
  ScanResult third = rig.round();
  EXPECT_TRUE(third.dirty.empty());
  EXPECT_TRUE(third.dropped.empty());
  EXPECT_EQ(rig.first_difference(), 0u);
  EXPECT_GE(rig.control.zero_pages, 1u);
}

TEST(UffdTracker, DroppedPagesAreReportedAndNotRead) {
  Rig rig;
  map_small(rig, B, 64 * P);
  rig.source.fill(B, 64 * P, 1);
  ASSERT_TRUE(rig.tracker->start(rig.mappings()).ok());
  rig.round();
  rig.source.call(SYS_madvise, B + 10 * P, 5 * P, MADV_DONTNEED);
  const ScanResult second = rig.round();
  EXPECT_TRUE(second.dirty.empty());
  EXPECT_EQ(second.dropped, (PageSet{{B + 10 * P, B + 15 * P}}));
  EXPECT_EQ(rig.applier->to_drop(), second.dropped);
  // Filled again: not to be dropped any more.
  rig.source.fill(B + 11 * P, P, 7);
  EXPECT_EQ(rig.round().dirty, pages_at(B, {11}));
  EXPECT_FALSE(rig.applier->to_drop().contains(B + 11 * P));
  EXPECT_EQ(rig.first_difference(), 0u);
}

TEST(UffdTracker, AnEmptyReservationCostsNoPageTables) {
  Rig rig;
  const auto page_tables = [&] {
    auto text = kernel::read_file("/proc/" + std::to_string(rig.source.pid().value) + "/status");
    const size_t at = text->find("VmPTE:");
    return std::stoul(text->substr(at + 6));
  };
  const uint64_t huge = 256 * kGiB;
  EXPECT_EQ(rig.source.map(B, huge, PROT_NONE, MAP_NORESERVE), B);
  EXPECT_EQ(rig.source.call(SYS_mprotect, B + 100 * kGiB, 4 * kMiB, PROT_READ | PROT_WRITE), 0);
  rig.source.poke(B + 100 * kGiB + P, 1);
  const uint64_t before = page_tables();
  ASSERT_TRUE(rig.tracker->start(rig.mappings()).ok());
  for (int i = 0; i < 3; ++i) rig.scan();
  rig.source.poke(B + 100 * kGiB + 2 * kMiB, 1);
  EXPECT_TRUE(rig.scan().dirty.contains(B + 100 * kGiB + 2 * kMiB));
  rig.scan(ScanMode::kFrozen);
  EXPECT_LT(page_tables(), before + 1024);  // kB
}

TEST(UffdTracker, NewAndMovedMappingsAreWhollyDirty) {
  Rig rig;
  map_small(rig, B, 16 * P);
  rig.source.fill(B, 16 * P, 1);
  ASSERT_TRUE(rig.tracker->start(rig.mappings()).ok());
  rig.round();
  // New.
  map_small(rig, B + kGiB, 16 * P);
  rig.source.fill(B + kGiB + P, 2 * P, 2);
  EXPECT_EQ(rig.round().dirty, pages_at(B + kGiB, {1, 2}));
  // Unmapped and mapped again under the same address.
  rig.unmap(B, 16 * P);
  map_small(rig, B, 16 * P);
  rig.source.fill(B + 5 * P, P, 3);
  EXPECT_EQ(rig.round().dirty, pages_at(B, {5}));
  // Moved: mremap drops the registration.
  ASSERT_EQ(rig.source.call(SYS_mremap, B + kGiB, 16 * P, 16 * P, MREMAP_MAYMOVE | MREMAP_FIXED,
                            B + 2 * kGiB),
            static_cast<int64_t>(B + 2 * kGiB));
  rig.husk.call(SYS_munmap, B + kGiB, 16 * P);
  rig.applier->forget({B + kGiB, B + kGiB + 16 * P});
  rig.husk.map(B + 2 * kGiB, 16 * P);
  EXPECT_EQ(rig.round().dirty, pages_at(B + 2 * kGiB, {1, 2}));
  EXPECT_EQ(rig.first_difference(), 0u);
}

TEST(UffdTracker, AMappingMadeAnewThatLooksTheSameLosesNothing) {
  Rig rig;
  map_small(rig, B, 64 * P);
  rig.source.fill(B, 64 * P, 1);
  ASSERT_TRUE(rig.tracker->start(rig.mappings()).ok());
  rig.round();
  // Only in the source: the maps read the same, so the husk keeps its old pages.
  EXPECT_EQ(rig.source.map(B, 64 * P), B);
  rig.source.fill(B + 7 * P, P, 9);
  const ScanResult result = rig.round();
  EXPECT_EQ(result.dirty.intersect(PageRange{B, B + 64 * P}), pages_at(B, {7}));
  EXPECT_EQ(rig.applier->to_drop().pages(), 63u);
  EXPECT_EQ(rig.first_difference(), 0u);
}

TEST(UffdTracker, APieceReplacedInTheMiddleOfAScannedMapping) {
  Rig rig;
  map_small(rig, B, 64 * P);
  rig.source.fill(B, 64 * P, 1);
  ASSERT_TRUE(rig.tracker->start(rig.mappings()).ok());
  rig.round();
  const auto old = rig.mappings();
  rig.source.poke(B, 1);
  EXPECT_EQ(rig.source.map(B + 32 * P, P), B + 32 * P);
  rig.source.fill(B + 32 * P, P, 3);
  // The caller still believes in one mapping.
  ScanResult result;
  ASSERT_TRUE(rig.tracker->scan(old, ScanMode::kRunning, result).ok());
  rig.send(result);
  rig.send(rig.scan(ScanMode::kFrozen));
  EXPECT_EQ(rig.first_difference(), 0u);
}

TEST(UffdTracker, ScanOfAMappingThatIsGoneIsStale) {
  Rig rig;
  map_small(rig, B, 64 * P);
  map_small(rig, B + kGiB, 64 * P);
  rig.source.fill(B, 64 * P, 1);
  const auto old = rig.mappings();
  ASSERT_TRUE(rig.tracker->start(old).ok());
  rig.unmap(B + kGiB, 64 * P);
  ScanResult result;
  ASSERT_TRUE(rig.tracker->scan(old, ScanMode::kRunning, result).ok());
  EXPECT_TRUE(result.stale);
  EXPECT_EQ(result.dirty, (PageSet{{B, B + 64 * P}}));
  EXPECT_FALSE(rig.scan().stale);
}

TEST(UffdTracker, PrivateFileMappingsCarryCopiesOnly) {
  Rig rig;
  const std::string path = "/tmp/godwit-pages-test-" + std::to_string(::getpid());
  UniqueFd file(::open(path.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
  const std::string content(32 * P, 'f');
  ASSERT_EQ(::pwrite(file.get(), content.data(), content.size(), 0), ssize_t{32 * P});
  for (Puppet* puppet : {&rig.source, &rig.husk}) {
    std::string remote = path;
    remote.resize(P, '\0');
    puppet->map(B + kGiB, P);
    for (size_t i = 0; i < path.size() + 8; i += 8) {
      uint64_t word;
      std::memcpy(&word, remote.data() + i, 8);
      puppet->poke(B + kGiB + i, word);
    }
    const int64_t fd = puppet->call(SYS_open, B + kGiB, O_RDWR);
    ASSERT_GE(fd, 0);
    ASSERT_EQ(puppet->map(B, 32 * P, PROT_READ | PROT_WRITE, 0, static_cast<int>(fd)), B);
    puppet->call(SYS_munmap, B + kGiB, P);
  }
  ::unlink(path.c_str());
  rig.source.touch(B);
  rig.source.touch(B + P);
  rig.source.fill(B + 2 * P, 4 * P, 1);
  ASSERT_TRUE(rig.tracker->start(rig.mappings()).ok());
  const ScanResult first = rig.round();
  EXPECT_EQ(first.dirty_file, pages_at(B, {2, 3, 4, 5}));
  EXPECT_TRUE(first.dirty.empty());
  rig.source.poke(B + 3 * P, 1);
  rig.source.poke(B + 9 * P, 1);
  rig.source.touch(B + 10 * P);
  rig.source.call(SYS_madvise, B + 2 * P, P, MADV_DONTNEED);  // the file's content again
  rig.source.call(SYS_madvise, B + 4 * P, P, MADV_DONTNEED);
  rig.source.touch(B + 4 * P);
  const ScanResult second = rig.round();
  EXPECT_EQ(second.dirty_file, pages_at(B, {3, 9}));
  EXPECT_EQ(second.dropped, pages_at(B, {2, 4}));
  EXPECT_EQ(rig.first_difference(), 0u);
  // A copy that is all zero is not the file.
  for (uint64_t i = 0; i < P; i += 8) rig.source.poke(B + 12 * P + i, 0);
  const ScanResult third = rig.round(ScanMode::kFrozen);
  EXPECT_EQ(third.dirty_file, pages_at(B, {12}));
  EXPECT_TRUE(third.dropped.empty());
  EXPECT_EQ(rig.first_difference(), 0u);
}

// What could not be read in a round is written by nobody, and yet it is to be carried.
TEST(UffdTracker, ForgottenPagesAreFoundAgain) {
  Rig rig;
  map_small(rig, B, 64 * P);
  map_small(rig, B + kGiB, 64 * P);
  rig.source.fill(B, 32 * P, 1);
  rig.source.fill(B + kGiB, 8 * P, 2);
  ASSERT_TRUE(rig.tracker->start(rig.mappings()).ok());
  rig.scan();  // and nothing of it is sent
  rig.tracker->forget({{B, B + 20 * P}, {B + kGiB, B + kGiB + 8 * P}});
  rig.source.call(SYS_madvise, B + 4 * P, 2 * P, MADV_DONTNEED);
  rig.unmap(B + kGiB, 64 * P);
  const ScanResult again = rig.round();
  PageSet expected{{B, B + 20 * P}};
  expected.subtract({B + 4 * P, B + 6 * P});
  EXPECT_EQ(again.dirty, expected);
  EXPECT_EQ(again.dropped.intersect(PageRange{B, B + 20 * P}), pages_at(B, {4, 5}));
  // Watched as before.
  rig.source.poke(B + 7 * P, 1);
  EXPECT_EQ(rig.scan().dirty, pages_at(B, {7}));
}

TEST(UffdTracker, ProtectionsDoNotHideContents) {
  Rig rig;
  map_small(rig, B, 64 * P);
  rig.source.fill(B, 64 * P, 1);
  rig.protect(B + 10 * P, 4 * P, PROT_NONE);
  rig.protect(B + 20 * P, 4 * P, PROT_READ);
  ASSERT_TRUE(rig.tracker->start(rig.mappings()).ok());
  EXPECT_EQ(rig.round().dirty.pages(), 64u);
  EXPECT_EQ(rig.first_difference(), 0u);
  EXPECT_EQ(rig.control.pages_skipped, 0u);
  // Made writable, written, closed again between two scans.
  rig.protect(B + 20 * P, P, PROT_READ | PROT_WRITE);
  rig.source.poke(B + 20 * P, 1);
  rig.protect(B + 20 * P, P, PROT_READ);
  EXPECT_TRUE(rig.round().dirty.contains(B + 20 * P));
  EXPECT_EQ(rig.first_difference(), 0u);
}

TEST(UffdTracker, HugePages) {
  Rig rig;
  rig.map(B, 16 * kMiB);
  rig.source.call(SYS_madvise, B, 16 * kMiB, MADV_HUGEPAGE);
  rig.source.fill(B, 8 * kMiB, 1);
  ASSERT_TRUE(rig.tracker->start(rig.mappings()).ok());
  EXPECT_EQ(rig.round().dirty.pages(), 8 * kMiB / P);
  rig.source.poke(B + 5 * P, 1);
  const ScanResult second = rig.round();
  EXPECT_EQ(second.dirty, pages_at(B, {5})) << "split by the write, not dirty as a whole";
  rig.source.call(SYS_madvise, B + 2 * kMiB, 2 * kMiB, MADV_DONTNEED);
  EXPECT_TRUE(rig.round().dropped.contains(B + 2 * kMiB + P));
  EXPECT_EQ(rig.first_difference(), 0u);
}

TEST(UffdTracker, GuardRegions) {
  constexpr uint64_t kMadvGuardInstall = 102;  // <asm-generic/mman-common.h>, Linux 6.13
  Rig rig;
  map_small(rig, B, 64 * P);
  rig.source.fill(B, 32 * P, 1);
  if (rig.source.call(SYS_madvise, B + 4 * P, 2 * P, kMadvGuardInstall) != 0)
    GTEST_SKIP() << "MADV_GUARD_INSTALL (Linux 6.13) is missing";
  ASSERT_TRUE(rig.tracker->start(rig.mappings()).ok());
  const ScanResult first = rig.round();
  EXPECT_EQ(first.guards, pages_at(B, {4, 5}));
  EXPECT_EQ(first.dirty.pages(), 30u);
  rig.source.call(SYS_madvise, B + 8 * P, P, kMadvGuardInstall);
  const ScanResult second = rig.round();
  EXPECT_EQ(second.guards, pages_at(B, {8}));
  EXPECT_TRUE(second.dropped.contains(B + 8 * P));
  EXPECT_TRUE(second.dirty.empty());
}

TEST(UffdTracker, ForkAndItsCopiesOnWrite) {
  Rig rig;
  map_small(rig, B, 64 * P);
  rig.source.fill(B, 64 * P, 1);
  ASSERT_TRUE(rig.tracker->start(rig.mappings()).ok());
  rig.round();
  const int64_t child = rig.source.fork_sleeper();
  ASSERT_GT(child, 0);
  EXPECT_TRUE(rig.round().dirty.empty()) << "a fork writes nothing";
  rig.source.poke(B + 8 * P, 2);
  EXPECT_EQ(rig.round().dirty, pages_at(B, {8}));
  rig.source.call(SYS_kill, static_cast<uint64_t>(child), SIGKILL);
  rig.source.call(SYS_wait4, static_cast<uint64_t>(child), 0, 0, 0);
  rig.source.poke(B + 9 * P, 2);
  EXPECT_EQ(rig.round().dirty, pages_at(B, {9}));
  EXPECT_EQ(rig.first_difference(), 0u);
}

TEST(UffdTracker, EveryMappingOfAProcessCanBeTracked) {
  Puppet puppet;
  auto tracker = UffdTracker::make(puppet.make_uffd(), puppet.pid());
  ASSERT_TRUE(tracker.ok()) << tracker.status();
  auto maps = kernel::read_maps(puppet.pid());
  ASSERT_TRUE(maps.ok());
  const auto mappings = private_mappings(*maps);
  ASSERT_GT(mappings.size(), 10u);
  ASSERT_TRUE((*tracker)->start(mappings).ok());
  ScanResult first;
  ASSERT_TRUE((*tracker)->scan(mappings, ScanMode::kFrozen, first).ok());
  EXPECT_FALSE(first.stale);
  EXPECT_GT(first.dirty.pages(), 10u);
  EXPECT_GT(first.dirty_file.pages(), 10u);
  ScanResult second;
  ASSERT_TRUE((*tracker)->scan(mappings, ScanMode::kFrozen, second).ok());
  EXPECT_LT(second.dirty.pages(), 20u);
  EXPECT_TRUE((*tracker)->stop(ScanMode::kRunning).ok());
  puppet.touch(mappings.front().mapping.start);
}

TEST(UffdTracker, DeathOfTheTargetIsAStatus) {
  Puppet puppet;
  puppet.map(B, 64 * P);
  auto tracker = UffdTracker::make(puppet.make_uffd(), puppet.pid());
  ASSERT_TRUE(tracker.ok());
  auto maps = kernel::read_maps(puppet.pid());
  const auto mappings = private_mappings(*maps);
  ASSERT_TRUE((*tracker)->start(mappings).ok());
  ::kill(puppet.pid().value, SIGKILL);
  siginfo_t info{};
  ASSERT_EQ(::waitid(P_PID, static_cast<id_t>(puppet.pid().value), &info, WEXITED | WNOWAIT), 0);
  ScanResult result;
  const absl::Status status = (*tracker)->scan(mappings, ScanMode::kRunning, result);
  EXPECT_EQ(errno_of(status), ESRCH) << status;
  EXPECT_TRUE((*tracker)->stop(ScanMode::kRunning).ok());
}

TEST(UffdTracker, StopLeavesTheProgramAsItWasAndASecondTrackerWorks) {
  Rig rig;
  map_small(rig, B, 16 * kMiB);
  rig.source.fill(B, 16 * kMiB, 1);
  ASSERT_TRUE(rig.tracker->start(rig.mappings()).ok());
  rig.round();
  ASSERT_TRUE(rig.tracker->stop(ScanMode::kRunning).ok());
  rig.tracker.reset();
  auto again = UffdTracker::make(rig.source.make_uffd(), rig.source.pid());
  ASSERT_TRUE(again.ok()) << again.status();
  rig.tracker = *std::move(again);
  ASSERT_TRUE(rig.tracker->start(rig.mappings()).ok());
  EXPECT_EQ(rig.round().dirty.pages(), 16 * kMiB / P);
  rig.source.poke(B, 1);
  EXPECT_EQ(rig.round().dirty, pages_at(B, {0}));
  EXPECT_EQ(rig.first_difference(), 0u);
}

// Everything at once, by chance: writers that never rest, mappings that come, go, move and change
// under the scans; at the end, with the writers stopped, both memories are the same.
TEST(UffdTracker, NothingIsLostUnderRandomChanges) {
  for (const uint32_t seed : {1u, 2u, 3u}) {
    SCOPED_TRACE(seed);
    Rig rig;
    if (seed == 3) rig.use_uffd_in_husk();
    std::mt19937 random(seed);
    const auto below = [&](uint64_t n) { return random() % n; };
    const uint64_t steady = 24 * kMiB;
    rig.map(B, steady);
    if (seed != 2) rig.source.call(SYS_madvise, B, steady, MADV_NOHUGEPAGE);
    rig.source.fill(B, steady, seed);
    constexpr uint64_t kSlot = 64 * P;
    const uint64_t slots = B + kGiB;
    std::vector<bool> mapped(16, false);
    rig.source.start_writers(B, steady, 2);
    ASSERT_TRUE(rig.tracker->start(rig.mappings()).ok());
    for (int i = 0; i < 40; ++i) {
      for (uint64_t ops = below(6); ops > 0; --ops) {
        const uint64_t slot = below(mapped.size());
        const uint64_t address = slots + slot * kSlot;
        const uint64_t part = address + below(32) * P;
        if (!mapped[slot]) {
          rig.map(address, kSlot);
          mapped[slot] = true;
          rig.source.fill(part, below(32) * P, random());
          continue;
        }
        switch (below(7)) {
          case 0:
            rig.unmap(address, kSlot);
            mapped[slot] = false;
            break;
          case 1:
            rig.source.fill(part, below(32) * P, random());
            break;
          case 2:
            rig.source.call(SYS_madvise, part, (1 + below(31)) * P, MADV_DONTNEED);
            break;
          case 3:  // looks the same, is another
            EXPECT_EQ(rig.source.map(part, 8 * P), part);
            break;
          case 4:
            rig.source.fill(part, P, random());
            rig.protect(part, P, below(2) != 0 ? PROT_NONE : PROT_READ);
            rig.round();
            rig.protect(part, P, PROT_READ | PROT_WRITE);
            break;
          case 5:
            rig.source.call(SYS_madvise, B + below(12 * kMiB / P) * P, below(8) * P, MADV_DONTNEED);
            break;
          case 6:
            rig.source.touch(part);
            break;
        }
      }
      rig.round();
    }
    rig.source.stop_writers();
    rig.round(ScanMode::kFrozen);
    EXPECT_EQ(rig.first_difference(), 0u);
    const ScanResult rest = rig.round(ScanMode::kFrozen);
    EXPECT_TRUE(rest.dirty.intersect(PageRange{B, B + steady}).empty());
  }
}

}  // namespace
}  // namespace godwit::pages
