// One process of the source: what we hold of it while it runs, and while it is frozen.
#ifndef GODWIT_PROCESS_SOURCE_PROCESS_H_
#define GODWIT_PROCESS_SOURCE_PROCESS_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/ids.h"
#include "base/unique_fd.h"
#include "kernel/proc/maps.h"
#include "pages/sender.h"
#include "pages/tracker.h"
#include "pages/working_set.h"
#include "resource/memory_map/memory_map.h"
#include "stream/stream.h"
#include "tracee/batch.h"
#include "tracee/freeze.h"

namespace godwit::process {

struct SourceProcess {
  ImagePid pid;
  HostPid host_pid;
  std::string comm;
  UniqueFd pidfd;
  std::unique_ptr<pages::DirtyTracker> tracker;
  pages::WorkingSet working_set;              // by the tracker's scans while it ran
  std::unique_ptr<pages::PageSender> sender;  // of this stream's writer
  // Of this source: which memory this is; another program (execve(2)) has another number.
  uint64_t program = 0;
  // Mapped in the stop that prepare needs anyway, and kept until the end.
  std::optional<tracee::StubArea> area;
  std::vector<kernel::Mapping> maps;  // as last read, without the area
  // /proc/PID/maps that `memory_map` was captured from; empty: it may have been another.
  std::string maps_text;
  // The same with vm_flags, as last read from smaps: when, and how long that took.
  std::vector<kernel::Mapping> flagged;
  uint32_t future_locks = 0;  // as the stub's area, once smaps has shown it
  int64_t flags_read_ns = 0;
  int64_t flags_cost_ns = 0;
  std::vector<int> fds;                 // descriptors, as last read
  pages::ScanResult last_scan;          // of the freeze
  pages::PageSet left_behind;           // post-copy: what the replica will run without at first
  resource::MemoryMapState memory_map;  // as last sent
  // Requests of its own may write into pages that were found written before (pages/pinned.h).
  bool pins = false;
  bool direct_io = false;       // it has a file open with O_DIRECT
  bool io_uring = false;        // it had a ring mapped when its mappings were looked at last
  pages::PageSet last_written;  // found by the last scan; empty while it pins
  // The same as of the section that was sent last.
  resource::MemoryMapState sent_map;
  // As numbered here, read before the tree was.
  pid_t group = 0;
  pid_t session = 0;
  uint64_t brk = 0;  // brk(2) as it said last: /proc does not tell

  // Not if it has ended or started another program: the area is in no other memory.
  bool has_tracked_memory() const { return area && area->stands(host_pid); }
};

struct FrozenProcess {
  SourceProcess* process = nullptr;
  std::vector<ImagePid> tids;  // of stopped.tasks, in their order
  tracee::StoppedProcess stopped;
};

struct RoundResult {
  uint64_t pages = 0;       // with contents
  uint64_t zero_pages = 0;  // and dropped ones
  uint64_t bytes = 0;       // written to the stream
  uint64_t saved = 0;       // that would have been more without compression
  int64_t lead_ns = 0;      // before pages, and in scans
  int64_t total_ns = 0;
  pages::PageClasses classes;  // of private memory, in a round
};

}  // namespace godwit::process

#endif  // GODWIT_PROCESS_SOURCE_PROCESS_H_
