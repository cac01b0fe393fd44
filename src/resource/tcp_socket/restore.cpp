// The destination's side. The order below is the one that works (TCP_REPAIR, net/ipv4/tcp.c):
// sequence numbers only while the socket is closed, options after connect(), window last.
#include <sched.h>

#include <algorithm>
#include <cstring>

#include "base/clock.h"
#include "base/status.h"
#include "resource/tcp_socket/repair.h"

namespace godwit::resource {
namespace {

// The kernel keeps at most 17 pages (MAX_SKB_FRAGS) of one send into a receive queue.
constexpr size_t kReceiveChunk = size_t{64} << 10;

constexpr absl::Duration kEndWait = absl::Seconds(1);

// TCP's option numbers, RFC 793, 7323, 2018: what TCP_REPAIR_OPTIONS calls its opt_code.
constexpr uint32_t kOptionMss = 2;
constexpr uint32_t kOptionWindowScale = 3;
constexpr uint32_t kOptionSackPermitted = 4;
constexpr uint32_t kOptionTimestamp = 8;

absl::StatusOr<KernelAddress> decode(const InternetAddress& address, RestoreContext& context) {
  return decode_address(address, [&](absl::FunctionRef<absl::Status()> action) {
    return context.in_capsule(action);
  });
}

SocketUse use_of(const TcpSocketState& state) {
  return is_connected(state.state()) ? kUseTcpConnection : kUseTcpIdle;
}

absl::Status bind_to(int fd, const InternetAddress& local, RestoreContext& context) {
  GW_ASSIGN_OR_RETURN(const KernelAddress address, decode(local, context));
  if (::bind(fd, address.get(), address.size) == 0) return absl::OkStatus();
  const int error = errno;
  // EINVAL: it is bound already, by an attempt before this one.
  const auto bound = local_address(fd);
  if (error == EINVAL && bound.ok() && bound->size == address.size &&
      std::memcmp(&bound->storage, &address.storage, address.size) == 0)
    return absl::OkStatus();
  return errno_status(error, fmt::format("bind({})", text_of(local)));
}

absl::Status set_congestion(int fd, const std::string& name) {
  if (name.empty()) return absl::OkStatus();
  if (::setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, name.data(),
                   static_cast<socklen_t>(name.size())) != 0)
    return errno_status(errno, fmt::format("setsockopt(TCP_CONGESTION, \"{}\")", name));
  return absl::OkStatus();
}

absl::Status set_sequence(int fd, int queue, uint32_t sequence) {
  GW_RETURN_IF_ERROR(select_queue(fd, queue));
  return set_int_option(fd, IPPROTO_TCP, TCP_QUEUE_SEQ, static_cast<int>(sequence));
}

// Into the selected queue.
absl::Status put(int fd, std::string_view bytes, size_t chunk) {
  while (!bytes.empty()) {
    const ssize_t sent =
        ::send(fd, bytes.data(), std::min(bytes.size(), chunk), MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent < 0)
      return errno_status(errno, fmt::format("send(TCP queue), {} bytes left", bytes.size()));
    bytes.remove_prefix(static_cast<size_t>(sent));
  }
  return absl::OkStatus();
}

// The same bytes may be packed less tightly here than at the source: they get twice the room while
// they are put in. The true sizes follow in tcp_go_live().
absl::Status make_room(int fd, const TcpConnection& connection, const SocketCommon& common) {
  const auto room = [](int64_t size, size_t content) {
    return std::max<int64_t>(size, static_cast<int64_t>(content) * 2 + (int64_t{1} << 20));
  };
  if (connection.receive_queue().empty() && connection.send_queue().empty())
    return absl::OkStatus();
  SocketCommon wide;
  wide.set_receive_buffer(room(common.receive_buffer(), connection.receive_queue().size()));
  wide.set_send_buffer(room(common.send_buffer(), connection.send_queue().size()));
  wide.set_buffer_lock(common.buffer_lock());
  return restore_buffers(fd, wide);
}

// Never behind what the source has sent.
absl::Status set_timestamp(int fd, const TcpConnection& connection, RestoreContext& context) {
  if (!connection.timestamps()) return absl::OkStatus();
  const uint32_t clock = timestamp_clock(context.source_clock_ns(), connection.timestamp_us());
  uint32_t timestamp = connection.timestamp_offset() + clock;
  // The lowest bit says in which unit it is.
  timestamp = connection.timestamp_us() ? timestamp | 1 : (timestamp + 1) & ~1U;
  return set_int_option(fd, IPPROTO_TCP, TCP_TIMESTAMP, static_cast<int>(timestamp));
}

absl::Status set_repair_options(int fd, const TcpConnection& connection) {
  tcp_repair_opt options[4];
  size_t count = 0;
  options[count++] = {kOptionMss, connection.mss_clamp()};
  if (connection.window_scaling())
    options[count++] = {kOptionWindowScale, connection.send_scale() | connection.receive_scale()
                                                                          << 16};
  if (connection.sack()) options[count++] = {kOptionSackPermitted, 0};
  if (connection.timestamps()) options[count++] = {kOptionTimestamp, 0};
  if (::setsockopt(fd, IPPROTO_TCP, TCP_REPAIR_OPTIONS, options,
                   static_cast<socklen_t>(count * sizeof options[0])) != 0)
    return errno_status(errno, "setsockopt(TCP_REPAIR_OPTIONS)");
  return absl::OkStatus();
}

absl::Status set_window(int fd, const TcpConnection& connection) {
  const tcp_repair_window window{.snd_wl1 = connection.window_update_seq(),
                                 .snd_wnd = connection.send_window(),
                                 .max_window = connection.max_window(),
                                 .rcv_wnd = connection.receive_window(),
                                 .rcv_wup = connection.receive_window_seq()};
  if (::setsockopt(fd, IPPROTO_TCP, TCP_REPAIR_WINDOW, &window, sizeof window) != 0)
    return errno_status(errno, "setsockopt(TCP_REPAIR_WINDOW)");
  return absl::OkStatus();
}

// First sequence number of the send queue.
uint32_t send_start(const TcpSocketState& state) {
  const TcpConnection& connection = state.connection();
  return connection.send_next() - static_cast<uint32_t>(connection.send_queue().size()) -
         (fin_sent(state.state()) ? 1 : 0);
}

std::string_view sent_part(const TcpConnection& connection) {
  const std::string_view queue = connection.send_queue();
  return queue.substr(0, queue.size() - std::min<size_t>(queue.size(), connection.unsent()));
}

// The "ACK" or "FIN" of the peer that the state says has come.
absl::Status inject(const TcpSocketState& state, bool fin, uint32_t sequence, uint32_t acknowledge,
                    RestoreContext& context, std::optional<uint32_t> echo = std::nullopt) {
  const TcpConnection& connection = state.connection();
  GW_ASSIGN_OR_RETURN(const KernelAddress local, decode(state.local(), context));
  GW_ASSIGN_OR_RETURN(const KernelAddress remote, decode(state.remote(), context));
  const auto window = static_cast<uint16_t>(
      std::min<uint32_t>(connection.send_window() >> connection.send_scale(), UINT16_MAX));
  return inject_segment({remote, local, sequence, acknowledge, window, fin, echo}, context);
}

// A connection made in repair mode has never measured a round trip: its first retransmission would
// wait 3 seconds (TCP_TIMEOUT_FALLBACK, tcp_init_metrics()). Where something is unacknowledged the
// kernel gets the source's measurement: the byte before the queue, which the peer has acknowledged
// long ago, is put in as sent, and a segment of ours acknowledges it with an echoed timestamp of
// one round trip ago. (Only that way: what was put in by repair counts as retransmitted, so the
// time of its sending is not looked at.) Should the segment get lost, nothing is: the byte is an
// old one to the peer.
bool seeds_round_trip(const TcpSocketState& state) {
  const TcpConnection& connection = state.connection();
  return connection.timestamps() && connection.round_trip_us() > 0 &&
         (!connection.send_queue().empty() ||
          (fin_sent(state.state()) && state.state() != TCP_STATE_FIN_WAIT2));
}

absl::Status seed_round_trip(int fd, const TcpSocketState& state, RestoreContext& context) {
  const TcpConnection& connection = state.connection();
  GW_RETURN_IF_ERROR(select_queue(fd, TCP_SEND_QUEUE));
  GW_RETURN_IF_ERROR(put(fd, std::string_view("\0", 1), 1));
  const uint32_t round_trip =
      connection.timestamp_us() ? connection.round_trip_us() : connection.round_trip_us() / 1000;
  GW_ASSIGN_OR_RETURN(const int now, get_int_option(fd, IPPROTO_TCP, TCP_TIMESTAMP));
  const uint32_t receive_next = connection.receive_next() - (fin_received(state.state()) ? 1 : 0);
  return inject(state, false, receive_next, send_start(state), context,
                static_cast<uint32_t>(now) - round_trip);
}

// What can be connected before the freeze, since an idle connection mostly is the same in it.
bool is_idle(const TcpSocketState& state) {
  const TcpConnection& connection = state.connection();
  return state.has_connection() && !state.ended() && state.state() == TCP_STATE_ESTABLISHED &&
         connection.receive_queue().empty() && connection.send_queue().empty();
}

absl::StatusOr<TcpState> state_of(int fd) {
  tcp_info info{};
  socklen_t size = sizeof info.tcpi_state;
  if (::getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &size) != 0)
    return errno_status(errno, fmt::format("getsockopt({}, TCP_INFO)", fd));
  return static_cast<TcpState>(info.tcpi_state);
}

// Back to a bound socket, without a word (tcp_disconnect(), net/ipv4/tcp.c): its numbers can be
// set and it can be connected anew. Its options stay, the error that this leaves is taken away.
absl::Status disconnect(int fd) {
  const sockaddr nobody{.sa_family = AF_UNSPEC, .sa_data = {}};
  if (::connect(fd, &nobody, sizeof nobody) != 0)
    return errno_status(errno, fmt::format("connect({}, AF_UNSPEC)", fd));
  return get_int_option(fd, SOL_SOCKET, SO_ERROR).status();
}

int64_t option_of(const TcpSocketState& state, int level, int name) {
  for (const SocketOption& option : state.common().options())
    if (option.level() == level && option.name() == name) return option.value();
  return 0;
}

absl::Status set_sizes(int fd, const TcpSocketState& state) {
  GW_RETURN_IF_ERROR(select_queue(fd, TCP_NO_QUEUE));
  GW_RETURN_IF_ERROR(set_window(fd, state.connection()));
  return set_int_option(fd, IPPROTO_TCP, TCP_WINDOW_CLAMP,
                        static_cast<int>(state.connection().window_clamp()));
}

// Everything but leaving repair mode; of an idle connection all that go_live_idle() does not do.
absl::Status rebuild(int fd, const TcpSocketState& state, RestoreContext& context) {
  const TcpConnection& connection = state.connection();
  GW_ASSIGN_OR_RETURN(const KernelAddress remote, decode(state.remote(), context));
  GW_RETURN_IF_ERROR(set_int_option(fd, IPPROTO_TCP, TCP_REPAIR, TCP_REPAIR_ON));
  const bool seed = seeds_round_trip(state);
  GW_RETURN_IF_ERROR(set_sequence(fd, TCP_SEND_QUEUE, send_start(state) - (seed ? 1 : 0)));
  GW_RETURN_IF_ERROR(set_sequence(fd, TCP_RECV_QUEUE,
                                  connection.receive_next() -
                                      (fin_received(state.state()) ? 1 : 0) -
                                      static_cast<uint32_t>(connection.receive_queue().size())));
  GW_RETURN_IF_ERROR(make_room(fd, connection, state.common()));
  GW_RETURN_IF_ERROR(bind_to(fd, state.local(), context));
  if (::connect(fd, remote.get(), remote.size) != 0)
    return errno_status(errno, fmt::format("connect({}) in repair mode", text_of(state.remote())));
  GW_RETURN_IF_ERROR(set_repair_options(fd, connection));
  GW_RETURN_IF_ERROR(set_timestamp(fd, connection, context));
  // Still selected: the receive queue.
  GW_RETURN_IF_ERROR(put(fd, connection.receive_queue(), kReceiveChunk));
  if (seed) GW_RETURN_IF_ERROR(seed_round_trip(fd, state, context));
  if (is_idle(state)) {
    GW_RETURN_IF_ERROR(set_sizes(fd, state));
    return restore_buffers(fd, state.common());
  }
  if (sent_part(connection).empty()) return absl::OkStatus();
  GW_RETURN_IF_ERROR(select_queue(fd, TCP_SEND_QUEUE));
  return put(fd, sent_part(connection), SIZE_MAX);
}

// In a round keepalive would probe, and give up, behind a closed gate: it waits for go_live().
absl::Status withhold_keepalive(int fd, const TcpSocketState& state) {
  return option_of(state, SOL_SOCKET, SO_KEEPALIVE) == 0
             ? absl::OkStatus()
             : set_int_option(fd, SOL_SOCKET, SO_KEEPALIVE, 0);
}

// What fails now, as for want of an address that another still has, is tried again in
// go_live_idle().
absl::Status rebuild_early(int fd, const TcpSocketState& state, RestoreContext& context) {
  GW_RETURN_IF_ERROR(withhold_keepalive(fd, state));
  if (!rebuild(fd, state, context).ok()) return disconnect(fd);
  return absl::OkStatus();
}

// The very last, out of repair mode, which has cleared SO_REUSEADDR. Not bound to its device
// before: segments that are handed to it come by the loopback device.
absl::Status restore_withheld(int fd, const TcpSocketState& state) {
  if (option_of(state, SOL_SOCKET, SO_KEEPALIVE) != 0)
    GW_RETURN_IF_ERROR(set_int_option(fd, SOL_SOCKET, SO_KEEPALIVE, 1));
  GW_RETURN_IF_ERROR(restore_device(fd, state.common()));
  const int64_t reuse = option_of(state, SOL_SOCKET, SO_REUSEADDR);
  return reuse == 0 ? absl::OkStatus()
                    : set_int_option(fd, SOL_SOCKET, SO_REUSEADDR, static_cast<int>(reuse));
}

// Of a connection that is idle, made now or in a round.
absl::Status go_live_idle(int fd, const TcpSocketState& state, RestoreContext& context) {
  GW_ASSIGN_OR_RETURN(const TcpState now, state_of(fd));
  if (now != TCP_STATE_ESTABLISHED) GW_RETURN_IF_ERROR(rebuild(fd, state, context));
  GW_RETURN_IF_ERROR(set_timestamp(fd, state.connection(), context));
  GW_RETURN_IF_ERROR(set_int_option(fd, IPPROTO_TCP, TCP_REPAIR, TCP_REPAIR_OFF_NO_WP));
  return restore_withheld(fd, state);
}

// Its numbers can only be set while it is closed: one that was connected in a round and has been
// used since is disconnected first.
absl::Status update_connection(int fd, const TcpSocketState& before, const TcpSocketState& now,
                               RestoreContext& context) {
  if (!context.final()) GW_RETURN_IF_ERROR(withhold_keepalive(fd, now));
  if (!context.final() && !is_idle(now)) return absl::OkStatus();
  GW_ASSIGN_OR_RETURN(const TcpState state, state_of(fd));
  if (state == TCP_STATE_ESTABLISHED) {
    if (before.connection().SerializeAsString() == now.connection().SerializeAsString() &&
        before.remote().SerializeAsString() == now.remote().SerializeAsString())
      return restore_buffers(fd, now.common());
    GW_RETURN_IF_ERROR(disconnect(fd));
  }
  return context.final() ? rebuild(fd, now, context) : rebuild_early(fd, now, context);
}

// What the peer would have to send for it, from the peer. Nothing leaves the socket: a reset is not
// answered, and what it had to send is gone with its state (tcp_reset(), net/ipv4/tcp_input.c).
absl::Status end_by_peer(int fd, const TcpSocketState& state, RestoreContext& context) {
  const TcpConnection& connection = state.connection();
  if (fin_received(state.state()))
    GW_RETURN_IF_ERROR(
        inject(state, true, connection.receive_next() - 1, connection.send_next(), context));
  GW_ASSIGN_OR_RETURN(const KernelAddress local, decode(state.local(), context));
  GW_ASSIGN_OR_RETURN(const KernelAddress remote, decode(state.remote(), context));
  GW_RETURN_IF_ERROR(inject_segment({remote, local, connection.receive_next(),
                                     connection.send_next(), 0, false, std::nullopt, true},
                                    context));
  // Mostly before the call has returned; else by the softirq thread.
  const Deadline deadline = Deadline::in(kEndWait);
  while (true) {
    GW_ASSIGN_OR_RETURN(const TcpState now, state_of(fd));
    if (now == TCP_STATE_CLOSE) break;
    if (deadline.passed())
      return make_error(absl::StatusCode::kDeadlineExceeded,
                        "the clone's connection to {} could not be ended", text_of(state.remote()));
    ::sched_yield();
  }
  GW_RETURN_IF_ERROR(set_int_option(fd, IPPROTO_TCP, TCP_REPAIR, TCP_REPAIR_OFF_NO_WP));
  GW_RETURN_IF_ERROR(restore_buffers(fd, state.common()));
  return restore_withheld(fd, state);
}

absl::Status listen_early(int fd, const TcpSocketState& state) {
  if (::listen(fd, static_cast<int>(state.backlog())) != 0)
    return errno_status(errno, fmt::format("listen({})", text_of(state.local())));
  return absl::OkStatus();
}

bool is_bound(const TcpSocketState& state) {
  return state.local().port() != 0 || !is_any(state.local());
}

absl::Status check_state(const TcpSocketState& state) {
  const TcpConnection& connection = state.connection();
  if ((state.family() != AF_INET && state.family() != AF_INET6) ||
      connection.unsent() > connection.send_queue().size() || connection.send_scale() > 14 ||
      connection.receive_scale() > 14)
    return make_error(absl::StatusCode::kDataLoss, "state of a TCP socket makes no sense");
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<UniqueFd> tcp_create(const TcpSocketState& state, RestoreContext& context) {
  GW_RETURN_IF_ERROR(check_state(state));
  UniqueFd fd;
  GW_RETURN_IF_ERROR(context.in_capsule([&] {
    fd.reset(::socket(state.family(), SOCK_STREAM | SOCK_CLOEXEC, IPPROTO_TCP));
    return fd ? absl::OkStatus() : errno_status(errno, "socket(SOCK_STREAM)");
  }));
  GW_RETURN_IF_ERROR(
      restore_common(fd.get(), use_of(state), state.family(), nullptr, state.common()));
  GW_RETURN_IF_ERROR(set_congestion(fd.get(), state.congestion()));
  if (is_connected(state.state())) {
    // Perhaps for inject(), in the freeze.
    if (!context.final()) GW_RETURN_IF_ERROR(context.raw_socket(state.family()).status());
    if (context.final())
      GW_RETURN_IF_ERROR(rebuild(fd.get(), state, context));
    else if (is_idle(state))
      GW_RETURN_IF_ERROR(rebuild_early(fd.get(), state, context));
    return fd;
  }
  GW_RETURN_IF_ERROR(restore_buffers(fd.get(), state.common()));
  GW_RETURN_IF_ERROR(restore_device(fd.get(), state.common()));
  if (is_bound(state)) GW_RETURN_IF_ERROR(bind_to(fd.get(), state.local(), context));
  if (state.state() == TCP_STATE_LISTEN) GW_RETURN_IF_ERROR(listen_early(fd.get(), state));
  return fd;
}

absl::StatusOr<bool> tcp_update(int fd, const TcpSocketState& before, const TcpSocketState& now,
                                RestoreContext& context) {
  GW_RETURN_IF_ERROR(check_state(now));
  const bool connected = is_connected(now.state());
  if (connected != is_connected(before.state()) || before.family() != now.family()) return false;
  if (connected) {
    if (before.local().SerializeAsString() != now.local().SerializeAsString()) return false;
  } else {
    // A bound or listening socket cannot be bound elsewhere, nor stop listening and stay bound.
    if (before.local().SerializeAsString() != now.local().SerializeAsString()) return false;
    if (before.state() == TCP_STATE_LISTEN && now.state() != TCP_STATE_LISTEN) return false;
    if (before.common().bind_device() != now.common().bind_device()) return false;
  }
  GW_RETURN_IF_ERROR(restore_common(fd, use_of(now), now.family(), &before.common(), now.common()));
  if (before.congestion() != now.congestion())
    GW_RETURN_IF_ERROR(set_congestion(fd, now.congestion()));
  if (connected) {
    GW_RETURN_IF_ERROR(update_connection(fd, before, now, context));
    return true;
  }
  GW_RETURN_IF_ERROR(restore_buffers(fd, now.common()));
  if (now.state() == TCP_STATE_LISTEN &&
      (before.state() != TCP_STATE_LISTEN || before.backlog() != now.backlog()))
    GW_RETURN_IF_ERROR(listen_early(fd, now));
  return true;
}

void tcp_retire(int fd) {
  const auto state = state_of(fd);
  if (state.ok() && *state == TCP_STATE_ESTABLISHED) disconnect(fd).IgnoreError();
}

absl::Status tcp_go_live(int fd, const TcpSocketState& state, RestoreContext& context) {
  if (state.ended()) return end_by_peer(fd, state, context);
  if (is_idle(state)) return go_live_idle(fd, state, context);
  const TcpConnection& connection = state.connection();
  const bool fin_out_later = connection.fin_unsent() || connection.unsent() > 0;
  const uint32_t first_unacknowledged = send_start(state);
  const auto shut_down = [&] {
    return ::shutdown(fd, SHUT_WR) == 0 ? absl::OkStatus()
                                        : errno_status(errno, "shutdown(SHUT_WR)");
  };
  const uint32_t their_fin = connection.receive_next() - 1;

  if (fin_received(state.state()) && state.state() != TCP_STATE_CLOSING)
    GW_RETURN_IF_ERROR(inject(state, true, their_fin, first_unacknowledged, context));
  if (fin_sent(state.state()) && !fin_out_later) {
    // With the send queue selected the FIN counts as sent and stays here.
    GW_RETURN_IF_ERROR(select_queue(fd, TCP_SEND_QUEUE));
    GW_RETURN_IF_ERROR(shut_down());
    if (state.state() == TCP_STATE_FIN_WAIT2)
      GW_RETURN_IF_ERROR(
          inject(state, false, connection.receive_next(), connection.send_next(), context));
    if (state.state() == TCP_STATE_CLOSING)
      GW_RETURN_IF_ERROR(inject(state, true, their_fin, first_unacknowledged, context));
  }
  GW_RETURN_IF_ERROR(set_sizes(fd, state));
  // From here on the connection sends. No window probe: the peer would answer it.
  GW_RETURN_IF_ERROR(set_int_option(fd, IPPROTO_TCP, TCP_REPAIR, TCP_REPAIR_OFF_NO_WP));
  if (connection.unsent() > 0)
    GW_RETURN_IF_ERROR(put(fd,
                           std::string_view(connection.send_queue())
                               .substr(connection.send_queue().size() - connection.unsent()),
                           SIZE_MAX));
  if (fin_sent(state.state()) && fin_out_later) {
    GW_RETURN_IF_ERROR(shut_down());
    if (state.state() == TCP_STATE_CLOSING)
      GW_RETURN_IF_ERROR(inject(state, true, their_fin, first_unacknowledged, context));
  }
  GW_RETURN_IF_ERROR(restore_buffers(fd, state.common()));
  return restore_withheld(fd, state);
}

}  // namespace godwit::resource
