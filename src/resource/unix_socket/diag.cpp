#include "resource/unix_socket/diag.h"

#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <linux/sock_diag.h>
#include <linux/unix_diag.h>
#include <sys/socket.h>

#include <cstring>
#include <span>

#include "base/status.h"

namespace godwit::resource {
namespace {

constexpr uint32_t kListen = 10;  // TCP_LISTEN of net/tcp_states.h, used for unix sockets too

struct Request {
  nlmsghdr header;
  unix_diag_req body;
};

template <typename T>
T value_of(std::span<const char> payload) {
  T value{};
  std::memcpy(&value, payload.data(), std::min(payload.size(), sizeof value));
  return value;
}

void read_attribute(int type, std::span<const char> payload, UnixDiag& diag) {
  switch (type) {
    case UNIX_DIAG_NAME:
      diag.name.assign(payload.data(), payload.size());
      break;
    case UNIX_DIAG_PEER:
      diag.has_peer = true;
      diag.peer = value_of<uint32_t>(payload);
      break;
    case UNIX_DIAG_ICONS:
      diag.pending = static_cast<uint32_t>(payload.size() / sizeof(uint32_t));
      break;
    case UNIX_DIAG_RQLEN: {
      const auto lengths = value_of<unix_diag_rqlen>(payload);
      diag.receive_queue = lengths.udiag_rqueue;
      diag.backlog = lengths.udiag_wqueue;
      break;
    }
    case UNIX_DIAG_SHUTDOWN:
      diag.shutdown = value_of<uint8_t>(payload);
      break;
    default:
      break;
  }
}

UnixDiag parse(std::span<const char> message) {
  UnixDiag diag;
  const auto fixed = value_of<unix_diag_msg>(message);
  diag.inode = fixed.udiag_ino;
  diag.type = fixed.udiag_type;
  diag.listening = fixed.udiag_state == kListen;
  size_t at = NLMSG_ALIGN(sizeof fixed);
  while (at + sizeof(nlattr) <= message.size()) {
    const auto attribute = value_of<nlattr>(message.subspan(at));
    if (attribute.nla_len < sizeof(nlattr) || at + attribute.nla_len > message.size()) break;
    read_attribute(attribute.nla_type & NLA_TYPE_MASK,
                   message.subspan(at + NLA_HDRLEN, attribute.nla_len - NLA_HDRLEN), diag);
    at += NLA_ALIGN(attribute.nla_len);
  }
  return diag;
}

// One request; answers up to the end of the dump, or the single one.
absl::Status query(ino_t inode, std::vector<UnixDiag>& found, const CaptureContext& context) {
  UniqueFd socket;
  GW_RETURN_IF_ERROR(context.in_capsule([&] {
    socket.reset(::socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_SOCK_DIAG));
    return socket ? absl::OkStatus() : errno_status(errno, "socket(NETLINK_SOCK_DIAG)");
  }));
  const bool dump = inode == 0;
  Request request{};
  request.header.nlmsg_len = sizeof request;
  request.header.nlmsg_type = SOCK_DIAG_BY_FAMILY;
  request.header.nlmsg_flags = static_cast<uint16_t>(NLM_F_REQUEST | (dump ? NLM_F_DUMP : 0));
  request.body.sdiag_family = AF_UNIX;
  request.body.udiag_states = dump ? 1U << kListen : ~0U;
  request.body.udiag_ino = static_cast<uint32_t>(inode);
  request.body.udiag_show = UDIAG_SHOW_NAME | UDIAG_SHOW_PEER | UDIAG_SHOW_ICONS | UDIAG_SHOW_RQLEN;
  request.body.udiag_cookie[0] = request.body.udiag_cookie[1] = ~0U;
  if (::send(socket.get(), &request, sizeof request, 0) < 0)
    return errno_status(errno, "send(SOCK_DIAG_BY_FAMILY)");
  // The kernel has queued the answer, or a part of the dump, when send() returns: never waits.
  std::vector<char> buffer(size_t{64} << 10);
  while (true) {
    const ssize_t got = ::recv(socket.get(), buffer.data(), buffer.size(), MSG_DONTWAIT);
    if (got < 0) return errno_status(errno, "recv(SOCK_DIAG_BY_FAMILY)");
    size_t at = 0;
    while (at + sizeof(nlmsghdr) <= static_cast<size_t>(got)) {
      const std::span<const char> rest(buffer.data() + at, static_cast<size_t>(got) - at);
      const auto header = value_of<nlmsghdr>(rest);
      if (header.nlmsg_len < NLMSG_HDRLEN || header.nlmsg_len > rest.size()) break;
      const auto payload = rest.subspan(NLMSG_HDRLEN, header.nlmsg_len - NLMSG_HDRLEN);
      if (header.nlmsg_type == NLMSG_DONE) return absl::OkStatus();
      if (header.nlmsg_type == NLMSG_ERROR)
        return errno_status(-value_of<nlmsgerr>(payload).error,
                            fmt::format("unix_diag of socket inode {}", inode));
      found.push_back(parse(payload));
      if (!dump) return absl::OkStatus();
      at += NLMSG_ALIGN(header.nlmsg_len);
    }
  }
}

}  // namespace

absl::StatusOr<UnixDiag> unix_diag(ino_t inode, const CaptureContext& context) {
  std::vector<UnixDiag> found;
  GW_RETURN_IF_ERROR(query(inode, found, context));
  return found.front();
}

absl::StatusOr<std::vector<UnixDiag>> unix_listeners(const CaptureContext& context) {
  std::vector<UnixDiag> found;
  GW_RETURN_IF_ERROR(query(0, found, context));
  return found;
}

}  // namespace godwit::resource
