// What goes to a virtual machine by its tap device, seen and given (packet(7)), with the offload
// header that QEMU and the kernel use between them (PACKET_VNET_HDR, struct virtio_net_hdr): frames
// may be larger than the wire's and lack their checksums.
//
// A stopped QEMU does not read its tap, and what has come goes with the device. So it is seen
// from beside, before anybody knows when the guest will stop, and the last of it is kept.
#ifndef GODWIT_NETWORK_TAP_FRAMES_H_
#define GODWIT_NETWORK_TAP_FRAMES_H_

#include <atomic>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "base/unique_fd.h"

namespace godwit::network {

class TapRecorder {
 public:
  // In the calling thread's network namespace; sees from now on.
  static absl::StatusOr<std::unique_ptr<TapRecorder>> open(int ifindex);
  ~TapRecorder();

  // Frames towards the guest that it may not have had when it was stopped at `stopped_ns`
  // (CLOCK_REALTIME): from a moment before its last sign of life on, in order. Those that an
  // earlier call returned are not returned again.
  std::vector<std::string> missed(int64_t stopped_ns);

 private:
  explicit TapRecorder(UniqueFd socket) : socket_(std::move(socket)) {}
  void record();

  UniqueFd socket_;
  std::atomic<bool> stopping_ = false;
  std::mutex mutex_;
  struct Seen {
    int64_t at_ns;
    std::string frame;
  };
  std::deque<Seen> seen_;
  size_t bytes_ = 0;
  int64_t guest_sent_ns_ = 0;  // the last frame from it
  int64_t returned_ns_ = 0;    // of the last frame that missed() returned
  std::thread thread_;
};

class TapSender {
 public:
  static absl::StatusOr<TapSender> open(int ifindex);
  // As missed() has them; what has no room in the tap's queue is dropped, as any frame is.
  absl::Status send(const std::string& frame) const;

 private:
  explicit TapSender(UniqueFd socket) : socket_(std::move(socket)) {}
  UniqueFd socket_;
};

}  // namespace godwit::network

#endif  // GODWIT_NETWORK_TAP_FRAMES_H_
