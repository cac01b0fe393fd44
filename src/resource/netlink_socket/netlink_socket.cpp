#include "resource/netlink_socket/netlink_socket.h"

#include <linux/netlink.h>
#include <sys/socket.h>

#include "base/status.h"
#include "resource/netlink_socket/internal.h"
#include "resource/socket_options/options.h"
#include "resource/state_codec.h"

namespace godwit::resource {
namespace {

class NetlinkSocketKind final : public FileKind {
 public:
  std::string_view name() const override { return "netlink_socket"; }

  bool recognise(const OpenFile& file) const override {
    SocketIdentity kind;
    return socket_kind(file, kind) && kind.domain == AF_NETLINK;
  }
  bool needs_fdinfo() const override { return false; }

  // A family of its own (nl80211, devlink, ...) or a table of the firewall is this machine's.
  absl::Status precheck(const OpenFile& file, const CaptureContext&,
                        std::vector<Refusal>& refusals) const override {
    SocketIdentity kind;
    if (!socket_kind(file, kind)) return absl::OkStatus();
    switch (kind.protocol) {
      case NETLINK_ROUTE:
      case NETLINK_SOCK_DIAG:
      case NETLINK_KOBJECT_UEVENT:
      case NETLINK_AUDIT:
      case NETLINK_GENERIC:
        return absl::OkStatus();
      default:
        refusals.push_back(
            {"netlink.protocol",
             fmt::format("process {}, descriptor {} -> {}", file.tgid.value, file.remote_fd,
                         file.link),
             fmt::format("netlink protocol {} is bound to this machine", kind.protocol),
             "run this program outside of the service"});
        return absl::OkStatus();
    }
  }

  absl::StatusOr<std::string> capture(const OpenFile& file,
                                      const CaptureContext& context) const override {
    return netlink_capture(file, context);
  }
  bool early() const override { return true; }

  absl::StatusOr<UniqueFd> create(uint64_t, std::string_view state,
                                  RestoreContext& context) const override {
    GW_ASSIGN_OR_RETURN(const auto now, parse_state<NetlinkSocketState>(state, name()));
    return netlink_create(now, context);
  }
  absl::StatusOr<bool> update(int fd, std::string_view before, std::string_view now,
                              RestoreContext&) const override {
    GW_ASSIGN_OR_RETURN(const auto old_state, parse_state<NetlinkSocketState>(before, name()));
    GW_ASSIGN_OR_RETURN(const auto new_state, parse_state<NetlinkSocketState>(now, name()));
    return netlink_update(fd, old_state, new_state);
  }
  absl::StatusOr<Check> finish(int, std::string_view state, ImagePid, int remote_fd,
                               tracee::Batch& batch, RestoreContext&) const override {
    GW_ASSIGN_OR_RETURN(const auto now, parse_state<NetlinkSocketState>(state, name()));
    return finish_signal_owner(now.common(), remote_fd, batch);
  }
  std::string describe(std::string_view state) const override {
    const auto now = parse_state<NetlinkSocketState>(state, name());
    if (!now.ok()) return "netlink ?";
    return fmt::format("netlink protocol {}, port {}, {} groups", now->protocol(), now->port(),
                       now->groups_size());
  }
};

}  // namespace

const FileKind& netlink_socket_kind() {
  static const NetlinkSocketKind kind;
  return kind;
}

}  // namespace godwit::resource
