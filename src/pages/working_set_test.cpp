#include "pages/working_set.h"

#include <gtest/gtest.h>

#include <random>

namespace godwit::pages {
namespace {

PageRange pages_from(uint64_t first, uint64_t count) {
  return {first * kPageSize, (first + count) * kPageSize};
}

void expect(const WorkingSet& set, uint64_t cold, uint64_t warm, uint64_t hot) {
  EXPECT_EQ(set.classes().cold, cold);
  EXPECT_EQ(set.classes().warm, warm);
  EXPECT_EQ(set.classes().hot, hot);
}

TEST(WorkingSetTest, PagesCoolDownWindowByWindow) {
  WorkingSet set;
  set.scanned({pages_from(0, 100)}, {});
  expect(set, 100, 0, 0);
  set.scanned({pages_from(10, 20)}, {});
  expect(set, 80, 20, 0);
  set.scanned({pages_from(20, 20)}, {});  // 20..29 again, 30..39 for the first time
  expect(set, 70, 20, 10);
  EXPECT_EQ(set.classes().written, 20u);
  set.scanned({}, {});
  expect(set, 80, 20, 0);
  set.scanned({}, {});
  expect(set, 100, 0, 0);
}

TEST(WorkingSetTest, WhatIsNewIsWarmAndWhatIsDroppedIsGone) {
  WorkingSet set;
  set.scanned({pages_from(0, 10)}, {});
  set.scanned({pages_from(50, 5)}, {});
  expect(set, 10, 5, 0);
  set.scanned({}, {pages_from(0, 4), pages_from(52, 1000)});
  expect(set, 6, 2, 0);
  // Dropped and written again while the scan looked.
  set.scanned({pages_from(50, 1)}, {pages_from(50, 2)});
  expect(set, 6, 1, 0);
}

TEST(WorkingSetTest, HotPagesTellTheSizeOfTheSet) {
  constexpr uint64_t kSet = 20'000;
  std::mt19937_64 random(7);
  WorkingSet set;
  set.scanned({pages_from(0, 100'000)}, {});
  const auto window = [&](int writes) {
    PageSet written;
    for (int i = 0; i < writes; ++i) written.add(pages_from(random() % kSet, 1));
    const uint64_t pages = written.pages();
    set.scanned(std::move(written), {});
    return static_cast<double>(pages);
  };
  const double first = window(8'000);
  const double second = window(3'000);
  const PageClasses classes = set.classes();
  EXPECT_NEAR(first * second / static_cast<double>(classes.hot), kSet, kSet * 0.1);
  EXPECT_EQ(classes.cold + classes.warm + classes.hot, 100'000u);
}

}  // namespace
}  // namespace godwit::pages
