// Which codec the next batch of pages takes. Pure: figures in, a choice out.
//
// A batch is read and compressed by one thread while another writes the one before, so that in the
// long run a byte of memory takes
//
//   max(read + compress, ratio * link)        with a codec, or
//   max(read, link)                           without,
//
// where `link` is what a byte on the wire takes in write(), the limit of --bandwidth included. All
// of it is measured: reading and writing at every batch, ratio and compressor at what goes
// compressed, or at a small sample of one batch in some. What a codec promises by this has to be
// confirmed: it is tried for some batches, and stays if the batches really went faster than with
// the one before. So it does not matter why writing takes its time; where the destination's CPU is
// the reason, trying shows no gain. A trial without gain makes the next one of that codec wait,
// longer each time.
#ifndef GODWIT_PAGES_CODEC_CHOICE_H_
#define GODWIT_PAGES_CODEC_CHOICE_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <optional>
#include <string_view>

#include "stream/codec.h"

namespace godwit::pages {

enum class Compress { kNone, kAuto, kLz4, kZstd };

// "auto", "none", "lz4", "zstd"; "" is none.
std::optional<Compress> compress_named(std::string_view name);

// A batch that went out.
struct BatchFigures {
  stream::Codec codec = stream::Codec::kNone;  // that it was tried with
  uint64_t bytes = 0;                          // of pages
  uint64_t wire_bytes = 0;                     // not fewer: it did not shrink, and went plain
  int64_t read_ns = 0;
  int64_t compress_ns = 0;
  int64_t write_ns = 0;  // until the sink had taken it, the wait for the rate limit included
  int64_t cycle_ns = 0;  // since the batch before was out; 0: there was none
};

// Part of a batch, compressed only to see.
struct SampleFigures {
  stream::Codec codec = stream::Codec::kNone;
  uint64_t bytes = 0;
  uint64_t compressed_bytes = 0;
  int64_t ns = 0;
};

class CodecChoice {
 public:
  explicit CodecChoice(Compress compress = Compress::kNone);

  // For the next batch of many.
  stream::Codec next() const { return current_; }
  // For a batch of `bytes` that nothing is written beside: whoever waits for it waits for its
  // compressing as well.
  stream::Codec alone(uint64_t bytes) const;
  // Once for each batch that is read: what a part of it is to be compressed with; kNone: nothing.
  stream::Codec sample();

  void sampled(const SampleFigures& sample);
  void sent(const BatchFigures& batch);

 private:
  struct Record {
    std::deque<BatchFigures> recent;  // with a cycle, since it was taken last
    // Of what was compressed last; 0: not known.
    double ratio = 0;
    double compress_ns = 0;  // a byte
    uint32_t wait = 0;       // batches until it may be tried
    uint32_t next_wait = 0;
  };
  struct Trial {
    stream::Codec before = stream::Codec::kNone;
    double cycle_before = 0;
    uint32_t skip = 0;  // batches that do not count yet
    uint32_t counted = 0;
    int64_t counted_ns = 0;
    uint64_t all_bytes = 0;
    int64_t all_ns = 0;
  };
  Record& of(stream::Codec codec) { return records_.at(static_cast<size_t>(codec)); }
  const Record& of(stream::Codec codec) const { return records_.at(static_cast<size_t>(codec)); }
  // Nanoseconds a byte of memory, or on the wire, with the codec of now; 0: not known yet.
  double cycle() const;
  double link() const;
  bool link_idles() const;
  double promise(const Record& record) const;
  void learn(Record& record, double ratio, double compress_ns);
  void consider();
  void try_codec(stream::Codec codec);
  void judge(const BatchFigures& batch);
  void take(stream::Codec codec);

  Compress compress_;
  stream::Codec current_ = stream::Codec::kNone;
  std::array<Record, stream::kCodecs> records_;
  std::optional<Trial> trial_;
  double plain_cycle_ = 0;  // as measured last
  double busy_link_ = 0;    // link() when the link was the limit last
  uint32_t until_sample_ = 0;
  uint32_t sample_gap_ = 2;
  bool sample_zstd_ = false;
};

}  // namespace godwit::pages

#endif  // GODWIT_PAGES_CODEC_CHOICE_H_
