// The ring as the kernel and the program see it (fs/aio.c; its users have copied it from there).
#ifndef GODWIT_RESOURCE_AIO_RING_H_
#define GODWIT_RESOURCE_AIO_RING_H_

#include <linux/aio_abi.h>

#include <cstddef>
#include <cstdint>

namespace godwit::resource {

struct AioRingHeader {
  uint32_t id;
  uint32_t events;  // of which one is never used
  uint32_t head;
  uint32_t tail;
  uint32_t magic;
  uint32_t compat_features;
  uint32_t incompat_features;
  uint32_t header_length;
};
static_assert(sizeof(AioRingHeader) == 32 && sizeof(io_event) == 32);

inline constexpr uint64_t kRingPage = 4096;
inline constexpr uint64_t kMostRingBytes = uint64_t{64} << 20;
inline constexpr uint64_t kMostQueues = 4096;

inline constexpr uint64_t events_in(uint64_t ring_bytes) {
  return (ring_bytes - sizeof(AioRingHeader)) / sizeof(io_event);
}
// The most that a queue with such a ring can have been made for.
inline constexpr uint64_t most_requests(uint64_t ring_bytes) {
  return (ring_bytes / sizeof(io_event) - 3) / 2;
}
// Of a queue for so many requests on a machine with so many possible CPUs.
inline constexpr uint64_t ring_bytes(uint64_t requests, uint64_t cpus) {
  const uint64_t events = 2 * (requests > 4 * cpus ? requests : 4 * cpus) + 2;
  const uint64_t bytes = sizeof(AioRingHeader) + events * sizeof(io_event);
  return (bytes + kRingPage - 1) / kRingPage * kRingPage;
}

}  // namespace godwit::resource

#endif  // GODWIT_RESOURCE_AIO_RING_H_
