// What the two ways of reading descriptors share. Internal to this folder.
#ifndef GODWIT_RESOURCE_FD_TABLE_READING_H_
#define GODWIT_RESOURCE_FD_TABLE_READING_H_

#include "absl/status/statusor.h"
#include "resource/fd_table/fd_table.h"

namespace godwit::resource {

// The id of the description of a socket.
uint64_t id_of_socket(uint64_t inode);
// Descriptor `fd` of a process, as `duplicate` shows it.
absl::StatusOr<OpenFile> file_of(const FdHolder& holder, int fd, int duplicate);

// Link, kind and fdinfo of one.
absl::Status look_at_one(Descriptors::Description& description);

}  // namespace godwit::resource

#endif  // GODWIT_RESOURCE_FD_TABLE_READING_H_
