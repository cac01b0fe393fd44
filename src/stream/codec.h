// Compression of page data: LZ4 (block format) and Zstandard, in chunks that stand for themselves.
// docs/stream-format.md has the bytes. Knows nothing of frames: what goes beside the stream is
// compressed by it as well.
#ifndef GODWIT_STREAM_CODEC_H_
#define GODWIT_STREAM_CODEC_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string_view>

#include "absl/functional/function_ref.h"

struct ZSTD_CCtx_s;
struct ZSTD_DCtx_s;

namespace godwit::stream {

enum class Codec : uint32_t {
  kNone = 0,  // never on the wire
  kLz4 = 1,
  kZstd = 2,
};
inline constexpr size_t kCodecs = 3;

// "none", "lz4", "zstd".
std::string_view codec_name(Codec codec);
std::optional<Codec> codec_named(std::string_view name);

// Between two of them who compresses can let others run: 0.3 to 1 ms.
inline constexpr size_t kChunkBytes = size_t{256} << 10;

// Not thread-safe. Up to 1.5 MiB of its own, taken at the first use of a codec.
class Compressor {
 public:
  Compressor();
  ~Compressor();
  Compressor(const Compressor&) = delete;
  Compressor& operator=(const Compressor&) = delete;

  // `data` as chunks in `to`; the bytes used, or 0: `to` is too small for them. `between` is called
  // after each chunk.
  size_t compress(Codec codec, std::span<const std::byte> data, std::span<std::byte> to,
                  absl::FunctionRef<void()> between);

 private:
  struct FreeZstd {
    void operator()(ZSTD_CCtx_s* context) const;
  };
  size_t compress_chunk(Codec codec, std::span<const std::byte> data, std::span<std::byte> to);
  std::unique_ptr<std::byte[]> lz4_;
  std::unique_ptr<ZSTD_CCtx_s, FreeZstd> zstd_;
};

// Not thread-safe. Any bytes whatever: no access beyond either span, no memory by what they say.
class Decompressor {
 public:
  Decompressor();
  ~Decompressor();
  Decompressor(const Decompressor&) = delete;
  Decompressor& operator=(const Decompressor&) = delete;

  // True if `stored` is whole chunks that fill `to` exactly.
  bool decompress(Codec codec, std::span<const std::byte> stored, std::span<std::byte> to);

 private:
  struct FreeZstd {
    void operator()(ZSTD_DCtx_s* context) const;
  };
  bool decompress_chunk(Codec codec, std::span<const std::byte> stored, std::span<std::byte> to);
  std::unique_ptr<ZSTD_DCtx_s, FreeZstd> zstd_;
};

}  // namespace godwit::stream

#endif  // GODWIT_STREAM_CODEC_H_
