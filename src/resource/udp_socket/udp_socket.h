// UDP sockets (udp(7), Linux 6.18).
//
// What lay unread moves with the socket. A datagram cannot be put into a receive queue by any call,
// so it is sent once more, as a packet with its sender's address (inject.cpp), before the socket
// gets its own address: binding is left to the final epoch. An empty datagram that was peeked at
// before, by the program or by a capture that came to nothing, is passed over by the kernel
// (SO_PEEK_OFF) and lost.
#ifndef GODWIT_RESOURCE_UDP_SOCKET_UDP_SOCKET_H_
#define GODWIT_RESOURCE_UDP_SOCKET_UDP_SOCKET_H_

#include "resource/resource.h"

namespace godwit::resource {

const FileKind& udp_socket_kind();

}  // namespace godwit::resource

#endif  // GODWIT_RESOURCE_UDP_SOCKET_UDP_SOCKET_H_
