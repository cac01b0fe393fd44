// Shared memory (shared anonymous memory, memfd, a file of tmpfs, a System V segment): one object
// of pages that several mappings, processes and descriptors look at. Its pages are carried once,
// with offsets for addresses (stream::kSharedSpace).
//
// Write-protection of mappings cannot tell all that happens to it: write(2) and fallocate(2) on a
// descriptor, and other processes' mappings, go past it (tried on 6.18). So a scan compares the
// contents: it reads what is populated and keeps 8 bytes of hash a page. That is exact for every
// way to write, and costs 0.15 s a GiB.
#ifndef GODWIT_PAGES_SHARED_OBJECT_H_
#define GODWIT_PAGES_SHARED_OBJECT_H_

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/ids.h"
#include "base/unique_fd.h"
#include "kernel/proc/maps.h"
#include "pages/page_set.h"
#include "pages/sender.h"
#include "stream/stream.h"

namespace godwit::pages {

// The object behind a mapping of another process, through /proc/PID/map_files (proc(5); needs
// CAP_SYS_ADMIN or CAP_CHECKPOINT_RESTORE). A new open file description, `flags` as for open(2).
absl::StatusOr<UniqueFd> open_mapped_object(HostPid pid, const kernel::Mapping& mapping, int flags);

// The source's side. Not thread-safe.
class SharedObjectTracker {
 public:
  // `fd`: open for reading; a duplicate of the program's own works too (pread only).
  explicit SharedObjectTracker(UniqueFd fd);

  // Adds what changed since the scan before, as ranges of offsets: `dirty` has contents, `dropped`
  // is a hole (or all zero) now and was not. The first scan gives all contents.
  absl::Status scan(PageSet& dirty, PageSet& dropped);

  // Sends contents of `pages` within an open epoch; `object` without kSharedSpace.
  absl::Status send(uint64_t object, const PageSet& pages, stream::Writer& writer,
                    SendControl& control);

  // Of the object now, in bytes; the last page may reach beyond it.
  absl::StatusOr<uint64_t> size() const;

 private:
  static constexpr uint64_t kPagesPerChunk = 512;
  using Hashes = std::array<uint64_t, kPagesPerChunk>;  // 0: a hole

  absl::Status each_data_range(absl::FunctionRef<absl::Status(PageRange)> action) const;
  absl::Status read(PageRange range);
  uint64_t& hash_of(uint64_t offset);

  UniqueFd fd_;
  uint64_t seed_;
  std::unique_ptr<std::byte[]> buffer_;
  std::map<uint64_t, std::unique_ptr<Hashes>> hashes_;  // by offset of the chunk
};

// The replica's side: `fd` is open for writing and stays the caller's. An object grows as its last
// page needs; its exact size is the caller's to set.
absl::Status apply_to_object(int fd, const stream::Pages& frame);
absl::Status drop_from_object(int fd, const stream::PagesDropped& frame);

}  // namespace godwit::pages

#endif  // GODWIT_PAGES_SHARED_OBJECT_H_
