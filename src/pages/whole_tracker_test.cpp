#include "pages/whole_tracker.h"

#include "pages/puppet_for_test.h"

namespace godwit::pages {
namespace {

constexpr uint64_t kAt = 0x2000'0000'0000;
constexpr uint64_t kFileAt = 0x2000'1000'0000;
constexpr uint64_t kPage = 4096;

TEST(WholeTrackerTest, NothingWhileItRunsAndAllWhenItIsFrozen) {
  Puppet puppet;
  puppet.map(kAt, 8 * kPage);
  puppet.fill(kAt + kPage, 2 * kPage, 1);
  const int64_t number = puppet.call(SYS_open, reinterpret_cast<uint64_t>("/proc/self/exe"), 0);
  ASSERT_GE(number, 0);
  puppet.map(kFileAt, 4 * kPage, PROT_READ | PROT_WRITE, 0, static_cast<int>(number));
  puppet.touch(kFileAt + kPage);
  puppet.poke(kFileAt + 2 * kPage, 5);

  std::vector<TrackedMapping> mappings(2);
  mappings[0].mapping.start = kAt;
  mappings[0].mapping.end = kAt + 8 * kPage;
  mappings[0].kind = MappingKind::kPrivateAnonymous;
  mappings[1].mapping.start = kFileAt;
  mappings[1].mapping.end = kFileAt + 4 * kPage;
  mappings[1].kind = MappingKind::kPrivateFile;
  auto tracker = WholeTracker::make(puppet.pid());
  ASSERT_TRUE(tracker.ok()) << tracker.status();
  ASSERT_TRUE((*tracker)->start(mappings).ok());
  ScanResult running;
  ASSERT_TRUE((*tracker)->scan(mappings, ScanMode::kRunning, running).ok());
  EXPECT_TRUE(running.dirty.empty() && running.dirty_file.empty() && running.dropped.empty());
  // Twice: a freeze may be tried again.
  for (int i = 0; i < 2; ++i) {
    ScanResult frozen;
    ASSERT_TRUE((*tracker)->scan(mappings, ScanMode::kFrozen, frozen).ok());
    EXPECT_EQ(frozen.dirty, PageSet({PageRange{kAt + kPage, kAt + 3 * kPage}}));
    EXPECT_EQ(frozen.dirty_file, PageSet({PageRange{kFileAt + 2 * kPage, kFileAt + 3 * kPage}}));
    EXPECT_TRUE(frozen.dropped.empty() && frozen.guards.empty() && !frozen.stale);
  }
}

}  // namespace
}  // namespace godwit::pages
