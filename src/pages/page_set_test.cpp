#include "pages/page_set.h"

#include <gtest/gtest.h>

#include <random>
#include <set>

namespace godwit::pages {
namespace {

constexpr uint64_t P = kPageSize;

TEST(PageSet, TouchingAndOverlappingRangesMerge) {
  PageSet set;
  set.add({4 * P, 6 * P});
  set.add({8 * P, 9 * P});
  set.add({6 * P, 7 * P});
  EXPECT_EQ(set, (PageSet{{4 * P, 7 * P}, {8 * P, 9 * P}}));
  set.add({0, 5 * P});
  set.add({7 * P, 8 * P});
  EXPECT_EQ(set, (PageSet{{0, 9 * P}}));
  set.add({3 * P, 3 * P});
  EXPECT_EQ(set.pages(), 9u);
}

TEST(PageSet, SubtractCutsAndSplits) {
  PageSet set{{0, 10 * P}};
  set.subtract({2 * P, 4 * P});
  set.subtract(PageSet{{0, P}, {9 * P, 20 * P}});
  EXPECT_EQ(set, (PageSet{{P, 2 * P}, {4 * P, 9 * P}}));
}

TEST(PageSet, RandomOperationsAgreeWithAPlainSet) {
  std::mt19937 random(3);
  PageSet set;
  std::set<uint64_t> plain;
  for (int i = 0; i < 4000; ++i) {
    const uint64_t from = random() % 200;
    const uint64_t to = from + random() % 12;
    PageSet other;
    std::set<uint64_t> other_plain;
    for (int k = 0; k < 3; ++k) {
      const uint64_t a = random() % 200;
      const uint64_t b = a + random() % 8;
      other.add({a * P, b * P});
      for (uint64_t p = a; p < b; ++p) other_plain.insert(p);
    }
    switch (random() % 5) {
      case 0:
        set.add({from * P, to * P});
        for (uint64_t p = from; p < to; ++p) plain.insert(p);
        break;
      case 1:
        set.subtract({from * P, to * P});
        for (uint64_t p = from; p < to; ++p) plain.erase(p);
        break;
      case 2:
        set.add(other);
        plain.insert(other_plain.begin(), other_plain.end());
        break;
      case 3:
        set.subtract(other);
        for (const uint64_t p : other_plain) plain.erase(p);
        break;
      case 4: {
        const PageSet both = set.intersect(other);
        EXPECT_EQ(both, other.intersect(set));
        uint64_t count = 0;
        for (const uint64_t p : other_plain) count += plain.count(p);
        EXPECT_EQ(both.pages(), count);
        EXPECT_EQ(set.intersect(PageRange{from * P, to * P}),
                  set.intersect(PageSet{{from * P, to * P}}));
        break;
      }
    }
    ASSERT_EQ(set.pages(), plain.size());
    for (uint64_t p = 0; p < 215; ++p) ASSERT_EQ(set.contains(p * P), plain.count(p) == 1) << p;
    for (size_t k = 1; k < set.ranges().size(); ++k)
      ASSERT_LT(set.ranges()[k - 1].end, set.ranges()[k].start);
  }
}

TEST(PageSet, RunsHoldAtMost32BitsOfPages) {
  const uint64_t huge = (uint64_t{1} << 33) * P;
  const auto runs = PageSet{{P, P + huge}}.runs();
  ASSERT_EQ(runs.size(), 3u);
  EXPECT_EQ(page_set_of(runs), (PageSet{{P, P + huge}}));
}

}  // namespace
}  // namespace godwit::pages
