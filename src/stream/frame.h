// The bytes of frames (docs/stream-format.md): little-endian, written and read field by field.
#ifndef GODWIT_STREAM_FRAME_H_
#define GODWIT_STREAM_FRAME_H_

#include <array>
#include <bit>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string_view>
#include <vector>

#include "stream/stream.h"

namespace godwit::stream {

inline constexpr uint32_t kFrameMagic = 0x31545747;  // "GWT1"
inline constexpr size_t kHeaderBytes = 32;
inline constexpr size_t kHashedHeaderBytes = 24;  // all but the checksum itself
inline constexpr size_t kRunBytes = 16;
inline constexpr size_t kPagesFixedBytes = 16;
inline constexpr size_t kCompressedFixedBytes = 24;
inline constexpr size_t kMaxPreambleBytes = 32 + 2 * kMaxNameBytes;

//  0        4     6     8          16         24         32
//  | magic  |type | 0   | sequence | length   | checksum |
struct FrameHeader {
  FrameType type = FrameType::kInvalid;
  uint64_t sequence = 0;  // of the stream, from 0
  uint64_t length = 0;    // of the payload
  uint64_t checksum = 0;  // XXH3-64 of the header's first 24 bytes and the payload
};

using HeaderBytes = std::array<std::byte, kHeaderBytes>;

static_assert(std::endian::native == std::endian::little, "byte order is swapped nowhere yet");

class Encoder {
 public:
  explicit Encoder(std::vector<std::byte>& to) : to_(to) { to_.clear(); }
  template <std::unsigned_integral T>
  Encoder& number(T value) {
    return bytes(&value, sizeof value);
  }
  Encoder& text(std::string_view value) { return bytes(value.data(), value.size()); }

 private:
  Encoder& bytes(const void* from, size_t size) {
    const auto* p = static_cast<const std::byte*>(from);
    to_.insert(to_.end(), p, p + size);
    return *this;
  }
  std::vector<std::byte>& to_;
};

// Takes fields off the front; a read beyond the end gives zeros and makes ok() false for good.
class Decoder {
 public:
  explicit Decoder(std::span<const std::byte> from) : from_(from) {}
  template <std::unsigned_integral T>
  T number() {
    T value{};
    const auto part = take(sizeof value);
    if (!part.empty()) std::memcpy(&value, part.data(), sizeof value);
    return value;
  }
  std::span<const std::byte> take(size_t size) {
    if (size > from_.size()) {
      ok_ = false;
      from_ = {};
      return {};
    }
    const auto part = from_.first(size);
    from_ = from_.subspan(size);
    return part;
  }
  std::string_view text(size_t size) {
    const auto part = take(size);
    return {reinterpret_cast<const char*>(part.data()), part.size()};
  }
  bool ok() const { return ok_; }
  // Everything was there and nothing is left.
  bool done() const { return ok_ && from_.empty(); }

 private:
  std::span<const std::byte> from_;
  bool ok_ = true;
};

HeaderBytes encode_header(const FrameHeader& header);
// False: not a header (magic, reserved bytes).
bool decode_header(std::span<const std::byte, kHeaderBytes> bytes, FrameHeader& header);

// Bounds of a payload's length by type; {1, 0} for an unknown type.
struct LengthBounds {
  uint64_t least = 1;
  uint64_t most = 0;
};
LengthBounds length_bounds(FrameType type);

// What is wrong with them, empty if nothing.
std::string_view fault_of_kind(std::string_view kind);
std::string_view fault_of_name(std::string_view name);
std::string_view fault_of_run(const PageRun& run);

// Payload of any frame but those with pages' contents. On failure `fault` says what is wrong. Spans
// point into `payload`.
bool decode_payload(FrameType type, std::span<const std::byte> payload, Frame& frame,
                    std::string_view& fault);
// Fixed part of a Pages payload: 16 bytes; gives the number of runs and of pages.
bool decode_pages_fixed(std::span<const std::byte> payload, uint64_t& space, uint32_t& runs,
                        uint32_t& pages);
// The 8 bytes behind it in a CompressedPages payload; false: out of bounds for that many pages.
bool decode_compressed_fixed(std::span<const std::byte> payload, uint32_t pages, Codec& codec,
                             uint32_t& stored);
bool decode_runs(Decoder& from, uint32_t count, std::vector<PageRun>& runs,
                 std::string_view& fault);

}  // namespace godwit::stream

#endif  // GODWIT_STREAM_FRAME_H_
