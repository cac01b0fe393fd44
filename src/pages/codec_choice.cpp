#include "pages/codec_choice.h"

#include <algorithm>
#include <vector>

namespace godwit::pages {
namespace {

using stream::Codec;

constexpr size_t kRecent = 16;
constexpr size_t kTelling = 5;  // fewer batches say nothing
constexpr uint64_t kTellingBytes = uint64_t{256} << 10;
// What does not save a tenth is not worth its CPU time.
constexpr double kWorstRatio = 0.9;
// A codec is tried if it promises to take four fifths of the time, and stays if it takes no more
// than nine tenths; going without, which leaves the CPU to others, need only be about as fast.
constexpr double kPromised = 0.8;
constexpr double kConfirmed = 0.9;
constexpr double kConfirmedPlain = 1.05;
// Sockets take some MiB before a write says how fast the link is.
constexpr uint32_t kSkip = 2;
constexpr uint32_t kSkipPlain = 6;
// Small batches go into the socket in bursts.
constexpr int64_t kTrialNs = 50'000'000;
constexpr uint32_t kLongestTrial = 32;
// So much slower than before, a trial ends at once.
constexpr double kHopeless = 3;
constexpr uint32_t kLeastWait = 32;
constexpr uint32_t kMostWait = 2048;
// Trying to go without costs little if it is rare by what is at stake.
constexpr double kPlainWait = 64;
constexpr double kIdleShare = 0.6;  // of the time in write(): below it the link waits for us
constexpr uint32_t kSampleGap = 16;
constexpr uint32_t kRareSampleGap = 64;  // where the last one did not shrink
// A batch that goes alone: what a call, a frame and a cold compressor cost beside the bytes.
constexpr double kAloneNs = 30'000;
constexpr uint64_t kHandful = 16 * uint64_t{4096};

double per(int64_t ns, uint64_t bytes) {
  return static_cast<double>(ns) / static_cast<double>(std::max<uint64_t>(1, bytes));
}

// Going without, every batch is as large as a socket's buffer, so that each says how fast it goes;
// the first ones, which that buffer swallows, and one that the machine has held up, say nothing.
template <typename F>
double median(const std::deque<BatchFigures>& recent, F value) {
  std::vector<double> values;
  for (size_t i = recent.size() - kTelling; i < recent.size(); ++i)
    values.push_back(value(recent[i]));
  std::nth_element(values.begin(), values.begin() + kTelling / 2, values.end());
  return values[kTelling / 2];
}

template <typename N, typename D>
double mean(const std::deque<BatchFigures>& recent, N ns, D bytes) {
  int64_t all_ns = 0;
  uint64_t all_bytes = 0;
  for (const BatchFigures& each : recent) {
    all_ns += ns(each);
    all_bytes += bytes(each);
  }
  return per(all_ns, all_bytes);
}

}  // namespace

std::optional<Compress> compress_named(std::string_view name) {
  if (name.empty() || name == "none") return Compress::kNone;
  if (name == "auto") return Compress::kAuto;
  if (name == "lz4") return Compress::kLz4;
  if (name == "zstd") return Compress::kZstd;
  return std::nullopt;
}

CodecChoice::CodecChoice(Compress compress) : compress_(compress) {
  if (compress == Compress::kLz4) current_ = Codec::kLz4;
  if (compress == Compress::kZstd) current_ = Codec::kZstd;
}

double CodecChoice::cycle() const {
  const auto& recent = of(current_).recent;
  if (recent.size() < kTelling) return 0;
  if (current_ == Codec::kNone)
    return median(recent, [](const BatchFigures& b) { return per(b.cycle_ns, b.bytes); });
  return mean(
      recent, [](const BatchFigures& b) { return b.cycle_ns; },
      [](const BatchFigures& b) { return b.bytes; });
}

double CodecChoice::link() const {
  const auto& recent = of(current_).recent;
  if (recent.size() < kTelling) return 0;
  if (current_ == Codec::kNone)
    return median(recent, [](const BatchFigures& b) { return per(b.write_ns, b.wire_bytes); });
  return mean(
      recent, [](const BatchFigures& b) { return b.write_ns; },
      [](const BatchFigures& b) { return b.wire_bytes; });
}

bool CodecChoice::link_idles() const {
  int64_t write = 0;
  int64_t all = 0;
  for (const BatchFigures& each : of(current_).recent) {
    write += each.write_ns;
    all += each.cycle_ns;
  }
  return static_cast<double>(write) < kIdleShare * static_cast<double>(all);
}

double CodecChoice::promise(const Record& record) const {
  const double read = mean(
      of(current_).recent, [](const BatchFigures& b) { return b.read_ns; },
      [](const BatchFigures& b) { return b.bytes; });
  return std::max(read + record.compress_ns, record.ratio * link());
}

Codec CodecChoice::alone(uint64_t bytes) const {
  if (current_ == Codec::kNone) return Codec::kNone;
  if (compress_ != Compress::kAuto) return bytes > kHandful ? current_ : Codec::kNone;
  const Record& record = of(current_);
  const double saved = (1 - record.ratio) * busy_link_;
  const double all = static_cast<double>(bytes);
  return saved * all > record.compress_ns * all + kAloneNs ? current_ : Codec::kNone;
}

Codec CodecChoice::sample() {
  if (compress_ != Compress::kAuto) return Codec::kNone;
  if (until_sample_ > 0) {
    --until_sample_;
    return Codec::kNone;
  }
  until_sample_ = sample_gap_;
  sample_gap_ = std::min(kSampleGap, sample_gap_ * 2);
  // The better one takes two to three times as long as the other.
  const bool time_for_zstd = of(Codec::kLz4).ratio > 0 && current_ != Codec::kZstd &&
                             cycle() > 2 * of(Codec::kLz4).compress_ns;
  sample_zstd_ = time_for_zstd && (!sample_zstd_ || current_ == Codec::kLz4);
  if (sample_zstd_) return Codec::kZstd;
  return current_ == Codec::kLz4 ? Codec::kNone : Codec::kLz4;
}

void CodecChoice::learn(Record& record, double ratio, double compress_ns) {
  constexpr double kNew = 0.3;
  const bool first = record.ratio == 0;
  record.ratio = first ? ratio : record.ratio + kNew * (ratio - record.ratio);
  record.compress_ns =
      first ? compress_ns : record.compress_ns + kNew * (compress_ns - record.compress_ns);
}

void CodecChoice::sampled(const SampleFigures& sample) {
  if (sample.codec == Codec::kNone || sample.bytes == 0) return;
  Record& record = of(sample.codec);
  const double ratio = std::min(
      1.0, static_cast<double>(sample.compressed_bytes) / static_cast<double>(sample.bytes));
  learn(record, ratio, per(sample.ns, sample.bytes));
  if (current_ == Codec::kNone && record.ratio > kWorstRatio) until_sample_ = kRareSampleGap;
}

void CodecChoice::sent(const BatchFigures& batch) {
  if (compress_ != Compress::kAuto || batch.bytes == 0) return;
  Record& record = of(batch.codec);
  if (batch.codec != Codec::kNone)
    learn(record, static_cast<double>(batch.wire_bytes) / static_cast<double>(batch.bytes),
          per(batch.compress_ns, batch.bytes));
  for (Record& each : records_) each.wait -= std::min<uint32_t>(1, each.wait);
  // What was read before the last change is on its way yet.
  if (batch.codec != current_ || batch.cycle_ns == 0 || batch.bytes < kTellingBytes) return;
  record.recent.push_back(batch);
  if (record.recent.size() > kRecent) record.recent.pop_front();
  if (current_ == Codec::kNone && cycle() > 0) plain_cycle_ = cycle();
  if (link() > 0 && !link_idles()) busy_link_ = link();
  if (trial_)
    judge(batch);
  else
    consider();
}

void CodecChoice::consider() {
  if (current_ != Codec::kNone && of(current_).ratio > kWorstRatio) {
    take(Codec::kNone);
    return;
  }
  const double now = cycle();
  if (now == 0) return;
  Codec best = current_;
  double least = now * kPromised;
  for (const Codec codec : {Codec::kLz4, Codec::kZstd}) {
    const Record& record = of(codec);
    if (codec == current_ || record.wait > 0 || record.ratio == 0 || record.ratio > kWorstRatio)
      continue;
    if (promise(record) > least) continue;
    least = promise(record);
    best = codec;
  }
  if (best != current_)
    try_codec(best);
  else if (current_ != Codec::kNone && of(Codec::kNone).wait == 0 && link_idles())
    try_codec(Codec::kNone);
}

void CodecChoice::try_codec(Codec codec) {
  trial_ = Trial{.before = current_,
                 .cycle_before = cycle(),
                 .skip = codec == Codec::kNone ? kSkipPlain : kSkip};
  Record& record = of(codec);
  record.next_wait = std::clamp(record.next_wait * 2, kLeastWait, kMostWait);
  take(codec);
}

void CodecChoice::judge(const BatchFigures& batch) {
  Trial& trial = *trial_;
  trial.all_bytes += batch.bytes;
  trial.all_ns += batch.cycle_ns;
  const bool hopeless = per(trial.all_ns, trial.all_bytes) > kHopeless * trial.cycle_before ||
                        (current_ != Codec::kNone && of(current_).ratio > kWorstRatio);
  if (trial.skip > 0 && !hopeless) {
    --trial.skip;
    of(current_).recent.clear();
    return;
  }
  ++trial.counted;
  trial.counted_ns += batch.cycle_ns;
  if (!hopeless) {
    if (trial.counted < kTelling) return;
    if (trial.counted < kLongestTrial && trial.counted_ns < kTrialNs) return;
  }
  const double bar = current_ == Codec::kNone ? kConfirmedPlain : kConfirmed;
  const Codec tried = current_;
  const bool stays = !hopeless && cycle() <= bar * trial.cycle_before;
  if (!stays) {
    take(trial.before);
    of(tried).wait = of(tried).next_wait;
  }
  if (current_ != Codec::kNone && plain_cycle_ > 0) {
    const double gain = plain_cycle_ / (stays ? cycle() : trial.cycle_before);
    const auto wait = static_cast<uint32_t>(std::min<double>(kMostWait, kPlainWait * gain));
    of(Codec::kNone).wait = std::max(of(Codec::kNone).wait, wait);
  }
  trial_.reset();
}

void CodecChoice::take(Codec codec) {
  current_ = codec;
  of(codec).recent.clear();
}

}  // namespace godwit::pages
