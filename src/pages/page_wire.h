// What the two ends of post-copy say to each other about pages that are still at the source, over
// two connections: one for faults, which never waits behind anything, and one for what is pushed.
// docs/wire-protocol.md has the conversation. Little-endian; headers of 32 bytes.
#ifndef GODWIT_PAGES_PAGE_WIRE_H_
#define GODWIT_PAGES_PAGE_WIRE_H_

#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>

#include "pages/page_set.h"
#include "stream/checksum.h"

namespace godwit::pages {

enum class PageMessage : uint32_t {
  kInvalid = 0,
  // Destination, on the connection for faults.
  kMissing = 1,   // `count` pages are to come
  kListEnd = 2,   // all that is missing was named: push. `count`: kTakesProven, or 0
  kRequest = 3,   // the program waits for this one
  kGone = 4,      // not needed any more: dropped or unmapped there
  kComplete = 5,  // nothing is missing: the source may go
  // Source, on both.
  kPages = 16,        // data follows, `count` pages
  kZeros = 17,        // these read as zero
  kAlive = 18,        // had nothing to send
  kPagesProven = 19,  // as kPages, with data that no checksum is over: TLS proves it
};

// The destination knows kPagesProven, and its connections are under TLS.
inline constexpr uint32_t kTakesProven = 1;

struct PageHeader {
  uint32_t type = 0;
  uint32_t count = 0;
  uint64_t space = 0;
  uint64_t address = 0;   // at the source
  uint64_t checksum = 0;  // XXH3-64 of the 24 bytes before, then of the data
};
static_assert(sizeof(PageHeader) == 32 && std::endian::native == std::endian::little);

// Of one message that carries data: what a fault may have to wait for.
inline constexpr uint32_t kMaxWirePages = 16;

inline uint64_t wire_checksum(const PageHeader& header, std::span<const std::byte> data) {
  const auto head = std::as_bytes(std::span(&header, 1)).first(offsetof(PageHeader, checksum));
  return stream::Checksum::chain(stream::Checksum::chain(0, head), data);
}

inline PageHeader page_header(PageMessage type, uint64_t space, uint64_t address, uint32_t count,
                              std::span<const std::byte> data = {}) {
  PageHeader header{static_cast<uint32_t>(type), count, space, address, 0};
  header.checksum = wire_checksum(header, data);
  return header;
}

}  // namespace godwit::pages

#endif  // GODWIT_PAGES_PAGE_WIRE_H_
