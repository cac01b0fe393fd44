// The source's side. In repair mode recv(MSG_PEEK) reads either queue, TCP_QUEUE_SEQ its end
// (rcv_nxt, write_seq), and the socket sends nothing more by itself but acknowledgements, which the
// gate drops.
#include <linux/sock_diag.h>
#include <linux/sockios.h>
#include <poll.h>
#include <sys/ioctl.h>

#include <algorithm>
#include <array>
#include <cstring>

#include "base/clock.h"
#include "base/status.h"
#include "kernel/syscalls.h"
#include "resource/state_codec.h"
#include "resource/tcp_socket/repair.h"
#include "resource/tcp_socket/tcp_socket.h"

namespace godwit::resource {
namespace {

constexpr int kForceReuse = 2;  // SK_FORCE_REUSE: what TCP_REPAIR puts in SO_REUSEADDR's place

absl::StatusOr<tcp_info> info_of(int fd) {
  tcp_info info{};
  socklen_t size = sizeof info;
  if (::getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &size) != 0)
    return errno_status(errno, fmt::format("getsockopt({}, TCP_INFO)", fd));
  return info;
}

absl::Status retry(const OpenFile& file, std::string_view why) {
  return make_error(absl::StatusCode::kUnavailable,
                    "TCP socket {} of process {}: {}; it passes by itself: let the program run "
                    "for a moment and try again",
                    file.remote_fd, file.tgid.value, why);
}

absl::StatusOr<uint32_t> queue_sequence(int fd, int queue) {
  GW_RETURN_IF_ERROR(select_queue(fd, queue));
  GW_ASSIGN_OR_RETURN(const int value, get_int_option(fd, IPPROTO_TCP, TCP_QUEUE_SEQ));
  return static_cast<uint32_t>(value);
}

// The selected queue's `size` bytes, left where they are.
absl::Status peek_queue(int fd, size_t size, std::string& bytes) {
  bytes.resize(size);
  // Reading the receive queue would move SO_PEEK_OFF; -1 means that it is off.
  GW_ASSIGN_OR_RETURN(const int peek_offset, get_int_option(fd, SOL_SOCKET, SO_PEEK_OFF));
  if (peek_offset >= 0) GW_RETURN_IF_ERROR(set_int_option(fd, SOL_SOCKET, SO_PEEK_OFF, -1));
  const ssize_t got = ::recv(fd, bytes.data(), size, MSG_PEEK | MSG_DONTWAIT);
  const int error = errno;
  if (peek_offset >= 0)
    GW_RETURN_IF_ERROR(set_int_option(fd, SOL_SOCKET, SO_PEEK_OFF, peek_offset));
  if (got < 0) return errno_status(error, fmt::format("recv({}, MSG_PEEK), {} bytes", fd, size));
  if (static_cast<size_t>(got) != size)
    return make_error(absl::StatusCode::kInternal, "queue of {} bytes gave {}", size, got);
  return absl::OkStatus();
}

absl::StatusOr<size_t> queued(int fd, unsigned long request) {
  int bytes = 0;
  if (::ioctl(fd, request, &bytes) != 0)
    return errno_status(errno, fmt::format("ioctl({}, {:#x})", fd, request));
  return static_cast<size_t>(bytes);
}

using MemoryInfo = std::array<uint32_t, SK_MEMINFO_VARS>;

absl::StatusOr<MemoryInfo> memory_of(int fd) {
  MemoryInfo memory{};
  socklen_t size = sizeof memory;
  if (::getsockopt(fd, SOL_SOCKET, SO_MEMINFO, memory.data(), &size) != 0)
    return errno_status(errno, fmt::format("getsockopt({}, SO_MEMINFO)", fd));
  return memory;
}

// `memory` tells which queues are empty: cheaper to ask once than for each queue's length.
absl::Status capture_queues(int fd, const MemoryInfo& memory, TcpState tcp_state,
                            TcpConnection& connection) {
  GW_ASSIGN_OR_RETURN(const uint32_t receive_next, queue_sequence(fd, TCP_RECV_QUEUE));
  connection.set_receive_next(receive_next);
  if (memory[SK_MEMINFO_RMEM_ALLOC] != 0 || memory[SK_MEMINFO_BACKLOG] != 0) {
    GW_ASSIGN_OR_RETURN(const size_t incoming, queued(fd, SIOCINQ));
    if (incoming > 0)
      GW_RETURN_IF_ERROR(peek_queue(fd, incoming, *connection.mutable_receive_queue()));
  }
  GW_ASSIGN_OR_RETURN(const uint32_t send_next, queue_sequence(fd, TCP_SEND_QUEUE));
  connection.set_send_next(send_next);
  if (memory[SK_MEMINFO_WMEM_QUEUED] == 0) return absl::OkStatus();
  // write_seq - snd_una: counts an unacknowledged FIN, sent or not.
  GW_ASSIGN_OR_RETURN(size_t outgoing, queued(fd, SIOCOUTQ));
  const bool fin_queued = fin_sent(tcp_state) && tcp_state != TCP_STATE_FIN_WAIT2;
  if (outgoing == 0) return absl::OkStatus();
  GW_ASSIGN_OR_RETURN(size_t unsent, queued(fd, SIOCOUTQNSD));  // write_seq - snd_nxt
  if (fin_queued) {
    outgoing -= 1;
    connection.set_fin_unsent(unsent > 0);
    unsent -= std::min<size_t>(unsent, 1);
  }
  connection.set_unsent(static_cast<uint32_t>(unsent));
  if (outgoing > 0) return peek_queue(fd, outgoing, *connection.mutable_send_queue());
  return absl::OkStatus();
}

absl::Status capture_connection(int fd, const tcp_info& info, TcpSocketState& state) {
  TcpConnection& connection = *state.mutable_connection();
  GW_ASSIGN_OR_RETURN(const MemoryInfo memory, memory_of(fd));
  // Sizes are set in halves: an odd one, which only the kernel's tuning makes, loses a byte.
  state.mutable_common()->set_receive_buffer(memory[SK_MEMINFO_RCVBUF] & ~1U);
  state.mutable_common()->set_send_buffer(memory[SK_MEMINFO_SNDBUF] & ~1U);
  GW_RETURN_IF_ERROR(capture_queues(fd, memory, state.state(), connection));
  GW_RETURN_IF_ERROR(select_queue(fd, TCP_NO_QUEUE));
  connection.set_window_scaling((info.tcpi_options & TCPI_OPT_WSCALE) != 0);
  connection.set_send_scale(info.tcpi_snd_wscale);
  connection.set_receive_scale(info.tcpi_rcv_wscale);
  connection.set_sack((info.tcpi_options & TCPI_OPT_SACK) != 0);
  connection.set_timestamps((info.tcpi_options & TCPI_OPT_TIMESTAMPS) != 0);
  connection.set_round_trip_us(info.tcpi_rtt);
  GW_ASSIGN_OR_RETURN(const int mss, get_int_option(fd, IPPROTO_TCP, TCP_MAXSEG));
  connection.set_mss_clamp(static_cast<uint32_t>(mss));  // in repair mode it is mss_clamp
  if (connection.timestamps()) {
    // Read before: that the offset becomes too great by a tick is better than too small.
    const int64_t now_ns = monotonic_ns();
    GW_ASSIGN_OR_RETURN(const int timestamp, get_int_option(fd, IPPROTO_TCP, TCP_TIMESTAMP));
    connection.set_timestamp_us((timestamp & 1) != 0);
    // In milliseconds the lowest bit has been lost.
    connection.set_timestamp_offset((static_cast<uint32_t>(timestamp) | 1) -
                                    timestamp_clock(now_ns, connection.timestamp_us()));
  }
  tcp_repair_window window{};
  socklen_t size = sizeof window;
  if (::getsockopt(fd, IPPROTO_TCP, TCP_REPAIR_WINDOW, &window, &size) != 0)
    return errno_status(errno, fmt::format("getsockopt({}, TCP_REPAIR_WINDOW)", fd));
  connection.set_window_update_seq(window.snd_wl1);
  connection.set_send_window(window.snd_wnd);
  connection.set_max_window(window.max_window);
  connection.set_receive_window(window.rcv_wnd);
  connection.set_receive_window_seq(window.rcv_wup);
  GW_ASSIGN_OR_RETURN(const int clamp, get_int_option(fd, IPPROTO_TCP, TCP_WINDOW_CLAMP));
  connection.set_window_clamp(static_cast<uint32_t>(clamp));
  return absl::OkStatus();
}

// Only in the final epoch: what cannot be carried but goes away when the program runs on.
absl::Status check_transient(const OpenFile& file, const tcp_info& info) {
  const auto state = static_cast<TcpState>(info.tcpi_state);
  if (state == TCP_STATE_LISTEN)  // tcpi_unacked: length of the accept queue
    return info.tcpi_unacked == 0
               ? absl::OkStatus()
               : retry(file, fmt::format("{} connections not yet accepted", info.tcpi_unacked));
  if (state == TCP_STATE_SYN_SENT || state == TCP_STATE_SYN_RECV)
    return retry(file, "a connection is being made");
  pollfd events{.fd = file.fd, .events = POLLIN | POLLPRI | POLLRDHUP, .revents = 0};
  if (::poll(&events, 1, 0) < 0) return errno_status(errno, "poll(TCP socket)");
  if (state == TCP_STATE_CLOSE && (events.revents & POLLRDHUP) != 0)
    return retry(file, "the connection is over, but the program has not closed it");
  // Asking for the error (SO_ERROR) would take it away from the program.
  if ((events.revents & POLLERR) != 0) return retry(file, "an error waits to be read");
  if ((events.revents & POLLPRI) != 0) return retry(file, "urgent data wait to be read");
  return absl::OkStatus();
}

// Repair mode with SO_REUSEADDR's value kept in its place: leaving repair mode clears it, and who
// leaves it may not be us.
absl::Status enter_repair(int fd, int reuse) {
  GW_RETURN_IF_ERROR(set_int_option(fd, IPPROTO_TCP, TCP_REPAIR, TCP_REPAIR_ON));
  return set_int_option(fd, SOL_SOCKET, SO_REUSEADDR, reuse);
}

// Of one that stands (settled_stands()) and is idle.
absl::StatusOr<std::string> capture_seen(const OpenFile& file) {
  const std::optional<std::string_view> settled =
      settled_state(file.settled_before, TCP_STATE_ESTABLISHED);
  if (!settled || !file.view || !is_idle(file.view->tcp))
    return make_error(absl::StatusCode::kInternal, "TCP socket {} was not taken", file.remote_fd);
  std::string bytes(*settled);
  TcpSocketState state;
  connection_of(file.view->tcp, negotiated_of(file.settled_before), state);
  state.AppendToString(&bytes);
  return bytes;
}

}  // namespace

absl::Status tcp_precheck(const OpenFile& file, const CaptureContext&,
                          std::vector<Refusal>& refusals) {
  const auto refuse = [&](std::string code, std::string reason, std::string way_out) {
    refusals.push_back(
        {std::move(code),
         fmt::format("process {}, descriptor {} -> {}", file.tgid.value, file.remote_fd, file.link),
         std::move(reason), std::move(way_out)});
  };
  GW_ASSIGN_OR_RETURN(const std::string protocol, tcp_name_option(file.fd, TCP_ULP));
  if (!protocol.empty())
    refuse("tcp.ulp", fmt::format("the kernel runs '{}' on the connection (TCP_ULP)", protocol),
           "switch the program's kernel TLS off");
  socklen_t filter = 0;
  if (::getsockopt(file.fd, SOL_SOCKET, SO_GET_FILTER, nullptr, &filter) != 0 && errno == EACCES)
    refuse("socket.bpf", "the socket has an eBPF filter, which cannot be read back",
           "detach the filter (SO_DETACH_FILTER)");
  return absl::OkStatus();
}

std::string tcp_settle(const OpenFile& file, const CaptureContext& context) {
  const auto info = info_of(file.fd);
  if (!info.ok()) return {};
  auto part = capture_settled(file, context, *info);
  return part.ok() ? *std::move(part) : std::string();
}

// Messages, one behind the other: reading them merges them.
absl::StatusOr<std::string> tcp_capture(const OpenFile& file, const CaptureContext& context) {
  if (file.fd < 0) return capture_seen(file);
  GW_ASSIGN_OR_RETURN(tcp_info info, info_of(file.fd));
  if (context.final()) GW_RETURN_IF_ERROR(check_transient(file, info));
  TcpSocketState state;
  state.set_state(static_cast<TcpState>(info.tcpi_state));
  const bool connected = is_connected(state.state());
  std::optional<std::string_view> settled = settled_state(file.settled, state.state());
  std::string read_now;
  if (!settled) {
    GW_ASSIGN_OR_RETURN(read_now, capture_settled(file, context, info));
    settled = settled_state(read_now, state.state());
  }
  std::string bytes(*settled);
  if (state.state() == TCP_STATE_LISTEN) state.set_backlog(info.tcpi_sacked);
  const Negotiated negotiated = negotiated_of(file.settled);
  if (connected && !context.final() && file.view && file.view->is_tcp != 0 && negotiated.known &&
      is_idle(file.view->tcp))
    connection_of(file.view->tcp, negotiated, state);
  if (connected && context.final()) {
    GW_ASSIGN_OR_RETURN(const int reuse, get_int_option(file.fd, SOL_SOCKET, SO_REUSEADDR));
    GW_RETURN_IF_ERROR(enter_repair(file.fd, reuse));
    absl::Status captured = capture_connection(file.fd, info, state);
    if (!captured.ok()) {
      tcp_end_capture(file.fd).IgnoreError();  // the first error counts
      return captured;
    }
  }
  state.AppendToString(&bytes);
  return bytes;
}

absl::Status tcp_silence(int fd) {
  return set_int_option(fd, IPPROTO_TCP, TCP_REPAIR, TCP_REPAIR_ON);
}

absl::Status tcp_end_capture(int fd) {
  int repair = 0;
  socklen_t size = sizeof repair;
  // ENOTSOCK, EOPNOTSUPP, ENOPROTOOPT: not a TCP socket.
  if (::getsockopt(fd, IPPROTO_TCP, TCP_REPAIR, &repair, &size) != 0 || repair == 0)
    return absl::OkStatus();
  GW_ASSIGN_OR_RETURN(int reuse, get_int_option(fd, SOL_SOCKET, SO_REUSEADDR));
  // Died between the two calls of enter_repair(): nearly every server sets it.
  if (reuse == kForceReuse) reuse = 1;
  GW_RETURN_IF_ERROR(set_int_option(fd, IPPROTO_TCP, TCP_REPAIR, TCP_REPAIR_OFF_NO_WP));
  return set_int_option(fd, SOL_SOCKET, SO_REUSEADDR, reuse);
}

absl::Status tcp_end_capture_of(int pidfd, std::span<const int> remote_fds) {
  absl::Status first;
  for (const int remote_fd : remote_fds) {
    auto fd = kernel::pidfd_getfd(pidfd, remote_fd);
    absl::Status ended = fd.ok() ? tcp_end_capture(fd->get()) : fd.status();
    if (!fd.ok() && errno_of(ended) == EBADF) continue;
    if (first.ok()) first = ended;
  }
  return first;
}

}  // namespace godwit::resource
