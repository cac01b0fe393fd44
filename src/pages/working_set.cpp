#include "pages/working_set.h"

#include <utility>

namespace godwit::pages {

PageClasses& PageClasses::operator+=(const PageClasses& other) {
  cold += other.cold;
  warm += other.warm;
  hot += other.hot;
  written += other.written;
  return *this;
}

void WorkingSet::scanned(PageSet written, const PageSet& dropped) {
  // In this order: a page that was dropped and written while the scan looked is in both.
  there_.subtract(dropped);
  before_.subtract(dropped);
  there_.add(written);
  if (!std::exchange(begun_, true)) {
    classes_ = {.cold = there_.pages()};
    return;
  }
  const uint64_t now = written.pages();
  const uint64_t both = written.intersect(before_).pages();
  const uint64_t either = now + before_.pages() - both;
  classes_ = {.cold = there_.pages() - either, .warm = either - both, .hot = both, .written = now};
  before_ = std::move(written);
}

}  // namespace godwit::pages
