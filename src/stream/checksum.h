// XXH3-64 (xxHash 0.8) over bytes that come in pieces. Not against forgery: between nodes TLS
// stands below the stream.
#ifndef GODWIT_STREAM_CHECKSUM_H_
#define GODWIT_STREAM_CHECKSUM_H_

#include <xxhash.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

namespace godwit::stream {

class Checksum {
 public:
  Checksum() : state_(XXH3_createState()) { reset(); }
  void reset() { XXH3_64bits_reset(state_.get()); }
  void update(std::span<const std::byte> bytes);
  void update(const void* bytes, size_t size) {
    update({static_cast<const std::byte*>(bytes), size});
  }
  uint64_t value() const { return XXH3_64bits_digest(state_.get()); }

  // One step of a chain: XXH3-64 of `bytes` seeded with the chain's value so far.
  static uint64_t chain(uint64_t so_far, std::span<const std::byte> bytes) {
    return XXH3_64bits_withSeed(bytes.data(), bytes.size(), so_far);
  }

 private:
  struct Free {
    void operator()(XXH3_state_t* state) const { XXH3_freeState(state); }
  };
  std::unique_ptr<XXH3_state_t, Free> state_;
};

}  // namespace godwit::stream

#endif  // GODWIT_STREAM_CHECKSUM_H_
