#include "pages/compression.h"

#include <algorithm>
#include <cstring>

#include "base/clock.h"
#include "kernel/slice.h"

namespace godwit::pages {
namespace {

constexpr size_t kSampleBytes = size_t{64} << 10;
// Less gain than this is not worth the other side's work.
size_t room_for(size_t bytes) { return bytes - bytes / 16; }

}  // namespace

void PageCompression::set(Compress compress) {
  const std::lock_guard lock(mutex_);
  choice_ = CodecChoice(compress);
}

stream::Codec PageCompression::choose(uint64_t bytes, Pipeline pipeline) {
  const std::lock_guard lock(mutex_);
  return pipeline == Pipeline::kOne ? choice_.next() : choice_.alone(bytes);
}

PageCompression::Packed PageCompression::compress(stream::Codec codec,
                                                  std::span<const std::byte> pages, size_t slot) {
  if (!memory_) memory_ = std::make_unique_for_overwrite<std::byte[]>(kSlots * kSlotBytes);
  const std::span<std::byte> room(memory_.get() + slot * kSlotBytes, room_for(pages.size()));
  Packed packed{.codec = codec, .stored = {}, .ns = 0};
  const int64_t begin = monotonic_ns();
  packed.stored =
      room.first(compressor_.compress(codec, pages, room, [] { kernel::let_others_run(); }));
  packed.ns = monotonic_ns() - begin;
  return packed;
}

void PageCompression::look(std::span<const iovec> pages) {
  size_t bytes = 0;
  for (const iovec& part : pages) bytes += part.iov_len;
  if (bytes < kSampleBytes) return;
  SampleFigures figures;
  {
    const std::lock_guard lock(mutex_);
    figures.codec = choice_.sample();
  }
  if (figures.codec == stream::Codec::kNone) return;
  sample_.resize(2 * kSampleBytes);
  const std::span<std::byte> sample = std::span(sample_).first(kSampleBytes);
  // Elsewhere in each: what begins a block is often of one kind.
  size_t skip = looks_++ * 5 % (bytes / kSampleBytes) * kSampleBytes;
  for (const iovec& part : pages) {
    const size_t from = std::min(skip, part.iov_len);
    skip -= from;
    const size_t some = std::min(part.iov_len - from, kSampleBytes - figures.bytes);
    std::memcpy(sample.data() + figures.bytes, static_cast<std::byte*>(part.iov_base) + from, some);
    figures.bytes += some;
  }
  const int64_t begin = monotonic_ns();
  const size_t compressed =
      compressor_.compress(figures.codec, sample, std::span(sample_).last(kSampleBytes), [] {});
  figures.ns = monotonic_ns() - begin;
  figures.compressed_bytes = compressed == 0 ? figures.bytes : compressed;
  const std::lock_guard lock(mutex_);
  choice_.sampled(figures);
}

absl::Status PageCompression::write(stream::Writer& writer, uint64_t space,
                                    std::span<const stream::PageRun> runs,
                                    std::span<const iovec> data, const Packed& packed) {
  if (packed.stored.empty()) return writer.pages(space, runs, data);
  return writer.compressed_pages(space, runs, packed.codec, packed.stored);
}

void PageCompression::sent(const BatchFigures& batch) {
  bytes_ += batch.bytes;
  wire_bytes_ += batch.wire_bytes;
  if (batch.wire_bytes < batch.bytes) used_.at(static_cast<size_t>(batch.codec)) = true;
  const std::lock_guard lock(mutex_);
  choice_.sent(batch);
}

std::string PageCompression::used() const {
  std::string text;
  for (const stream::Codec codec : {stream::Codec::kLz4, stream::Codec::kZstd}) {
    if (!used_.at(static_cast<size_t>(codec))) continue;
    if (!text.empty()) text += '+';
    text += stream::codec_name(codec);
  }
  return text.empty() ? "none" : text;
}

}  // namespace godwit::pages
