#include "pages/page_set.h"

#include <algorithm>

namespace godwit::pages {
namespace {

// The first run with a page at or behind `address`.
template <typename Ranges>
auto first_ending_behind(Ranges& ranges, uint64_t address) {
  return std::upper_bound(ranges.begin(), ranges.end(), address,
                          [](uint64_t value, const PageRange& r) { return value < r.end; });
}

}  // namespace

void PageSet::add(PageRange range) {
  if (range.start >= range.end) return;
  if (ranges_.empty() || range.start > ranges_.back().end) {
    ranges_.push_back(range);
    return;
  }
  // First run that touches or lies behind `range`.
  auto first = std::lower_bound(ranges_.begin(), ranges_.end(), range.start,
                                [](const PageRange& r, uint64_t start) { return r.end < start; });
  auto last = first;
  while (last != ranges_.end() && last->start <= range.end) {
    range.start = std::min(range.start, last->start);
    range.end = std::max(range.end, last->end);
    ++last;
  }
  if (first == last) {
    ranges_.insert(first, range);
  } else {
    *first = range;
    ranges_.erase(first + 1, last);
  }
}

void PageSet::add(const PageSet& other) {
  if (other.empty()) return;
  if (ranges_.empty() || other.ranges_.front().start >= ranges_.back().start) {
    for (const PageRange& range : other.ranges_) add(range);
    return;
  }
  std::vector<PageRange> both(ranges_.size() + other.ranges_.size());
  std::merge(ranges_.begin(), ranges_.end(), other.ranges_.begin(), other.ranges_.end(),
             both.begin());
  ranges_.clear();
  for (const PageRange& range : both) {
    if (!ranges_.empty() && range.start <= ranges_.back().end)
      ranges_.back().end = std::max(ranges_.back().end, range.end);
    else
      ranges_.push_back(range);
  }
}

void PageSet::subtract(PageRange range) {
  PageSet one;
  one.add(range);
  subtract(one);
}

void PageSet::subtract(const PageSet& other) {
  if (empty() || other.empty()) return;
  // Runs before and behind what is taken out stay as they are.
  const auto first = first_ending_behind(ranges_, other.ranges_.front().start);
  auto last = first;
  while (last != ranges_.end() && last->start < other.ranges_.back().end) ++last;
  if (first == last) return;
  std::vector<PageRange> left;
  auto cut = first_ending_behind(other.ranges_, first->start);
  for (auto r = first; r != last; ++r) {
    PageRange range = *r;
    while (cut != other.ranges_.end() && cut->end <= range.start) ++cut;
    for (auto c = cut; c != other.ranges_.end() && c->start < range.end; ++c) {
      if (c->start > range.start) left.push_back({range.start, c->start});
      range.start = std::min(std::max(range.start, c->end), range.end);
    }
    if (range.start < range.end) left.push_back(range);
  }
  const size_t same = std::min(left.size(), static_cast<size_t>(last - first));
  const auto middle = std::copy_n(left.begin(), same, first);
  if (same < left.size())
    ranges_.insert(middle, left.begin() + static_cast<ptrdiff_t>(same), left.end());
  else
    ranges_.erase(middle, last);
}

PageSet PageSet::intersect(const PageSet& other) const {
  PageSet both;
  if (empty() || other.empty()) return both;
  auto a = first_ending_behind(ranges_, other.ranges_.front().start);
  auto b = first_ending_behind(other.ranges_, ranges_.front().start);
  while (a != ranges_.end() && b != other.ranges_.end()) {
    both.add({std::max(a->start, b->start), std::min(a->end, b->end)});
    if (a->end < b->end)
      ++a;
    else
      ++b;
  }
  return both;
}

PageSet PageSet::intersect(PageRange range) const {
  PageSet both;
  for (auto at = first_ending_behind(ranges_, range.start);
       at != ranges_.end() && at->start < range.end; ++at)
    both.add({std::max(at->start, range.start), std::min(at->end, range.end)});
  return both;
}

bool PageSet::contains(uint64_t address) const {
  const auto at = first_ending_behind(ranges_, address);
  return at != ranges_.end() && at->start <= address;
}

uint64_t PageSet::pages() const {
  uint64_t sum = 0;
  for (const PageRange& range : ranges_) sum += range.pages();
  return sum;
}

std::vector<stream::PageRun> PageSet::runs() const {
  std::vector<stream::PageRun> runs;
  runs.reserve(ranges_.size());
  for (PageRange range : ranges_) {
    while (range.start < range.end) {
      const uint64_t count = std::min<uint64_t>(range.pages(), UINT32_MAX);
      runs.push_back({range.start, static_cast<uint32_t>(count)});
      range.start += count * kPageSize;
    }
  }
  return runs;
}

PageSet page_set_of(std::span<const stream::PageRun> runs) {
  PageSet set;
  for (const stream::PageRun& run : runs)
    set.add({run.address, run.address + run.count * kPageSize});
  return set;
}

}  // namespace godwit::pages
