#include "resource/unix_socket/unix_socket.h"

#include <sys/socket.h>

#include "base/status.h"
#include "resource/socket_options/options.h"
#include "resource/state_codec.h"
#include "resource/unix_socket/internal.h"

namespace godwit::resource {
namespace {

std::string shown(const std::string& name) {
  if (name.empty()) return "(no name)";
  std::string text = name;
  for (char& c : text)
    if (c == 0) c = '@';
  return text;
}

class UnixSocketKind final : public FileKind {
 public:
  std::string_view name() const override { return "unix_socket"; }

  bool recognise(const OpenFile& file) const override {
    SocketIdentity kind;
    return socket_kind(file, kind) && kind.domain == AF_UNIX;
  }
  bool needs_fdinfo() const override { return false; }

  absl::Status precheck(const OpenFile& file, const CaptureContext& context,
                        std::vector<Refusal>& refusals) const override {
    return unix_precheck(file, context, refusals);
  }
  absl::StatusOr<std::string> capture(const OpenFile& file,
                                      const CaptureContext& context) const override {
    return unix_capture(file, context);
  }
  bool early() const override { return true; }

  absl::StatusOr<UniqueFd> create(uint64_t id, std::string_view state,
                                  RestoreContext& context) const override {
    GW_ASSIGN_OR_RETURN(const auto now, parse_state<UnixSocketState>(state, name()));
    return unix_create(id, now, context);
  }

  absl::StatusOr<bool> update(int fd, std::string_view before, std::string_view now,
                              RestoreContext&) const override {
    GW_ASSIGN_OR_RETURN(const auto old_state, parse_state<UnixSocketState>(before, name()));
    GW_ASSIGN_OR_RETURN(const auto new_state, parse_state<UnixSocketState>(now, name()));
    return unix_update(fd, old_state, new_state);
  }

  absl::StatusOr<Check> finish(int fd, std::string_view state, ImagePid, int remote_fd,
                               tracee::Batch& batch, RestoreContext& context) const override {
    GW_ASSIGN_OR_RETURN(const auto now, parse_state<UnixSocketState>(state, name()));
    GW_RETURN_IF_ERROR(unix_fill(fd, now, context));
    return finish_signal_owner(now.common(), remote_fd, batch);
  }

  std::string describe(std::string_view state) const override {
    const auto now = parse_state<UnixSocketState>(state, name());
    if (!now.ok()) return "unix ?";
    const char* type = now->type() == SOCK_STREAM  ? "stream"
                       : now->type() == SOCK_DGRAM ? "datagram"
                                                   : "seqpacket";
    size_t bytes = 0;
    for (const UnixMessage& message : now->queue()) bytes += message.data().size();
    if (now->listening()) return fmt::format("unix {} {} listen", type, shown(now->name()));
    if (!now->connected()) return fmt::format("unix {} {}, {} B", type, shown(now->name()), bytes);
    return fmt::format("unix {} {} -> {}, {} B", type, shown(now->name()),
                       now->peer() == 0 ? "(closed)" : shown(now->remote_name()), bytes);
  }
};

}  // namespace

const FileKind& unix_socket_kind() {
  static const UnixSocketKind kind;
  return kind;
}

}  // namespace godwit::resource
