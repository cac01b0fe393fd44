// The source's end of post-copy: gives away pages (page_source.h), first those that the program
// waits for at the other end, then the rest, from where it waited last on. Each page once a
// connection. Nothing here has state that a new connection needs: the other end says what it lacks.
// A page that cannot be had is left out, and all others are given; the connection stays, for only a
// user can know that it will never be had.
#ifndef GODWIT_PAGES_PAGE_SERVER_H_
#define GODWIT_PAGES_PAGE_SERVER_H_

#include <sys/uio.h>

#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/time/time.h"
#include "pages/pacer.h"
#include "pages/page_source.h"
#include "pages/page_wire.h"
#include "tls/channel.h"

namespace godwit::pages {

struct PageServerFigures {
  uint64_t left = 0;  // pages, that were asked for and have not been given
  uint64_t given = 0;
  uint64_t zeros = 0;
  uint64_t faults = 0;
  uint64_t bytes = 0;       // on both connections
  uint64_t unreadable = 0;  // pages that cannot be had
  std::string error;        // why the first of them
};

class PageServer {
 public:
  // `pacer`: of what is pushed.
  PageServer(PageSource& source, Pacer pacer);

  // Until the other end has all (OK) or cannot be reached (kUnavailable). Channels stay
  // the caller's. `told` is called at least twice a second.
  absl::Status serve(tls::Channel& faults, tls::Channel& push,
                     absl::FunctionRef<void(const PageServerFigures&)> told);

 private:
  using Left = std::map<uint64_t, uint64_t>;  // start to end
  absl::Status take_in();
  absl::Status run(absl::FunctionRef<void(const PageServerFigures&)> told);
  absl::Status obey(const PageHeader& header);
  absl::Status answer(uint64_t space, uint64_t address);
  // At most `most` pages from `address` on that are left, in one run.
  PageRange take(Left& left, uint64_t address, uint64_t most);
  // Messages on their way out: headers, and the data that was read for them.
  struct Parcel {
    explicit Parcel(size_t pages);
    void clear();
    void advance(size_t sent);
    std::span<const iovec> rest() const { return std::span(parts).subspan(first); }

    std::unique_ptr<std::byte[]> data;  // room for so many pages
    size_t pages = 0;                   // read
    std::vector<PageHeader> headers;    // never moved: one for each page is reserved
    std::vector<iovec> parts;
    size_t first = 0;  // of `parts`, that is not yet sent
    size_t bytes = 0;
  };
  absl::Status append(uint64_t space, PageRange range, Parcel& to);
  bool fill_push();
  absl::StatusOr<bool> push_some();
  uint64_t wire_bytes() const;
  absl::StatusOr<Left*> left_of(uint64_t space);

  PageSource& source_;
  std::map<uint64_t, Left> spaces_;
  Pacer pacer_;
  tls::Channel* faults_ = nullptr;
  tls::Channel* push_ = nullptr;
  uint64_t wire_before_ = 0;  // this serve()
  bool listed_ = false;
  bool proven_ = false;  // data needs no checksum
  bool complete_ = false;
  std::unique_ptr<std::byte[]> in_;  // of the connection for faults
  size_t in_bytes_ = 0;              // not yet understood
  Parcel answer_;
  Parcel pushed_;
  uint64_t cursor_space_ = 0;
  uint64_t cursor_ = 0;
  PageServerFigures figures_;
};

}  // namespace godwit::pages

#endif  // GODWIT_PAGES_PAGE_SERVER_H_
