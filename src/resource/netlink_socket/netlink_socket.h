// Netlink sockets (netlink(7), Linux 6.18) with their port, groups and options. A message under way
// is an answer of this machine's kernel: capture() of the final epoch returns kUnavailable until
// the program has read it.
#ifndef GODWIT_RESOURCE_NETLINK_SOCKET_NETLINK_SOCKET_H_
#define GODWIT_RESOURCE_NETLINK_SOCKET_NETLINK_SOCKET_H_

#include "resource/resource.h"

namespace godwit::resource {

const FileKind& netlink_socket_kind();

}  // namespace godwit::resource

#endif  // GODWIT_RESOURCE_NETLINK_SOCKET_NETLINK_SOCKET_H_
