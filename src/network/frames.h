// Ethernet frames in one buffer, and putting them onto a device past its gate.
#ifndef GODWIT_NETWORK_FRAMES_H_
#define GODWIT_NETWORK_FRAMES_H_

#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/unique_fd.h"
#include "network/ip.h"

namespace godwit::network {

// In order of arrival. sizes add up to bytes.size(); anybody may build one from a peer's bytes,
// so send() checks.
struct Frames {
  std::vector<uint32_t> sizes;
  std::string bytes;

  size_t count() const { return sizes.size(); }
  bool empty() const { return sizes.empty(); }
  void append(std::string_view frame) {
    sizes.push_back(static_cast<uint32_t>(frame.size()));
    bytes.append(frame);
  }
  void append(const Frames& other) {
    sizes.insert(sizes.end(), other.sizes.begin(), other.sizes.end());
    bytes.append(other.bytes);
  }
  void clear() {
    sizes.clear();
    bytes.clear();
  }
};

// The Ethernet source address; of something shorter zero.
inline MacAddress sender_of(std::string_view frame) {
  MacAddress mac;
  if (frame.size() >= 2 * mac.bytes.size())
    std::memcpy(mac.bytes.data(), frame.data() + mac.bytes.size(), mac.bytes.size());
  return mac;
}

// packet(7) socket that sends on one device with PACKET_QDISC_BYPASS: straight to the driver, past
// the qdisc and past TCX egress programs. Receives nothing.
class FrameSender {
 public:
  // In the calling thread's network namespace.
  static absl::StatusOr<FrameSender> open(int ifindex);
  // All of them in order. Does not wait for space longer than a second.
  absl::Status send(const Frames& frames) const;

 private:
  explicit FrameSender(UniqueFd socket) : socket_(std::move(socket)) {}
  UniqueFd socket_;
};

}  // namespace godwit::network

#endif  // GODWIT_NETWORK_FRAMES_H_
