// What System V's kinds of objects have in common: owner, creator, key, and numbers of one's
// choice.
#ifndef GODWIT_RESOURCE_SYSV_IPC_PERMISSIONS_H_
#define GODWIT_RESOURCE_SYSV_IPC_PERMISSIONS_H_

#include <sys/ipc.h>

#include <cstdint>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "resource/sysv_ipc/sysv_ipc.pb.h"

namespace godwit::resource {

void set_permissions(const ipc_perm& from, IpcPermissions& to);
void set_permissions(const IpcPermissions& from, ipc_perm& to);
absl::Status check_permissions(const IpcPermissions& permissions);

// What `make` makes has the creator's ids as its creator, which nobody can change afterwards, and
// the number that /proc/sys/kernel/`next_id` (shm_next_id(5), CONFIG_CHECKPOINT_RESTORE) is told.
// Only this thread's ids are changed for it. `make` gives a number, or -1 and errno.
absl::StatusOr<int> make_numbered(const char* next_id, int number, uint32_t creator_uid,
                                  uint32_t creator_gid, absl::FunctionRef<int()> make);

}  // namespace godwit::resource

#endif  // GODWIT_RESOURCE_SYSV_IPC_PERMISSIONS_H_
