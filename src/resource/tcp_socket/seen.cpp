// A connection as a view shows it: the numbers that repair mode would give (tcp_sock(), Linux 6.18:
// do_tcp_getsockopt(), tcp_get_info(), net/ipv4/tcp.c), without it and without a system call.
#include "resource/tcp_socket/repair.h"

namespace godwit::resource {

// That nothing is under way leaves nothing to retransmit, to acknowledge late, or to read, so that
// no timer changes what is here. The last three are what TCP_REPAIR_WINDOW asks for; a view of a
// running program may be torn.
bool is_idle(const TcpView& view) {
  const auto not_after = [](uint32_t a, uint32_t b) { return static_cast<int32_t>(a - b) <= 0; };
  return view.state == TCP_STATE_ESTABLISHED && view.shutdown == 0 && view.err == 0 &&
         view.urg_data == 0 && view.out_of_order == 0 && view.rcv_nxt == view.copied_seq &&
         view.write_seq == view.snd_una && view.rmem_alloc == 0 && view.backlog == 0 &&
         view.wmem_queued == 0 && not_after(view.snd_wl1, view.rcv_nxt + view.rcv_wnd) &&
         not_after(view.rcv_wup, view.rcv_nxt) && view.max_window >= view.snd_wnd;
}

void connection_of(const TcpView& view, const Negotiated& negotiated, TcpSocketState& state) {
  state.set_state(static_cast<TcpState>(view.state));
  // As capture_connection() does.
  state.mutable_common()->set_receive_buffer(view.rcvbuf & ~1);
  state.mutable_common()->set_send_buffer(view.sndbuf & ~1);
  TcpConnection& connection = *state.mutable_connection();
  connection.set_receive_next(view.rcv_nxt);
  connection.set_send_next(view.write_seq);
  connection.set_mss_clamp(view.mss_clamp);
  connection.set_window_scaling(negotiated.window_scaling);
  connection.set_send_scale(negotiated.send_scale);
  connection.set_receive_scale(negotiated.receive_scale);
  connection.set_sack(negotiated.sack);
  connection.set_timestamps(negotiated.timestamps);
  if (negotiated.timestamps) {
    connection.set_timestamp_us(negotiated.timestamp_us);
    connection.set_timestamp_offset(view.tsoffset);
  }
  connection.set_window_update_seq(view.snd_wl1);
  connection.set_send_window(view.snd_wnd);
  connection.set_max_window(view.max_window);
  connection.set_receive_window(view.rcv_wnd);
  connection.set_receive_window_seq(view.rcv_wup);
  connection.set_window_clamp(view.window_clamp);
}

}  // namespace godwit::resource
