#include "resource/tcp_socket/tcp_socket.h"

#include "base/status.h"
#include "resource/state_codec.h"
#include "resource/tcp_socket/repair.h"

namespace godwit::resource {

bool is_connected(TcpState state) {
  switch (state) {
    case TCP_STATE_ESTABLISHED:
    case TCP_STATE_FIN_WAIT1:
    case TCP_STATE_FIN_WAIT2:
    case TCP_STATE_CLOSE_WAIT:
    case TCP_STATE_LAST_ACK:
    case TCP_STATE_CLOSING:
      return true;
    default:
      return false;
  }
}

bool fin_sent(TcpState state) {
  return state == TCP_STATE_FIN_WAIT1 || state == TCP_STATE_FIN_WAIT2 ||
         state == TCP_STATE_LAST_ACK || state == TCP_STATE_CLOSING;
}

bool fin_received(TcpState state) {
  return state == TCP_STATE_CLOSE_WAIT || state == TCP_STATE_LAST_ACK || state == TCP_STATE_CLOSING;
}

TcpSocketState tcp_for_clone(TcpSocketState state, const CloneAddresses& addresses) {
  for (InternetAddress* each : {state.mutable_local(), state.mutable_remote()})
    if (!each->ip().empty()) each->set_ip(addresses.translated(each->ip()));
  if (!is_connected(state.state()) || addresses.is_inside(state.remote().ip())) return state;
  state.set_ended(true);
  // What it has received is there to be read. What it has sent, and its FIN, are the original's.
  state.set_state(fin_received(state.state()) ? TCP_STATE_CLOSE_WAIT : TCP_STATE_ESTABLISHED);
  if (!state.has_connection()) return state;
  TcpConnection& connection = *state.mutable_connection();
  connection.clear_send_queue();
  connection.clear_unsent();
  connection.clear_fin_unsent();
  connection.clear_round_trip_us();
  return state;
}

absl::Status select_queue(int fd, int queue) {
  return set_int_option(fd, IPPROTO_TCP, TCP_REPAIR_QUEUE, queue);
}

namespace {

class TcpSocketKind final : public FileKind {
 public:
  std::string_view name() const override { return "tcp_socket"; }

  bool recognise(const OpenFile& file) const override {
    SocketIdentity kind;
    // IPPROTO_MPTCP is another protocol number, and refused: nobody recognises it.
    return socket_kind(file, kind) && (kind.domain == AF_INET || kind.domain == AF_INET6) &&
           kind.type == SOCK_STREAM && kind.protocol == IPPROTO_TCP;
  }
  bool needs_fdinfo() const override { return false; }

  absl::Status precheck(const OpenFile& file, const CaptureContext& context,
                        std::vector<Refusal>& refusals) const override {
    return tcp_precheck(file, context, refusals);
  }

  absl::StatusOr<std::string> capture(const OpenFile& file,
                                      const CaptureContext& context) const override {
    return tcp_capture(file, context);
  }

  std::string settle(const OpenFile& file, const CaptureContext& context) const override {
    return tcp_settle(file, context);
  }
  bool stands(const OpenFile& before, const FileView& now,
              const CaptureContext& context) const override {
    return settled_stands(before, now, context);
  }
  bool seen_whole(const FileView& now) const override { return is_idle(now.tcp); }
  bool concurrent() const override { return true; }
  bool early() const override { return true; }

  // A listener without SO_REUSEADDR cannot be bound beside connections of its port.
  int rank(std::string_view state) const override {
    const auto now = parse_state<TcpSocketState>(state, name());
    return now.ok() && now->has_connection() ? 1 : 0;
  }

  absl::StatusOr<UniqueFd> create(uint64_t, std::string_view state,
                                  RestoreContext& context) const override {
    GW_ASSIGN_OR_RETURN(const auto now, parse_state<TcpSocketState>(state, name()));
    return tcp_create(now, context);
  }

  absl::StatusOr<bool> update(int fd, std::string_view before, std::string_view now,
                              RestoreContext& context) const override {
    GW_ASSIGN_OR_RETURN(const auto old_state, parse_state<TcpSocketState>(before, name()));
    GW_ASSIGN_OR_RETURN(const auto new_state, parse_state<TcpSocketState>(now, name()));
    return tcp_update(fd, old_state, new_state, context);
  }

  absl::StatusOr<std::string> for_clone(std::string_view state,
                                        const CloneAddresses& addresses) const override {
    GW_ASSIGN_OR_RETURN(const auto now, parse_state<TcpSocketState>(state, name()));
    return tcp_for_clone(now, addresses).SerializeAsString();
  }

  void retire(int fd) const override { tcp_retire(fd); }

  // From here on a connection sends, so that its other end must exist, if that is in the tree too.
  absl::Status complete(int fd, std::string_view state, RestoreContext& context) const override {
    GW_ASSIGN_OR_RETURN(const auto now, parse_state<TcpSocketState>(state, name()));
    return now.has_connection() ? tcp_go_live(fd, now, context) : absl::OkStatus();
  }

  bool finishes(std::string_view state) const override {
    const auto now = parse_state<TcpSocketState>(state, name());
    return !now.ok() || now->common().has_owner();
  }

  absl::StatusOr<Check> finish(int, std::string_view state, ImagePid, int remote_fd,
                               tracee::Batch& batch, RestoreContext&) const override {
    GW_ASSIGN_OR_RETURN(const auto now, parse_state<TcpSocketState>(state, name()));
    return finish_signal_owner(now.common(), remote_fd, batch);
  }

  std::string describe(std::string_view state) const override {
    const auto now = parse_state<TcpSocketState>(state, name());
    if (!now.ok()) return "tcp ?";
    std::string words = TcpState_Name(now->state());
    words.erase(0, std::string_view("TCP_STATE_").size());
    for (char& c : words) c = static_cast<char>(c == '_' ? '-' : std::tolower(c));
    if (!is_connected(now->state())) return fmt::format("tcp {} {}", text_of(now->local()), words);
    return fmt::format("tcp {} -> {} {}, {}/{} B", text_of(now->local()), text_of(now->remote()),
                       words, now->connection().receive_queue().size(),
                       now->connection().send_queue().size());
  }
};

}  // namespace

const FileKind& tcp_socket_kind() {
  static const TcpSocketKind kind;
  return kind;
}

}  // namespace godwit::resource
