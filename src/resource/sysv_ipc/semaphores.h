// System V semaphores (semop(2), semctl(2)).
//
// Facts (ipc/sem.c, Linux 6.18). What a process's end gives back (SEM_UNDO) is a list of the
// process (task_struct.sysvsem) that no call tells: it is taken from the kernel's memory. It is
// made again by operations of the process itself; semctl(SETVAL, SETALL) forgets it. A call that
// waits is not in a set's queue any more when its task has been stopped, and is made anew.
#ifndef GODWIT_RESOURCE_SYSV_IPC_SEMAPHORES_H_
#define GODWIT_RESOURCE_SYSV_IPC_SEMAPHORES_H_

#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/ids.h"
#include "kernel/kernel_memory.h"
#include "resource/sysv_ipc/sysv_ipc.pb.h"
#include "tracee/batch.h"

namespace godwit::resource {

// All sets of the caller's ipc namespace, without `undo`.
absl::StatusOr<std::vector<SemaphoreSetState>> read_semaphores();
// Fills it in, of these processes. kFailedPrecondition: two of them share one list (CLONE_SYSVSEM).
absl::Status read_undo(std::span<const std::pair<ImagePid, HostPid>> processes,
                       const kernel::KernelMemory& memory, std::vector<SemaphoreSetState>& sets);

absl::StatusOr<SemaphoreSetState> parse_semaphores(std::string_view bytes);
// In the caller's ipc namespace, with values such that the operations of add_undo_calls() lead to
// those of the state.
absl::Status make_semaphores(const SemaphoreSetState& state);
// Of process `pid`, which runs the batch.
void add_undo_calls(const SemaphoreSetState& state, ImagePid pid, tracee::Batch& batch);

}  // namespace godwit::resource

#endif  // GODWIT_RESOURCE_SYSV_IPC_SEMAPHORES_H_
