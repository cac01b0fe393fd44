// TCP sockets (tcp(7); TCP_REPAIR: linux/tcp.h, Linux 3.5, net/ipv4/tcp.c of 6.18).
//
//   source                                   destination (gate closed, address present)
//   rounds: identity and options, untouched  create(): socket, options; listeners listen; idle
//                                            connections are connected, in repair mode
//   final:  repair mode on: silent, queues   update(): queues and numbers, still in repair mode
//           (idle ones are only looked at)
//   commit: closed in repair mode: no FIN    complete(): half-closed states, repair mode off,
//   rollback: tcp_end_capture()                        what was unsent goes out
//
// A connection whose other end is in the same tree needs that end to exist before either may send:
// therefore sockets leave repair mode in complete(), when all have been made.
//
// In the final epoch capture() returns kUnavailable for states that pass by themselves in a
// moment: a listener with connections not yet accepted (repair mode cannot put one into an accept
// queue), a connection being made, one that is fully closed or was reset and not yet read. The
// tree must then run for a moment and be frozen again.
#ifndef GODWIT_RESOURCE_TCP_SOCKET_TCP_SOCKET_H_
#define GODWIT_RESOURCE_TCP_SOCKET_TCP_SOCKET_H_

#include <span>

#include "absl/status/status.h"
#include "resource/resource.h"

namespace godwit::resource {

const FileKind& tcp_socket_kind();

// Ends what a final capture began: takes a connection out of repair mode unharmed, with
// SO_REUSEADDR as it was. Nothing happens to a socket that is not in repair mode or not TCP: it may
// be called by anyone, any number of times, for every descriptor of a tree that is rolled back. A
// capture may have died half way.
absl::Status tcp_end_capture(int fd);

// A connection of a source that is about to be ended: it closes without a word, as one in repair
// mode does, and nothing of it stays behind.
absl::Status tcp_silence(int fd);

// The same as tcp_end_capture() for descriptors of the process behind `pidfd`; goes on after
// errors, returns the first. Descriptors that are no sockets or are gone are passed over.
absl::Status tcp_end_capture_of(int pidfd, std::span<const int> remote_fds);

}  // namespace godwit::resource

#endif  // GODWIT_RESOURCE_TCP_SOCKET_TCP_SOCKET_H_
