// A ring as its users see it, mapped here.
#ifndef GODWIT_RESOURCE_IO_URING_RING_H_
#define GODWIT_RESOURCE_IO_URING_RING_H_

#include <linux/io_uring.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/unique_fd.h"
#include "resource/io_uring/io_uring.pb.h"

namespace godwit::resource {

// Newer than the headers; <linux/io_uring.h> of Linux 6.18.
inline constexpr uint32_t kSetupNoSqArray = 1U << 16;  // 6.6
inline constexpr uint32_t kRegisterClock = 29;         // 6.12
struct RegisteredClock {
  uint32_t clock;
  uint32_t unused[3];
};
inline constexpr uint64_t kIoUringPage = 4096;
// That a ring may have had, and as many have to be made to get there: 35 s of a round.
inline constexpr uint32_t kMostRequests = uint32_t{1} << 29;

// Where things are in the memory of both rings.
struct RingOffsets {
  uint32_t sq[8];  // head, tail, ring_mask, ring_entries, flags, dropped, array, -
  uint32_t cq[8];  // head, tail, ring_mask, ring_entries, overflow, cqes, flags, -
};

// Of params that io_uring_setup(2) has filled.
std::string offsets_of(const io_uring_params& params);
// kDataLoss: they lead out of `bytes` bytes.
absl::StatusOr<RingOffsets> parse_offsets(std::string_view text, uint64_t bytes);

// A new one; IORING_SETUP_CQSIZE where the size of its queue of results is not the usual one.
absl::StatusOr<UniqueFd> set_up_ring(uint32_t entries, uint32_t results, uint32_t setup,
                                     io_uring_params& params);

// A piece of a ring's memory.
class RingMemory {
 public:
  static absl::StatusOr<RingMemory> map(int fd, uint64_t offset, uint64_t bytes);
  RingMemory(RingMemory&& other) noexcept : memory_(other.memory_) { other.memory_ = {}; }
  RingMemory& operator=(RingMemory&&) = delete;
  ~RingMemory();
  std::span<std::byte> bytes() const { return memory_; }
  volatile uint32_t& at(uint32_t offset) const {
    return *reinterpret_cast<volatile uint32_t*>(memory_.data() + offset);
  }

 private:
  explicit RingMemory(std::span<std::byte> memory) : memory_(memory) {}
  std::span<std::byte> memory_;
};

// Bytes of the memory of a ring's entries, and of both rings at least.
uint64_t entries_bytes(const IoUringState& state);
uint64_t rings_bytes(const IoUringState& state);

}  // namespace godwit::resource

#endif  // GODWIT_RESOURCE_IO_URING_RING_H_
