// What a running program writes again and again, told by the dirty sets of consecutive scans. The
// time between two scans is a window; a page is
//
//   hot    written in both of the last two windows
//   warm   in one of them
//   cold   in neither
//
// Of random writes into a set of N pages, windows that catch A and B of them share about A*B/N: so
// the share of hot pages also tells how large the set is that is written (capture and recapture).
#ifndef GODWIT_PAGES_WORKING_SET_H_
#define GODWIT_PAGES_WORKING_SET_H_

#include <cstdint>

#include "pages/page_set.h"

namespace godwit::pages {

struct PageClasses {
  uint64_t cold = 0;
  uint64_t warm = 0;
  uint64_t hot = 0;
  uint64_t written = 0;  // in the last window

  PageClasses& operator+=(const PageClasses& other);
};

// Of one address space. Every call is linear in the runs of what it is given and of what it keeps.
class WorkingSet {
 public:
  // Of each scan, in order. The first one tells what is there and begins the first window.
  void scanned(PageSet written, const PageSet& dropped);
  // All cold before the second scan; none hot before the third.
  PageClasses classes() const { return classes_; }

 private:
  bool begun_ = false;
  PageSet there_;   // has been written at any time and was not dropped
  PageSet before_;  // written in the last window
  PageClasses classes_;
};

}  // namespace godwit::pages

#endif  // GODWIT_PAGES_WORKING_SET_H_
