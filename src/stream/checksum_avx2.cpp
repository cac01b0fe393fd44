// XXH3 compiled for AVX2 (see CMakeLists.txt). Includes nothing but xxhash.h with its functions
// static: an inline function of another header, compiled here for AVX2, could be the copy that the
// linker keeps for everyone, and a CPU without AVX2 would die in it.
#if defined(__x86_64__)
#define XXH_INLINE_ALL
#include <xxhash.h>

namespace godwit::stream {

// `state` is an XXH3_state_t of the same version of xxHash: its layout does not depend on the
// vector width.
void checksum_update_avx2(void* state, const void* bytes, size_t size) {
  XXH3_64bits_update(static_cast<XXH3_state_t*>(state), bytes, size);
}

}  // namespace godwit::stream
#endif
