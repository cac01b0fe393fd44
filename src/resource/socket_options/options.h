// Socket options (socket(7), tcp(7), ip(7), ipv6(7), unix(7), Linux 6.18) that can be read and set
// on every kind of socket, and what else sockets share: buffers, classic BPF filter, device, the
// inode's owner, the owner for signals.
//
// One table says which options exist, for which kinds, and what is left out of the state as
// "default". A fresh socket of the destination may have another default (sysctl): when a socket is
// new its values are read and compared, so the state alone decides.
#ifndef GODWIT_RESOURCE_SOCKET_OPTIONS_OPTIONS_H_
#define GODWIT_RESOURCE_SOCKET_OPTIONS_OPTIONS_H_

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "resource/resource.h"
#include "resource/socket_options/socket_options.pb.h"

namespace godwit::resource {

// Kinds of sockets an option makes sense for, as bits.
enum SocketUse : uint32_t {
  kUseTcpConnection = 1,
  kUseTcpIdle = 2,  // listening, or neither connected nor listening
  kUseUnix = 4,
  kUseUdp = 8,
  kUseNetlink = 16,
};

// getsockopt and setsockopt of an int, as a status that names the option.
absl::StatusOr<int> get_int_option(int fd, int level, int name);
absl::Status set_int_option(int fd, int level, int name, int value);

// Reads everything of SocketCommon from `file`, which is these two together. With `buffers` false
// the buffer sizes are left out unless the program fixed them: the kernel tunes the others all the
// time.
absl::Status capture_common(const OpenFile& file, SocketUse use, int family, bool buffers,
                            SocketCommon& common);

// What only setsockopt(2) changes, but for SO_PEEK_OFF while it is on, IPV6_UNICAST_HOPS while it
// is not set (the route's), options that follow a sysctl while they are not set, and the name of a
// device.
absl::Status capture_options(const OpenFile& file, SocketUse use, int family, bool buffers,
                             SocketCommon& common);
// What other calls change: the inode's owner and mode, status flags, the signal owner.
absl::Status capture_owners(const OpenFile& file, SocketCommon& common);

// Brings `fd` from `before` (null: a fresh socket) to `now`, except the device, the buffers'
// lock and the signal owner.
absl::Status restore_common(int fd, SocketUse use, int family, const SocketCommon* before,
                            const SocketCommon& now);

// Buffer sizes beyond the sysctl limits, then the lock bits as the program had them.
absl::Status restore_buffers(int fd, const SocketCommon& now);

absl::Status restore_device(int fd, const SocketCommon& now);

FileKind::Check finish_signal_owner(const SocketCommon& now, int remote_fd, tracee::Batch& batch);

// Of a descriptor that is a socket; nothing if it is none.
std::optional<SocketIdentity> socket_identity(int fd);
// file.socket, or asked now; false if it is no socket.
bool socket_kind(const OpenFile& file, SocketIdentity& kind);

}  // namespace godwit::resource

#endif  // GODWIT_RESOURCE_SOCKET_OPTIONS_OPTIONS_H_
