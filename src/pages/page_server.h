// The source's end of post-copy: gives away the pages of processes that the freezer holds, first
// those that the program waits for at the other end, then the rest, from where it waited last on.
// Each page once a connection. Nothing here has state that a new connection needs: the other end
// says what it lacks.
#ifndef GODWIT_PAGES_PAGE_SERVER_H_
#define GODWIT_PAGES_PAGE_SERVER_H_

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/time/time.h"
#include "base/ids.h"
#include "pages/page_reader.h"
#include "pages/page_wire.h"
#include "tls/channel.h"

namespace godwit::pages {

struct PageServerFigures {
  uint64_t left = 0;  // pages, that were asked for and have not been given
  uint64_t given = 0;
  uint64_t zeros = 0;
  uint64_t faults = 0;
  uint64_t bytes = 0;  // on both connections
};

class PageServer {
 public:
  struct Space {
    uint64_t id;
    HostPid pid;
  };
  // `bytes_per_s`: of what is pushed; 0: no limit.
  PageServer(std::vector<Space> spaces, uint64_t bytes_per_s);

  // Until the other end has all (OK) or cannot be reached (kUnavailable). Channels stay
  // the caller's. `told` is called at least twice a second.
  absl::Status serve(tls::Channel& faults, tls::Channel& push,
                     absl::FunctionRef<void(const PageServerFigures&)> told);

 private:
  struct Source {
    PageReader reader;
    std::map<uint64_t, uint64_t> left;  // start to end
  };
  absl::Status take_in();
  absl::Status run(absl::FunctionRef<void(const PageServerFigures&)> told);
  absl::Status obey(const PageHeader& header);
  absl::Status answer(uint64_t space, uint64_t address);
  // At most `most` pages from `address` on that are left, in one run.
  PageRange take(Source& source, uint64_t address, uint64_t most);
  absl::Status append(uint64_t space, Source& source, PageRange range);
  bool fill_push();
  absl::StatusOr<bool> push_some();
  uint64_t wire_bytes() const;
  int64_t push_allowed_in_ns();
  absl::StatusOr<Source*> source_of(uint64_t space);

  std::map<uint64_t, Source> sources_;
  const uint64_t bytes_per_s_;
  tls::Channel* faults_ = nullptr;
  tls::Channel* push_ = nullptr;
  uint64_t wire_before_ = 0;  // this serve()
  bool listed_ = false;
  bool complete_ = false;
  std::unique_ptr<std::byte[]> in_;  // of the connection for faults
  size_t in_bytes_ = 0;              // not yet understood
  std::vector<std::byte> out_;       // what append() makes
  std::vector<std::byte> half_;      // sent up to pushed_
  size_t pushed_ = 0;
  std::unique_ptr<std::byte[]> page_data_;
  std::vector<PageRange> got_;
  uint64_t cursor_space_ = 0;
  uint64_t cursor_ = 0;
  int64_t allowed_at_ns_ = 0;
  PageServerFigures figures_;
};

}  // namespace godwit::pages

#endif  // GODWIT_PAGES_PAGE_SERVER_H_
