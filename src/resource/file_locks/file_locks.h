// Locks on files. Those of an open file description (flock(2), F_OFD_SETLK) are part of the state
// of the kinds that are files, and are taken by any descriptor of it; those of a process (F_SETLK)
// are part of its descriptor table, and only the process itself can take them.
//
// They are taken in the final epoch, when the source can no longer give one back. Nobody else can
// have them meanwhile: files of the writable layer are the replica's alone. On a mount that several
// nodes have the source still holds them until after the commit: refused.
#ifndef GODWIT_RESOURCE_FILE_LOCKS_FILE_LOCKS_H_
#define GODWIT_RESOURCE_FILE_LOCKS_FILE_LOCKS_H_

#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "google/protobuf/repeated_ptr_field.h"
#include "kernel/proc/fdinfo.h"
#include "resource/file_locks/file_locks.pb.h"
#include "resource/resource.h"
#include "tracee/batch.h"

namespace godwit::resource {

using FileLocks = google::protobuf::RepeatedPtrField<FileLock>;

// Of the description with this fdinfo.
struct DescriptionLocks {
  FileLocks open_file;
  FileLocks flock;  // one at most
};
absl::StatusOr<DescriptionLocks> description_locks(const kernel::FdInfo& info);
// Those that the process owns by the descriptor with this fdinfo, read from that very process.
absl::StatusOr<FileLocks> process_locks(const kernel::FdInfo& info);

absl::Status refuse_lease(const OpenFile& file, const kernel::FdInfo& info,
                          std::vector<Refusal>& refusals);
// Locks of a file that is on none of the capsule's own mounts.
absl::Status refuse_shared_locks(const OpenFile& file, const kernel::FdInfo& info,
                                 const CaptureContext& context, std::vector<Refusal>& refusals);

// Of a description, by any descriptor of it. kUnavailable: somebody else has such a lock.
absl::Status take_open_file_locks(int fd, const FileLocks& locks);
// Calls for the batch of a task that has it at `remote_fd`. flock(2) is shown with the pid of who
// took it.
void add_flock_calls(int remote_fd, const FileLocks& flocks, tracee::Batch& batch);
void add_process_lock_call(int remote_fd, const FileLock& lock, tracee::Batch& batch);

}  // namespace godwit::resource

#endif  // GODWIT_RESOURCE_FILE_LOCKS_FILE_LOCKS_H_
