// Which pages of which address spaces have not come yet, in post-copy, as the program goes on
// changing its memory meanwhile: what it drops or unmaps is not missing any more, what it moves is
// missing elsewhere, and a child that it forks lacks what it lacks.
#ifndef GODWIT_PAGES_MISSING_PAGES_H_
#define GODWIT_PAGES_MISSING_PAGES_H_

#include <cstdint>
#include <map>
#include <optional>
#include <vector>

#include "absl/functional/function_ref.h"
#include "pages/page_set.h"

namespace godwit::pages {

// A page by its name at the source: address space and address.
struct SourcePage {
  uint64_t space = 0;
  uint64_t address = 0;
  auto operator<=>(const SourcePage&) const = default;
};

class MissingPages {
 public:
  // `space` is new here; its pages come from `space` at the source, under the same addresses.
  void add(uint64_t space, const PageSet& pages);
  // All that `parent` lacks, `child` lacks.
  void fork(uint64_t parent, uint64_t child);

  // Where this page is to come from; nullopt: it is not missing.
  std::optional<SourcePage> source_of(uint64_t space, uint64_t address) const;
  // Are not missing any more. Returns how many of them were.
  uint64_t remove(uint64_t space, PageRange range);
  uint64_t remove_space(uint64_t space);
  // As mremap(2): what is missing in [from, from + bytes) is missing at `to`; what was missing
  // there before is not.
  void move(uint64_t space, uint64_t from, uint64_t to, uint64_t bytes);

  // Each place where pages of the source's `range` of `space` are missing, as contiguous runs.
  struct Place {
    uint64_t space;
    PageRange range;        // there
    uint64_t source_start;  // of the range's first page
  };
  std::vector<Place> places(uint64_t source_space, PageRange range) const;
  // All that has to come, once each, by the source's names.
  std::map<uint64_t, PageSet> wanted() const;
  // Runs of one space, where they are missing.
  PageSet missing_in(uint64_t space) const;

  // Where what is missing in `range` is at the source.
  PageSet sources_in(uint64_t space, PageRange range) const;

  uint64_t pages() const { return pages_; }

 private:
  struct Piece {
    uint64_t end;
    uint64_t source;  // of its start
  };
  struct Space {
    uint64_t source_space;
    bool moved = false;  // some piece is not where it is at the source
    std::map<uint64_t, Piece> pieces;
  };
  // Makes `at` a border between two pieces, if it is inside of one.
  static void cut(Space& space, uint64_t at);

  std::map<uint64_t, Space> spaces_;
  uint64_t pages_ = 0;
};

}  // namespace godwit::pages

#endif  // GODWIT_PAGES_MISSING_PAGES_H_
