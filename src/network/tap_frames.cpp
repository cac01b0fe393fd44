#include "network/tap_frames.h"

#include <arpa/inet.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <poll.h>
#include <sys/socket.h>
#include <time.h>

#include <algorithm>
#include <cstring>

#include "base/log.h"
#include "base/status.h"

namespace godwit::network {
namespace {

// More than any event of libvirt's is late, and much less than a client waits before it repeats.
constexpr int64_t kKeepNs = 500'000'000;
constexpr size_t kKeepBytes = size_t{32} << 20;
// What came just before the guest's last frame may be in the queue that QEMU had not read.
constexpr int64_t kBeforeLastSignNs = 5'000'000;
constexpr int64_t kBeforeStopNs = 100'000'000;
// struct virtio_net_hdr, whose header C++ cannot read.
constexpr size_t kOffloadHeader = 10;
constexpr size_t kMostFrame = size_t{70} << 10;  // with segmentation offload
constexpr int kReceiveBuffer = 8 << 20;

absl::StatusOr<UniqueFd> packet_socket(int ifindex, int protocol) {
  UniqueFd fd(::socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd) return errno_status(errno, "socket(AF_PACKET)");
  const int on = 1;
  if (::setsockopt(fd.get(), SOL_PACKET, PACKET_VNET_HDR, &on, sizeof on) != 0)
    return errno_status(errno, "setsockopt(PACKET_VNET_HDR)");
  sockaddr_ll address{};
  address.sll_family = AF_PACKET;
  address.sll_protocol = htons(static_cast<uint16_t>(protocol));
  address.sll_ifindex = ifindex;
  if (::bind(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0)
    return errno_status(errno, "bind(AF_PACKET)");
  return fd;
}

int64_t arrival_ns(msghdr& message) {
  for (cmsghdr* each = CMSG_FIRSTHDR(&message); each != nullptr; each = CMSG_NXTHDR(&message, each))
    if (each->cmsg_level == SOL_SOCKET && each->cmsg_type == SO_TIMESTAMPNS) {
      timespec at{};
      std::memcpy(&at, CMSG_DATA(each), sizeof at);
      return int64_t{at.tv_sec} * 1'000'000'000 + at.tv_nsec;
    }
  return 0;
}

}  // namespace

absl::StatusOr<std::unique_ptr<TapRecorder>> TapRecorder::open(int ifindex) {
  GW_ASSIGN_OR_RETURN(UniqueFd socket, packet_socket(ifindex, ETH_P_ALL));
  const int on = 1;
  ::setsockopt(socket.get(), SOL_SOCKET, SO_RCVBUFFORCE, &kReceiveBuffer, sizeof kReceiveBuffer);
  if (::setsockopt(socket.get(), SOL_SOCKET, SO_TIMESTAMPNS, &on, sizeof on) != 0)
    return errno_status(errno, "setsockopt(SO_TIMESTAMPNS)");
  std::unique_ptr<TapRecorder> recorder(new TapRecorder(std::move(socket)));
  recorder->thread_ = std::thread([self = recorder.get()] { self->record(); });
  return recorder;
}

TapRecorder::~TapRecorder() {
  stopping_ = true;
  if (thread_.joinable()) thread_.join();
}

void TapRecorder::record() {
  std::string bytes(kMostFrame, '\0');
  while (!stopping_) {
    pollfd one{socket_.get(), POLLIN, 0};
    if (::poll(&one, 1, 50) <= 0) continue;
    iovec room{bytes.data(), bytes.size()};
    sockaddr_ll from{};
    alignas(cmsghdr) char control[128];
    msghdr message{};
    message.msg_name = &from;
    message.msg_namelen = sizeof from;
    message.msg_iov = &room;
    message.msg_iovlen = 1;
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    const ssize_t got = ::recvmsg(socket_.get(), &message, MSG_DONTWAIT);
    if (got < 0 && errno == ENETDOWN) return;  // the device has gone
    if (got <= 0 || (message.msg_flags & MSG_TRUNC) != 0) continue;
    const int64_t at = arrival_ns(message);
    std::lock_guard lock(mutex_);
    if (from.sll_pkttype != PACKET_OUTGOING) {
      guest_sent_ns_ = std::max(guest_sent_ns_, at);
      continue;
    }
    seen_.push_back({at, bytes.substr(0, static_cast<size_t>(got))});
    bytes_ += static_cast<size_t>(got);
    while (!seen_.empty() && (bytes_ > kKeepBytes || seen_.front().at_ns < at - kKeepNs)) {
      bytes_ -= seen_.front().frame.size();
      seen_.pop_front();
    }
  }
}

std::vector<std::string> TapRecorder::missed(int64_t stopped_ns) {
  std::lock_guard lock(mutex_);
  const int64_t begin =
      std::max({stopped_ns - kBeforeStopNs, guest_sent_ns_ - kBeforeLastSignNs, returned_ns_ + 1});
  std::vector<std::string> frames;
  for (const Seen& each : seen_) {
    if (each.at_ns < begin) continue;
    frames.push_back(each.frame);
    returned_ns_ = std::max(returned_ns_, each.at_ns);
  }
  return frames;
}

absl::StatusOr<TapSender> TapSender::open(int ifindex) {
  // Protocol 0: it receives nothing.
  GW_ASSIGN_OR_RETURN(UniqueFd socket, packet_socket(ifindex, 0));
  return TapSender(std::move(socket));
}

absl::Status TapSender::send(const std::string& frame) const {
  // A peer says what these are.
  if (frame.size() < kOffloadHeader + sizeof(ethhdr) || frame.size() > kMostFrame)
    return make_error(absl::StatusCode::kInvalidArgument, "a frame of {} bytes", frame.size());
  if (::send(socket_.get(), frame.data(), frame.size(), MSG_DONTWAIT) < 0 && errno != EAGAIN &&
      errno != ENOBUFS)
    return errno_status(errno, "send(AF_PACKET)");
  return absl::OkStatus();
}

}  // namespace godwit::network
