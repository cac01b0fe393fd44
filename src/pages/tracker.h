// Which pages a running program has changed since we last asked. One file per way to find out.
#ifndef GODWIT_PAGES_TRACKER_H_
#define GODWIT_PAGES_TRACKER_H_

#include <span>
#include <vector>

#include "absl/status/status.h"
#include "kernel/proc/maps.h"
#include "pages/page_set.h"

namespace godwit::pages {

// How the pages of a mapping are carried.
enum class MappingKind {
  kInvalid,
  kPrivateAnonymous,  // what is populated; the rest reads as zero
  kPrivateFile,       // what was copied on write; the rest is the file's
  kHugePages,         // private, MAP_HUGETLB: what is populated, pages of zeros too
};

struct TrackedMapping {
  kernel::Mapping mapping;
  MappingKind kind = MappingKind::kInvalid;
  uint64_t huge_page_bytes = 0;  // of kHugePages
};

// The private mappings among `mappings`, with their kinds. Not here: the kernel's own ([vdso] and
// its like), and shared ones: those are views of an object (SharedObject) or of a file.
std::vector<TrackedMapping> private_mappings(std::span<const kernel::Mapping> mappings);

// Disjoint but where a page was dropped or written just while the scan looked: then it is in dirty
// (or dirty_file) and will be looked at again by the next scan.
struct ScanResult {
  PageSet dirty;       // of anonymous mappings: contents to carry
  PageSet dirty_file;  // of private file mappings and huge pages: contents to carry, zeros too
  // Unpopulated now (MADV_DONTNEED and its like, a mapping made anew): zero, or the file below.
  // Never to be read: that would populate the source. May name pages that never were populated.
  PageSet dropped;
  PageSet guards;  // guard regions (MADV_GUARD_INSTALL) among the pages above; no contents
  // Some mapping was gone or other than the caller believed: read the maps again. Never in a scan
  // of a frozen program.
  bool stale = false;

  void add(const ScanResult& other);
};

enum class ScanMode {
  kRunning,  // small pieces, so that the program's own mmap calls never wait long
  kFrozen,   // as fast as can be, on all threads
};

// One tracker an address space. Not thread-safe.
class DirtyTracker {
 public:
  virtual ~DirtyTracker() = default;

  // Begins. The program runs.
  virtual absl::Status start(std::span<const TrackedMapping> mappings) = 0;

  // Adds to `result` what changed since the scan before; the first one gives all pages that have
  // to be carried. `mappings` as just read; new ones are taken in (all of what they hold is
  // dirty). Pages are watched again from the instant in which they are found: no write is lost
  // between two scans.
  virtual absl::Status scan(std::span<const TrackedMapping> mappings, ScanMode mode,
                            ScanResult& result) = 0;

  // What was found but could not be read: the next scan looks at it as if it were new.
  virtual void forget(const PageSet& pages) = 0;

  // Ends. kRunning: in small pieces with pauses, the program is to run on (rollback). kFrozen: at
  // once. A program that is killed next needs no stop. kNotFound is not an error: it has died.
  virtual absl::Status stop(ScanMode mode) = 0;
};

}  // namespace godwit::pages

#endif  // GODWIT_PAGES_TRACKER_H_
