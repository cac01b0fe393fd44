// Unix sockets (unix(7), Linux 6.18): stream, sequenced packets and datagrams.
//
// A connection is carried when both ends are in the tree. The two are made at once, by whichever
// end's create() comes first; the other is stashed for its own. Queues are read by MSG_PEEK with
// SO_PEEK_OFF, which changes nothing at the source, and are filled in finish(), when both ends
// exist, through the other end; only then is a shutdown applied. (An empty message that was peeked
// at before is passed over by the kernel, and lost.)
//
// The file of a path name belongs to this kind: it is made by bind(2) at the destination. Copies of
// the file system must leave sockets (S_IFSOCK) out.
//
// In the final epoch capture() returns kUnavailable for what passes by itself in a moment:
// connections not yet accepted, datagrams of a sender that cannot be told. What was passed
// (SCM_RIGHTS) and not received yet are descriptions of the tree, though no process has them open.
#ifndef GODWIT_RESOURCE_UNIX_SOCKET_UNIX_SOCKET_H_
#define GODWIT_RESOURCE_UNIX_SOCKET_UNIX_SOCKET_H_

#include "resource/resource.h"

namespace godwit::resource {

const FileKind& unix_socket_kind();

// In the freeze: what was passed in messages that nobody has received yet (SCM_RIGHTS, unix(7)), as
// duplicates of ours. It stays in the queue.
absl::StatusOr<std::vector<UniqueFd>> unix_rights_under_way(const OpenFile& file);
// While the program runs, whose queue is not to be looked into: is there anything in it?
bool unix_has_unread(const OpenFile& file);

}  // namespace godwit::resource

#endif  // GODWIT_RESOURCE_UNIX_SOCKET_UNIX_SOCKET_H_
