// Debian's libxxhash is built for SSE2: 17 GB/s on a CPU that does 50 with AVX2. The AVX2 form is
// compiled in its own file and chosen when the CPU has it; both make the same value.
#include "stream/checksum.h"

namespace godwit::stream {

void checksum_update_avx2(void* state, const void* bytes, size_t size);

void Checksum::update(std::span<const std::byte> bytes) {
#if defined(__x86_64__)
  // Short input goes into the state's own buffer either way.
  static const bool has_avx2 = __builtin_cpu_supports("avx2") != 0;
  if (bytes.size() >= 1024 && has_avx2) {
    checksum_update_avx2(state_.get(), bytes.data(), bytes.size());
    return;
  }
#endif
  XXH3_64bits_update(state_.get(), bytes.data(), bytes.size());
}

}  // namespace godwit::stream
