#include "network/frames.h"

#include <linux/if_packet.h>
#include <net/ethernet.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>

#include "base/clock.h"
#include "base/status.h"

namespace godwit::network {
namespace {

constexpr size_t kBatch = 64;

absl::Status check(const Frames& frames) {
  size_t sum = 0;
  for (const uint32_t size : frames.sizes) {
    if (size < ETH_HLEN || size > frames.bytes.size()) {
      return make_error(absl::StatusCode::kInvalidArgument, "a frame of {} bytes", size);
    }
    sum += size;
  }
  if (sum != frames.bytes.size()) {
    return make_error(absl::StatusCode::kInvalidArgument, "frames of {} bytes in a buffer of {}",
                      sum, frames.bytes.size());
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<FrameSender> FrameSender::open(int ifindex) {
  // Protocol 0: nothing is received, so no copy of the traffic is made for this socket.
  UniqueFd socket(::socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0));
  if (!socket) return errno_status(errno, "socket(AF_PACKET, SOCK_RAW)");
  const int on = 1;
  if (::setsockopt(socket.get(), SOL_PACKET, PACKET_QDISC_BYPASS, &on, sizeof on) != 0) {
    return errno_status(errno, "setsockopt(PACKET_QDISC_BYPASS)");
  }
  sockaddr_ll address{};
  address.sll_family = AF_PACKET;
  address.sll_ifindex = ifindex;
  if (::bind(socket.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) {
    return errno_status(errno, fmt::format("bind(packet socket, link {})", ifindex));
  }
  return FrameSender(std::move(socket));
}

absl::Status FrameSender::send(const Frames& frames) const {
  GW_RETURN_IF_ERROR(check(frames));
  const Deadline deadline = Deadline::in(absl::Seconds(1));
  size_t done = 0;
  size_t offset = 0;
  while (done < frames.count()) {
    std::array<mmsghdr, kBatch> messages{};
    std::array<iovec, kBatch> parts{};
    const size_t count = std::min(kBatch, frames.count() - done);
    size_t at = offset;
    for (size_t i = 0; i < count; ++i) {
      const uint32_t size = frames.sizes[done + i];
      parts[i] = {const_cast<char*>(frames.bytes.data()) + at, size};
      messages[i].msg_hdr.msg_iov = &parts[i];
      messages[i].msg_hdr.msg_iovlen = 1;
      at += size;
    }
    const int sent =
        ::sendmmsg(socket_.get(), messages.data(), static_cast<unsigned>(count), MSG_DONTWAIT);
    for (int i = 0; i < sent; ++i) offset += frames.sizes[done + static_cast<size_t>(i)];
    if (sent > 0) {
      done += static_cast<size_t>(sent);
      continue;
    }
    // ENOBUFS: the driver did not take it just now; EAGAIN: the socket's own buffer is full.
    if ((errno != EAGAIN && errno != ENOBUFS && errno != EINTR) || deadline.passed()) {
      return errno_status(errno, fmt::format("sendmmsg(frame {} of {}, {} bytes)", done + 1,
                                             frames.count(), frames.sizes[done]));
    }
    pollfd waiting{socket_.get(), POLLOUT, 0};
    ::poll(&waiting, 1, 1);
  }
  return absl::OkStatus();
}

}  // namespace godwit::network
