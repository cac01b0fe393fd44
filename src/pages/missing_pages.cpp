#include "pages/missing_pages.h"

#include <algorithm>
#include <iterator>

namespace godwit::pages {

void MissingPages::add(uint64_t space, const PageSet& pages) {
  Space& one = spaces_[space];
  one.source_space = space;
  for (const PageRange& range : pages)
    one.pieces.emplace_hint(one.pieces.end(), range.start, Piece{range.end, range.start});
  pages_ += pages.pages();
}

void MissingPages::fork(uint64_t parent, uint64_t child) {
  const auto found = spaces_.find(parent);
  if (found == spaces_.end()) return;
  const Space copy = found->second;
  for (const auto& [start, piece] : copy.pieces) pages_ += (piece.end - start) / kPageSize;
  spaces_.insert_or_assign(child, copy);
}

std::optional<SourcePage> MissingPages::source_of(uint64_t space, uint64_t address) const {
  const auto found = spaces_.find(space);
  if (found == spaces_.end()) return std::nullopt;
  const auto& pieces = found->second.pieces;
  auto next = pieces.upper_bound(address);
  if (next == pieces.begin()) return std::nullopt;
  const auto& [start, piece] = *std::prev(next);
  if (address >= piece.end) return std::nullopt;
  return SourcePage{found->second.source_space, piece.source + (address - start)};
}

void MissingPages::cut(Space& space, uint64_t at) {
  auto next = space.pieces.lower_bound(at);
  if (next == space.pieces.begin()) return;
  const auto before = std::prev(next);
  Piece& piece = before->second;
  if (piece.end <= at) return;
  space.pieces.emplace_hint(next, at, Piece{piece.end, piece.source + (at - before->first)});
  piece.end = at;
}

uint64_t MissingPages::remove(uint64_t space, PageRange range) {
  const auto found = spaces_.find(space);
  if (found == spaces_.end() || range.start >= range.end) return 0;
  Space& one = found->second;
  cut(one, range.start);
  cut(one, range.end);
  uint64_t removed = 0;
  auto piece = one.pieces.lower_bound(range.start);
  while (piece != one.pieces.end() && piece->first < range.end) {
    removed += (piece->second.end - piece->first) / kPageSize;
    piece = one.pieces.erase(piece);
  }
  pages_ -= removed;
  return removed;
}

uint64_t MissingPages::remove_space(uint64_t space) {
  const uint64_t removed = remove(space, PageRange{0, UINT64_MAX});
  spaces_.erase(space);
  return removed;
}

void MissingPages::move(uint64_t space, uint64_t from, uint64_t to, uint64_t bytes) {
  const auto found = spaces_.find(space);
  if (found == spaces_.end() || from == to) return;
  Space& one = found->second;
  cut(one, from);
  cut(one, from + bytes);
  std::vector<std::pair<uint64_t, Piece>> taken;
  auto piece = one.pieces.lower_bound(from);
  while (piece != one.pieces.end() && piece->first < from + bytes) {
    taken.emplace_back(*piece);
    pages_ -= (piece->second.end - piece->first) / kPageSize;
    piece = one.pieces.erase(piece);
  }
  remove(space, {to, to + bytes});
  for (auto& [start, moved] : taken) {
    const uint64_t at = to + (start - from);
    moved.end = at + (moved.end - start);
    pages_ += (moved.end - at) / kPageSize;
    one.pieces.insert_or_assign(at, moved);
    one.moved = true;
  }
}

std::vector<MissingPages::Place> MissingPages::places(uint64_t source_space,
                                                      PageRange range) const {
  std::vector<Place> places;
  for (const auto& [id, space] : spaces_) {
    if (space.source_space != source_space) continue;
    // In a space where nothing was moved the addresses are the source's.
    auto piece = space.pieces.begin();
    if (!space.moved) {
      piece = space.pieces.upper_bound(range.start);
      if (piece != space.pieces.begin()) --piece;
    }
    for (; piece != space.pieces.end(); ++piece) {
      const auto& [start, one] = *piece;
      if (!space.moved && start >= range.end) break;
      const uint64_t source_end = one.source + (one.end - start);
      const uint64_t first = std::max(one.source, range.start);
      const uint64_t last = std::min(source_end, range.end);
      if (first >= last) continue;
      const uint64_t at = start + (first - one.source);
      places.push_back({id, {at, at + (last - first)}, first});
    }
  }
  return places;
}

std::map<uint64_t, PageSet> MissingPages::wanted() const {
  std::map<uint64_t, PageSet> wanted;
  for (const auto& [id, space] : spaces_) {
    PageSet& pages = wanted[space.source_space];
    for (const auto& [start, piece] : space.pieces)
      pages.add({piece.source, piece.source + (piece.end - start)});
  }
  return wanted;
}

PageSet MissingPages::sources_in(uint64_t space, PageRange range) const {
  PageSet pages;
  const auto found = spaces_.find(space);
  if (found == spaces_.end()) return pages;
  const auto& pieces = found->second.pieces;
  auto piece = pieces.upper_bound(range.start);
  if (piece != pieces.begin()) --piece;
  for (; piece != pieces.end() && piece->first < range.end; ++piece) {
    const uint64_t first = std::max(piece->first, range.start);
    const uint64_t last = std::min(piece->second.end, range.end);
    if (first >= last) continue;
    const uint64_t source = piece->second.source + (first - piece->first);
    pages.add({source, source + (last - first)});
  }
  return pages;
}

PageSet MissingPages::missing_in(uint64_t space) const {
  PageSet pages;
  const auto found = spaces_.find(space);
  if (found == spaces_.end()) return pages;
  for (const auto& [start, piece] : found->second.pieces) pages.add({start, piece.end});
  return pages;
}

}  // namespace godwit::pages
