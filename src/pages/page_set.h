// An ordered set of pages of one address space, kept as runs that neither touch nor overlap.
#ifndef GODWIT_PAGES_PAGE_SET_H_
#define GODWIT_PAGES_PAGE_SET_H_

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <vector>

#include "stream/stream.h"

namespace godwit::pages {

inline constexpr uint64_t kPageSize = stream::kPageSize;

// Bytes [start, end), whole pages.
struct PageRange {
  uint64_t start = 0;
  uint64_t end = 0;
  uint64_t pages() const { return (end - start) / kPageSize; }
  auto operator<=>(const PageRange&) const = default;
};

class PageSet {
 public:
  PageSet() = default;
  PageSet(std::initializer_list<PageRange> ranges) {
    for (const PageRange& range : ranges) add(range);
  }

  // An empty range adds nothing. At or behind the end (scans come in order): constant time; else
  // linear in the runs behind it.
  void add(PageRange range);
  void add(const PageSet& other);
  void subtract(PageRange range);
  void subtract(const PageSet& other);
  // What both have.
  PageSet intersect(const PageSet& other) const;
  PageSet intersect(PageRange range) const;
  bool contains(uint64_t address) const;

  bool empty() const { return ranges_.empty(); }
  void clear() { ranges_.clear(); }
  uint64_t pages() const;
  std::span<const PageRange> ranges() const { return ranges_; }
  auto begin() const { return ranges_.begin(); }
  auto end() const { return ranges_.end(); }
  bool operator==(const PageSet&) const = default;

  // In the stream's form: `count` is 32 bits, so a range may become several.
  std::vector<stream::PageRun> runs() const;

 private:
  std::vector<PageRange> ranges_;
};

// The pages of a frame's runs.
PageSet page_set_of(std::span<const stream::PageRun> runs);

}  // namespace godwit::pages

#endif  // GODWIT_PAGES_PAGE_SET_H_
