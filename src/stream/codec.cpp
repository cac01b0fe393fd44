#include "stream/codec.h"

#include <lz4.h>
#include <zstd.h>

#include <algorithm>
#include <array>
#include <cstring>

namespace godwit::stream {
namespace {

// The fastest one that is not a special case: what it does not find, the link has to carry; but a
// link for which a better one would pay is slower than any that programs move over.
constexpr int kZstdLevel = 1;
constexpr std::array<std::string_view, kCodecs> kNames = {"none", "lz4", "zstd"};

}  // namespace

std::string_view codec_name(Codec codec) {
  const auto index = static_cast<size_t>(codec);
  return index < kNames.size() ? kNames[index] : "unknown";
}

std::optional<Codec> codec_named(std::string_view name) {
  const auto* const found = std::find(kNames.begin(), kNames.end(), name);
  if (found == kNames.end()) return std::nullopt;
  return static_cast<Codec>(found - kNames.begin());
}

void Compressor::FreeZstd::operator()(ZSTD_CCtx_s* context) const { ZSTD_freeCCtx(context); }

Compressor::Compressor() = default;
Compressor::~Compressor() = default;

// 0: not smaller than `to`.
size_t Compressor::compress_chunk(Codec codec, std::span<const std::byte> data,
                                  std::span<std::byte> to) {
  if (codec == Codec::kLz4) {
    if (!lz4_)
      lz4_ = std::make_unique_for_overwrite<std::byte[]>(static_cast<size_t>(LZ4_sizeofState()));
    const int bytes = LZ4_compress_fast_extState(
        lz4_.get(), reinterpret_cast<const char*>(data.data()), reinterpret_cast<char*>(to.data()),
        static_cast<int>(data.size()), static_cast<int>(to.size()), 1);
    return bytes > 0 ? static_cast<size_t>(bytes) : 0;
  }
  if (!zstd_) zstd_.reset(ZSTD_createCCtx());
  if (!zstd_) return 0;
  const size_t bytes =
      ZSTD_compressCCtx(zstd_.get(), to.data(), to.size(), data.data(), data.size(), kZstdLevel);
  return ZSTD_isError(bytes) != 0 ? 0 : bytes;
}

size_t Compressor::compress(Codec codec, std::span<const std::byte> data, std::span<std::byte> to,
                            absl::FunctionRef<void()> between) {
  if (codec != Codec::kLz4 && codec != Codec::kZstd) return 0;
  size_t used = 0;
  while (!data.empty()) {
    const auto chunk = data.first(std::min(data.size(), kChunkBytes));
    data = data.subspan(chunk.size());
    uint32_t length = 0;
    if (to.size() - used < sizeof length) return 0;
    const auto room = to.subspan(used + sizeof length);
    // One of its own length is a plain one.
    length = static_cast<uint32_t>(
        compress_chunk(codec, chunk, room.first(std::min(room.size(), chunk.size() - 1))));
    if (length == 0) {
      if (room.size() < chunk.size()) return 0;
      length = static_cast<uint32_t>(chunk.size());
      std::memcpy(room.data(), chunk.data(), chunk.size());
    }
    std::memcpy(to.data() + used, &length, sizeof length);
    used += sizeof length + length;
    between();
  }
  return used;
}

void Decompressor::FreeZstd::operator()(ZSTD_DCtx_s* context) const { ZSTD_freeDCtx(context); }

Decompressor::Decompressor() = default;
Decompressor::~Decompressor() = default;

bool Decompressor::decompress_chunk(Codec codec, std::span<const std::byte> stored,
                                    std::span<std::byte> to) {
  if (codec == Codec::kLz4) {
    const int bytes = LZ4_decompress_safe(
        reinterpret_cast<const char*>(stored.data()), reinterpret_cast<char*>(to.data()),
        static_cast<int>(stored.size()), static_cast<int>(to.size()));
    return bytes >= 0 && static_cast<size_t>(bytes) == to.size();
  }
  // One frame of today's format that says its size: no window of its own is made for it, and none
  // of the old formats that the library knows as well is read.
  uint32_t magic = 0;
  if (stored.size() < sizeof magic) return false;
  std::memcpy(&magic, stored.data(), sizeof magic);
  if (magic != ZSTD_MAGICNUMBER ||
      ZSTD_getFrameContentSize(stored.data(), stored.size()) != to.size() ||
      ZSTD_findFrameCompressedSize(stored.data(), stored.size()) != stored.size())
    return false;
  if (!zstd_) zstd_.reset(ZSTD_createDCtx());
  if (!zstd_) return false;
  return ZSTD_decompressDCtx(zstd_.get(), to.data(), to.size(), stored.data(), stored.size()) ==
         to.size();
}

bool Decompressor::decompress(Codec codec, std::span<const std::byte> stored,
                              std::span<std::byte> to) {
  if (codec != Codec::kLz4 && codec != Codec::kZstd) return false;
  while (!to.empty()) {
    const auto chunk = to.first(std::min(to.size(), kChunkBytes));
    to = to.subspan(chunk.size());
    uint32_t length = 0;
    if (stored.size() < sizeof length) return false;
    std::memcpy(&length, stored.data(), sizeof length);
    stored = stored.subspan(sizeof length);
    if (length == 0 || length > stored.size() || length > chunk.size()) return false;
    if (length == chunk.size())
      std::memcpy(chunk.data(), stored.data(), length);
    else if (!decompress_chunk(codec, stored.first(length), chunk))
      return false;
    stored = stored.subspan(length);
  }
  return stored.empty();
}

}  // namespace godwit::stream
