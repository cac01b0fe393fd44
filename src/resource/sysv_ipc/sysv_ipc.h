// System V shared memory segments (sysvipc(7), shmop(2)): objects of an ipc namespace, with or
// without anybody who has them attached.
//
// Facts (ipc/shm.c, Linux 6.18): the inode number of a segment's file is its shmid, and the name of
// it, as maps show it, is "/SYSV" and the key that it was made with in hexadecimal; a segment
// marked for removal (IPC_RMID) has key 0, keeps that name, lasts until its last attach is gone,
// and may still be attached by its number. /proc/sys/kernel/shm_next_id (CONFIG_CHECKPOINT_RESTORE)
// gives the number of the next one, of the namespace of who writes it. mremap(2) with an old size
// of 0 copies a part of an attached segment to another place, as an attach of its own.
#ifndef GODWIT_RESOURCE_SYSV_IPC_SYSV_IPC_H_
#define GODWIT_RESOURCE_SYSV_IPC_SYSV_IPC_H_

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "resource/resource.h"
#include "resource/shared_object/shared_object.h"

namespace godwit::resource {

bool is_segment_name(std::string_view path);

// All segments of the caller's ipc namespace. Their size, id and owner; path by their key, which is
// 0 for one that is marked for removal.
absl::StatusOr<std::vector<SharedObjectState>> read_segments();

// Where the kernel likes; munmap(2) or shmdt(2) detaches it.
absl::StatusOr<void*> attach_segment(int shmid, bool read_only);
// For a call of shmat(2).
int attach_flags(bool write, bool execute);

// In the caller's ipc namespace, with the number that the state says. It is gone again at the last
// detach if it was marked for removal at the source: set_segment() marks it.
absl::Status make_segment(const SharedObjectState& state);
// Owner, mode, lock in memory, and the mark.
absl::Status set_segment(const SharedObjectState& state);
absl::Status remove_segment(int shmid);

}  // namespace godwit::resource

#endif  // GODWIT_RESOURCE_SYSV_IPC_SYSV_IPC_H_
