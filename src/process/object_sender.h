// Pages of shared memory objects, found by comparing contents.
//
// Shared mappings may be written by any process and by write(2) on a memfd, so no tracker of one
// address space sees every change. The object is read through /proc/PID/map_files (proc(5)) where
// lseek(2) SEEK_DATA says it has pages, and pages whose XXH3 differs from that of what was last
// sent are sent. That is some 0.2 s per GiB, on as many threads as there are in the freeze.
#ifndef GODWIT_PROCESS_OBJECT_SENDER_H_
#define GODWIT_PROCESS_OBJECT_SENDER_H_

#include <sys/uio.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/unique_fd.h"
#include "pages/sender.h"
#include "pages/work_pool.h"
#include "stream/stream.h"

namespace godwit::process {

class ObjectSender {
 public:
  // `fd`: the object, open for reading; closed with us.
  ObjectSender(uint64_t id, UniqueFd fd);

  int fd() const { return fd_.get(); }
  uint64_t huge_page_bytes() const { return huge_page_bytes_; }

  // `limited`: the rate applies (not in the freeze).
  absl::Status send(stream::Writer& writer, pages::SendControl& control, bool limited);

  // In the freeze, where most has been sent: all threads of the pool compare, then what is
  // different is read again and sent.
  absl::Status send_frozen(stream::Writer& writer, pages::SendControl& control,
                           pages::WorkPool& pool);

 private:
  struct Range {
    uint64_t start = 0, end = 0;  // bytes, whole pages
  };
  // What holds data, in pieces; the rest is dropped at the replica.
  absl::StatusOr<std::vector<Range>> pieces(uint64_t bytes, stream::Writer& writer);
  absl::Status read(Range range, std::byte* to) const;
  absl::Status send_piece(Range piece, stream::Writer& writer, pages::SendControl& control,
                          bool limited);
  // Which of its pages are not those that were last sent; they count as sent from now on.
  std::vector<stream::PageRun> changed(Range piece, const std::byte* pages);
  // Of buffer_, which began to be read at `begin_ns`.
  absl::Status send_pages(std::span<const stream::PageRun> runs, std::span<const iovec> parts,
                          stream::Writer& writer, pages::SendControl& control, bool limited,
                          int64_t begin_ns);
  absl::Status drop(uint64_t start, uint64_t end, stream::Writer& writer);

  // Where data lies at or behind `at`, up to `size`; empty: nowhere.
  absl::StatusOr<Range> next_data(uint64_t at, uint64_t size) const;

  uint64_t id_;
  UniqueFd fd_;
  uint64_t huge_page_bytes_;      // 0: ordinary pages
  std::vector<bool> huge_pages_;  // which of them are there
  std::vector<uint64_t> sent_;    // hash by page number; 0: never sent, or dropped
  std::vector<std::byte> buffer_;
};

}  // namespace godwit::process

#endif  // GODWIT_PROCESS_OBJECT_SENDER_H_
