// System calls made by a stopped task on our behalf, one by one: rip is set to a `syscall`
// instruction inside the task's vDSO and two syscall stops are run, so its text is never written
// (a POKETEXT would leave a private page behind). 15-25 us a call: use a Batch for more than two.
#ifndef GODWIT_TRACEE_REMOTE_SYSCALLS_H_
#define GODWIT_TRACEE_REMOTE_SYSCALLS_H_

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/ids.h"
#include "tracee/task.h"

namespace godwit::tracee {

// The [vdso] of a process, at `at`.
struct VdsoImage {
  RemoteAddress at;
  std::vector<std::byte> bytes;
  absl::StatusOr<RemoteAddress> syscall_instruction() const;  // the first 0F 05
};
absl::StatusOr<VdsoImage> read_vdso(HostPid pid);

// Address of a `syscall` instruction in the [vdso] of `pid` (0F 05, found by reading it).
absl::StatusOr<RemoteAddress> find_vdso_syscall(HostPid pid);

// "mmap(0x0, 0x1000, 0x3, ...)" for messages.
std::string describe_call(long number, std::span<const uint64_t, 6> arguments);

// Scope: signals of the task are blocked and its registers saved by the constructor's first use,
// both restored by finish() or the destructor. If the task dies, every call gives ESRCH and the
// destructor does nothing. If we die, the task goes on behind the instruction with wrong registers
// and all signals blocked, unless the instruction is the stub's and `frame` is memory for its frame
// (StubArea::single_calls): then the task finishes the call and goes on as if nothing had been.
class RemoteSyscalls {
 public:
  RemoteSyscalls(StoppedTask& task, RemoteAddress syscall_instruction, RemoteAddress frame = {0})
      : task_(task), instruction_(syscall_instruction), frame_(frame) {}
  ~RemoteSyscalls();
  RemoteSyscalls(const RemoteSyscalls&) = delete;
  RemoteSyscalls& operator=(const RemoteSyscalls&) = delete;

  // The raw result: -4095..-1 is -errno.
  absl::StatusOr<int64_t> call(long number, std::array<uint64_t, 6> arguments);
  // The same, with an error result turned into a status that names the call.
  absl::StatusOr<uint64_t> must(long number, std::array<uint64_t, 6> arguments);

  // For a call that makes a new task under PTRACE_O_TRACECLONE/TRACEFORK (clone3): runs over the
  // event stop and gives the new task, stopped and ours. It has the registers of this scope (a
  // clone inside the vDSO with rax = 0) and all signals blocked: set both before it may run.
  absl::StatusOr<StoppedTask> call_making_task(long number, std::array<uint64_t, 6> arguments,
                                               Deadline deadline);

  absl::Status finish();

 private:
  absl::Status begin();
  absl::StatusOr<int64_t> run(long number, const std::array<uint64_t, 6>& arguments,
                              Deadline deadline, HostPid* new_task);
  StoppedTask& task_;
  RemoteAddress instruction_;
  RemoteAddress frame_;
  bool begun_ = false;
  bool blocked_ = false;
  Registers saved_{};
  uint64_t saved_mask_ = 0;
};

}  // namespace godwit::tracee

#endif  // GODWIT_TRACEE_REMOTE_SYSCALLS_H_
