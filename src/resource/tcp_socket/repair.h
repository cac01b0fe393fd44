// What capture and restore of TCP sockets share. Internal to this folder.
#ifndef GODWIT_RESOURCE_TCP_SOCKET_REPAIR_H_
#define GODWIT_RESOURCE_TCP_SOCKET_REPAIR_H_

#include <linux/tcp.h>
#include <netinet/in.h>

#include <optional>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "resource/resource.h"
#include "resource/socket_options/address.h"
#include "resource/socket_options/options.h"
#include "resource/tcp_socket/tcp_socket.pb.h"

namespace godwit::resource {

absl::Status tcp_precheck(const OpenFile& file, const CaptureContext& context,
                          std::vector<Refusal>& refusals);
std::string tcp_settle(const OpenFile& file, const CaptureContext& context);
absl::StatusOr<std::string> tcp_capture(const OpenFile& file, const CaptureContext& context);

absl::StatusOr<UniqueFd> tcp_create(const TcpSocketState& state, RestoreContext& context);
absl::StatusOr<bool> tcp_update(int fd, const TcpSocketState& before, const TcpSocketState& now,
                                RestoreContext& context);
void tcp_retire(int fd);
absl::Status tcp_go_live(int fd, const TcpSocketState& state, RestoreContext& context);

// The part of a state that is settled before the gate closes, in settled.cpp: what only the program
// changes. For a connection (`connected`) or another socket; with how it was read in front, which
// settled_state() takes off.
absl::StatusOr<std::string> capture_settled(const OpenFile& file, const CaptureContext& context,
                                            const tcp_info& info);
// Nothing if `settled` was taken in the other case.
std::optional<std::string_view> settled_state(std::string_view settled, TcpState state);

// What both ends have agreed upon when they connected.
struct Negotiated {
  bool known = false;
  bool window_scaling = false;
  bool sack = false;
  bool timestamps = false;
  bool timestamp_us = false;
  uint8_t send_scale = 0;
  uint8_t receive_scale = 0;
};
// Of a settled part.
Negotiated negotiated_of(std::string_view settled);
// The settled part `before` holds now, too, as the view shows.
bool settled_stands(const OpenFile& before, const FileView& now, const CaptureContext& context);

// The clock of RFC 7323's timestamps (tcp_clock_ts(), net/tcp.h).
inline uint32_t timestamp_clock(int64_t monotonic_ns, bool microseconds) {
  return static_cast<uint32_t>(monotonic_ns / (microseconds ? 1'000 : 1'000'000));
}

// In seen.cpp: an established connection without anything in its queues or under way, whose numbers
// are all in the view.
bool is_idle(const TcpView& view);
void connection_of(const TcpView& view, const Negotiated& negotiated, TcpSocketState& state);

// True for the states that TCP_REPAIR can make: those with a peer.
bool is_connected(TcpState state);
// Our FIN is part of the send queue (it may be unsent).
bool fin_sent(TcpState state);
bool fin_received(TcpState state);

// Value of a string option; "" where there is none.
absl::StatusOr<std::string> tcp_name_option(int fd, int name);

// The state of the clone's socket: its own addresses, and an end to what others are connected to.
TcpSocketState tcp_for_clone(TcpSocketState state, const CloneAddresses& addresses);

// setsockopt(TCP_REPAIR_QUEUE): which queue send, recv and TCP_QUEUE_SEQ mean.
absl::Status select_queue(int fd, int queue);

// Hands one segment without data "from the peer" to the socket local <- remote by a raw socket in
// the capsule's network namespace: routed by the loopback device, seen by nobody else.
struct Segment {
  const KernelAddress& from;
  const KernelAddress& to;
  uint32_t sequence;
  uint32_t acknowledge;
  uint16_t window;  // scaled
  bool fin;
  // What the timestamps option (RFC 7323) echoes; its own value is then 0, which the kernel takes
  // for "none yet" and compares nothing with.
  std::optional<uint32_t> echo = std::nullopt;
  bool reset = false;
};
absl::Status inject_segment(const Segment& segment, RestoreContext& context);

}  // namespace godwit::resource

#endif  // GODWIT_RESOURCE_TCP_SOCKET_REPAIR_H_
