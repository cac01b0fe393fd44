// Compression of the pages of one migration: the choice (codec_choice.h), the compressor and its
// memory, for all senders together.
#ifndef GODWIT_PAGES_COMPRESSION_H_
#define GODWIT_PAGES_COMPRESSION_H_

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "pages/codec_choice.h"
#include "stream/stream.h"

namespace godwit::pages {

// Senders take turns. Of one sender, the thread that reads pages calls choose(), look() and
// compress(), and the one that writes them write() and sent(). Less than 8 MiB, taken when the
// first batch is compressed.
class PageCompression {
 public:
  static constexpr size_t kSlots = 3;
  static constexpr size_t kSlotBytes = size_t{2} << 20;  // of pages

  // Before the first page is sent.
  void set(Compress compress);

  enum class Pipeline {
    kOne,   // of many batches, one of which is read while another is written
    kAlone  // whoever waits for it waits for each step
  };
  struct Packed {
    stream::Codec codec = stream::Codec::kNone;  // that was tried
    std::span<const std::byte> stored;           // empty: they go plain
    int64_t ns = 0;
  };
  // kNone: the next pages go plain. Otherwise compress() needs them in one piece.
  stream::Codec choose(uint64_t bytes, Pipeline pipeline);
  // `pages`: at most kSlotBytes. What it gives lies in `slot`.
  Packed compress(stream::Codec codec, std::span<const std::byte> pages, size_t slot);
  // A part of them may be compressed only to see what that would gain.
  void look(std::span<const iovec> pages);

  // Writes the frame.
  static absl::Status write(stream::Writer& writer, uint64_t space,
                            std::span<const stream::PageRun> runs, std::span<const iovec> data,
                            const Packed& packed);
  void sent(const BatchFigures& batch);

  uint64_t bytes() const { return bytes_; }            // of pages that were sent
  uint64_t wire_bytes() const { return wire_bytes_; }  // and what they were on the wire
  uint64_t saved() const { return bytes_ - wire_bytes_; }
  // "none", "lz4", "zstd" or "lz4+zstd": what any of them was compressed with.
  std::string used() const;

 private:
  std::mutex mutex_;  // of choice_
  CodecChoice choice_;
  stream::Compressor compressor_;
  std::unique_ptr<std::byte[]> memory_;
  std::vector<std::byte> sample_;  // and, behind it, what it is compressed to
  size_t looks_ = 0;
  std::atomic<uint64_t> bytes_{0};
  std::atomic<uint64_t> wire_bytes_{0};
  std::array<std::atomic<bool>, stream::kCodecs> used_{};
};

}  // namespace godwit::pages

#endif  // GODWIT_PAGES_COMPRESSION_H_
