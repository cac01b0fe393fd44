// What the kernel itself has written down about each task of a process, read by a BPF program as
// file_view.h does for files: some 100 ns a task, where a batch of calls run in it takes 50 us.
// With it most threads run no batch at all in the freeze.
//
// Tasks are to be stopped meanwhile: nothing of this changes then but `pending`.
#ifndef GODWIT_RESOURCE_SEEN_TASKS_H_
#define GODWIT_RESOURCE_SEEN_TASKS_H_

#include <array>
#include <cstdint>
#include <memory>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/ids.h"
#include "kernel/bpf_views.h"

namespace godwit::resource {

// Members of struct task_struct, by their names there but for `pending`.
struct SeenTask {
  uint64_t cred;          // the address: threads share it until one changes its own
  uint64_t flags;         // PF_*, with the policy for machine checks
  uint64_t atomic_flags;  // no_new_privs, speculation
  uint64_t thread_flags;  // TIF_*, with the modes of rdtsc and cpuid
  uint64_t sas_ss_sp;
  uint64_t sas_ss_size;
  uint64_t clear_child_tid;
  uint64_t timer_slack_ns;
  uint64_t pending;  // signals of the task and of its process: a bit each, the first is SIGHUP
  uint64_t pending_of_process;
  uint32_t sas_ss_flags;
  uint32_t personality;
  uint32_t pdeath_signal;
  uint32_t seccomp_mode;
  uint32_t pid;
  std::array<uint32_t, 4> comm;
};

class SeenTasks {
 public:
  // For processes of at most `tasks` tasks each. kUnimplemented and others: this kernel has none,
  // or pids are not the kernel's own here.
  static absl::StatusOr<std::unique_ptr<SeenTasks>> open(uint32_t tasks);

  // By pid. kOutOfRange: more than open() was told.
  absl::StatusOr<absl::flat_hash_map<HostPid, SeenTask>> read(HostPid process);
  uint32_t capacity() const { return views_.capacity(); }

 private:
  explicit SeenTasks(kernel::bpf::Views views) : views_(std::move(views)) {}
  kernel::bpf::Views views_;
};

}  // namespace godwit::resource

#endif  // GODWIT_RESOURCE_SEEN_TASKS_H_
