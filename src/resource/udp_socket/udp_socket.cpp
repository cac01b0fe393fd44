#include "resource/udp_socket/udp_socket.h"

#include "base/status.h"
#include "resource/socket_options/address.h"
#include "resource/socket_options/options.h"
#include "resource/state_codec.h"
#include "resource/udp_socket/internal.h"

namespace godwit::resource {
namespace {

constexpr int kUdpEncap = 100;  // UDP_ENCAP, linux/udp.h
// RFC 1078's, which nobody serves.
constexpr uint32_t kNobodysPort = 1;

// In a clone nothing may reach the original's peer, least of all with keys that the original goes
// on using. UDP has no end; but a peer that has gone answers by "port unreachable" (ECONNREFUSED),
// and so does the loopback device, out of which nothing leaves.
void connect_to_nobody(InternetAddress& remote) {
  const bool v4 = remote.ip().size() == 4;
  const bool mapped =
      !v4 && remote.ip().compare(0, 12, std::string("\0\0\0\0\0\0\0\0\0\0\xff\xff", 12)) == 0;
  if (v4)
    remote.set_ip(std::string("\x7f\0\0\1", 4));
  else if (mapped)
    remote.set_ip(remote.ip().substr(0, 12) + std::string("\x7f\0\0\1", 4));
  else
    remote.set_ip(std::string(15, '\0') + '\1');
  remote.set_port(kNobodysPort);
  remote.clear_flow_info();
  remote.clear_interface();
}

class UdpSocketKind final : public FileKind {
 public:
  std::string_view name() const override { return "udp_socket"; }

  bool recognise(const OpenFile& file) const override {
    SocketIdentity kind;
    return socket_kind(file, kind) && (kind.domain == AF_INET || kind.domain == AF_INET6) &&
           kind.type == SOCK_DGRAM && kind.protocol == IPPROTO_UDP;
  }
  bool needs_fdinfo() const override { return false; }

  absl::Status precheck(const OpenFile& file, const CaptureContext&,
                        std::vector<Refusal>& refusals) const override {
    auto encapsulation = get_int_option(file.fd, IPPROTO_UDP, kUdpEncap);
    if (encapsulation.ok() && *encapsulation != 0)
      refusals.push_back({"udp.encap",
                          fmt::format("process {}, descriptor {} -> {}", file.tgid.value,
                                      file.remote_fd, file.link),
                          "the kernel's IPsec or tunnels take packets from it (UDP_ENCAP)",
                          "run the tunnel outside of the service"});
    return absl::OkStatus();
  }

  absl::StatusOr<std::string> capture(const OpenFile& file,
                                      const CaptureContext& context) const override {
    return udp_capture(file, context);
  }
  bool early() const override { return true; }

  absl::StatusOr<UniqueFd> create(uint64_t, std::string_view state,
                                  RestoreContext& context) const override {
    GW_ASSIGN_OR_RETURN(const auto now, parse_state<UdpSocketState>(state, name()));
    return udp_create(now, context);
  }

  absl::StatusOr<bool> update(int fd, std::string_view before, std::string_view now,
                              RestoreContext& context) const override {
    GW_ASSIGN_OR_RETURN(const auto old_state, parse_state<UdpSocketState>(before, name()));
    GW_ASSIGN_OR_RETURN(const auto new_state, parse_state<UdpSocketState>(now, name()));
    return udp_update(fd, old_state, new_state, context);
  }

  absl::StatusOr<std::string> for_clone(std::string_view state,
                                        const CloneAddresses& addresses) const override {
    GW_ASSIGN_OR_RETURN(auto now, parse_state<UdpSocketState>(state, name()));
    now.mutable_local()->set_ip(addresses.translated(now.local().ip()));
    if (now.has_remote()) {
      now.mutable_remote()->set_ip(addresses.translated(now.remote().ip()));
      if (!addresses.is_inside(now.remote().ip())) connect_to_nobody(*now.mutable_remote());
    }
    for (UdpDatagram& datagram : *now.mutable_queue())
      datagram.mutable_to()->set_ip(addresses.translated(datagram.to().ip()));
    return now.SerializeAsString();
  }

  absl::StatusOr<Check> finish(int, std::string_view state, ImagePid, int remote_fd,
                               tracee::Batch& batch, RestoreContext&) const override {
    GW_ASSIGN_OR_RETURN(const auto now, parse_state<UdpSocketState>(state, name()));
    return finish_signal_owner(now.common(), remote_fd, batch);
  }

  std::string describe(std::string_view state) const override {
    const auto now = parse_state<UdpSocketState>(state, name());
    if (!now.ok()) return "udp ?";
    const std::string to = now->has_remote() ? " -> " + text_of(now->remote()) : "";
    return fmt::format("udp {}{}, {} datagrams", text_of(now->local()), to, now->queue_size());
  }
};

}  // namespace

const FileKind& udp_socket_kind() {
  static const UdpSocketKind kind;
  return kind;
}

}  // namespace godwit::resource
