// A process of the replica before it runs: a real one, with the right pid, parent, session and
// threads, stopped by us, whose memory and descriptors we fill through its stub.
//
// A husk starts as a child of the capsule's init (or of another husk) and is emptied at once: rseq
// unregistered, every mapping but the stub's removed. It dies with the mover (PTRACE_O_EXITKILL)
// until release_from_mover().
//
// One thread uses all husks of a replica: the one that traces them.
#ifndef GODWIT_PROCESS_HUSK_H_
#define GODWIT_PROCESS_HUSK_H_

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/clock.h"
#include "base/ids.h"
#include "base/unique_fd.h"
#include "resource/fd_table/fd_table.pb.h"
#include "resource/memory_map/memory_map.pb.h"
#include "resource/resource.h"
#include "tracee/batch.h"
#include "tracee/task.h"

namespace godwit::process {

struct HuskTask {
  ImagePid tid;
  tracee::StoppedTask task;
  // States that it has of resources that keep in a husk, as captured in a round.
  std::map<const resource::TaskResource*, std::string> known = {};
};

// The socket through which descriptors reach husks: all husks of a replica inherit its far end at
// the same number; messages are taken one at a time, so sharing it is safe.
struct DescriptorChannel {
  UniqueFd near;
  int husk_number = -1;
};

// A descriptor of ours and where it has to be in the husk.
struct Placement {
  int fd = -1;
  int number = -1;
  bool close_on_exec = false;
};

class Husk {
 public:
  // `host` waits in init's child loop. The stub's area goes to `area` (free in every image that
  // follows), whose pages the husk must not have mapped yet.
  static absl::StatusOr<Husk> from_init_child(ImagePid pid, HostPid host, RemoteAddress area,
                                              size_t area_bytes);
  Husk(Husk&&) = default;
  Husk& operator=(Husk&&) = default;

  // clone3(2) with set_tid by this husk: its child, emptied.
  absl::StatusOr<Husk> fork(ImagePid pid, int exit_signal);
  absl::Status make_threads(std::span<const ImagePid> tids);
  absl::Status end_thread(ImagePid tid);

  ImagePid pid() const { return pid_; }
  HostPid host_pid() const { return tasks_.front().task.tid(); }
  // Nothing is mapped but the stub's area.
  absl::Status empty_memory();

  std::vector<HuskTask>& tasks() { return tasks_; }
  const std::vector<HuskTask>& tasks() const { return tasks_; }
  tracee::StoppedTask& leader() { return tasks_.front().task; }
  tracee::StubArea& area() { return area_; }

  // In the leader.
  absl::Status run(tracee::Batch& batch);
  // batches[i] in tasks()[i], of the leader or of all others; they and the husk stay where they are
  // until it is finished.
  enum class Which { kLeader, kOthers };
  absl::StatusOr<tracee::StubArea::Started> start_in_tasks(std::span<tracee::Batch> batches,
                                                           Which which);

  // Puts descriptors at their numbers, which must be free.
  absl::Status place(const DescriptorChannel& channel, std::vector<Placement> placements);
  // Puts descriptors at any numbers; the caller closes them by batch.
  absl::StatusOr<std::vector<int>> lend(const DescriptorChannel& channel, std::span<const int> fds);

  // The last thing done in it, in two halves: the stub's area goes. Where it ignores SIGSEGV,
  // through the `syscall` instruction that stands at `vdso_offset` in its restored vDSO.
  absl::Status start_removing_stub(bool ignores_faults, uint64_t vdso_offset);
  absl::Status finish_removing_stub();
  // From here on the mover's death lets the husk run instead of ending it.
  absl::Status release_from_mover();
  // Lets every task run.
  absl::Status detach() &&;
  // Ends as `wait_status` (waitpid(2)) says; it stays a zombie of its parent. No core is written.
  absl::Status exit(int wait_status);
  // SIGKILL and waiting for the end of all tasks; it stays a zombie of its parent.
  absl::Status kill();

  // What it has been brought to.
  resource::MemoryMapState memory_map;
  resource::FdTableState fd_table;
  std::string fd_table_bytes;  // the section that it was filled from whole; empty: none

 private:
  Husk(ImagePid pid, tracee::StubArea area) : pid_(pid), area_(std::move(area)) {}
  absl::Status empty();
  ImagePid pid_;
  std::vector<HuskTask> tasks_;  // leader first
  tracee::StubArea area_;
  bool removing_stub_ = false;
};

}  // namespace godwit::process

#endif  // GODWIT_PROCESS_HUSK_H_
