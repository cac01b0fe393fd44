#include <algorithm>
#include <array>
#include <cstring>
#include <new>

#include "base/status.h"
#include "stream/frame.h"
#include "stream/stream.h"

namespace godwit::stream {
namespace {

// A payload's memory grows as its bytes arrive: a header alone makes nothing large.
constexpr size_t kGrowBytes = size_t{1} << 20;
// A buffer that one large section has grown is given back.
constexpr size_t kKeepBytes = size_t{4} << 20;

}  // namespace

absl::Status Feed::readv(std::span<const iovec> to) {
  bool begun = false;
  for (const iovec& part : to) {
    if (part.iov_len == 0) continue;
    absl::Status status = read({static_cast<std::byte*>(part.iov_base), part.iov_len});
    if (absl::IsOutOfRange(status) && begun)
      return make_error(absl::StatusCode::kDataLoss, "{}", message_of(status));
    GW_RETURN_IF_ERROR(status);
    begun = true;
  }
  return absl::OkStatus();
}

absl::Status Feed::skip(uint64_t bytes) {
  std::vector<std::byte> unused(std::min<uint64_t>(bytes, 65536));
  for (; bytes > 0; bytes -= std::min<uint64_t>(bytes, unused.size()))
    GW_RETURN_IF_ERROR(read(std::span(unused).first(std::min<uint64_t>(bytes, unused.size()))));
  return absl::OkStatus();
}

uint64_t pages_data_offset(size_t runs) {
  return kHeaderBytes + kPagesFixedBytes + runs * kRunBytes;
}

void Reader::go_to(FramePlace place) {
  broken_ = absl::OkStatus();
  data_left_ = 0;
  unpacked_ = nullptr;
  bytes_ = place.offset;
  sequence_ = place.sequence;
  version_ = kVersionCompressed;
  seen_preamble_ = true;
  in_epoch_ = true;
}

std::byte* Reader::data_buffer() {
  // One that nobody has kept to the front.
  const auto found = std::find_if(data_.begin(), data_.end(),
                                  [](const auto& each) { return each.use_count() == 1; });
  if (found != data_.end()) {
    std::swap(*found, data_.front());
  } else {
    std::shared_ptr<std::byte[]> fresh(
        static_cast<std::byte*>(
            ::operator new[](kMaxPagesPerFrame* kPageSize, std::align_val_t{kPageSize})),
        [](std::byte* p) { ::operator delete[](p, std::align_val_t{kPageSize}); });
    data_.insert(data_.begin(), std::move(fresh));
  }
  return data_.front().get();
}

absl::Status Reader::damaged(std::string_view what) const {
  return make_error(absl::StatusCode::kDataLoss, "stream offset {}: {}", frame_at_, what);
}

absl::StatusOr<Frame> Reader::next() {
  GW_RETURN_IF_ERROR(broken_);
  if (unpacked_ != nullptr) data_left_ = 0;
  unpacked_ = nullptr;
  while (data_left_ > 0) {
    const iovec all = {data_buffer(), std::min(data_left_, kMaxPagesPerFrame * kPageSize)};
    GW_RETURN_IF_ERROR(read_data({&all, 1}));
  }
  absl::StatusOr<Frame> frame = read_frame();
  if (!frame.ok()) broken_ = frame.status();
  return frame;
}

absl::StatusOr<Frame> Reader::read_frame() {
  frame_at_ = bytes_;
  if (buffer_.capacity() > kKeepBytes) buffer_ = {};
  buffer_.clear();
  FrameHeader header;
  GW_RETURN_IF_ERROR(read_header(header));
  GW_RETURN_IF_ERROR(check_order(header));
  expected_ = header.checksum;
  if (header.type == FrameType::kPages) return read_pages(header);
  if (header.type == FrameType::kCompressedPages) return read_compressed_pages(header);

  GW_RETURN_IF_ERROR(read_payload(header.length));
  GW_RETURN_IF_ERROR(verify(frame_at_));
  Frame frame;
  std::string_view fault;
  if (!decode_payload(header.type, buffer_, frame, fault))
    return damaged(fault.empty() ? "payload is cut short" : fault);
  return check_epoch(std::move(frame));
}

absl::Status Reader::read_header(FrameHeader& header) {
  HeaderBytes bytes;
  absl::Status status = feed_.read(bytes);
  if (absl::IsOutOfRange(status)) {
    if (!seen_preamble_) return damaged("empty: not a state stream");
    if (in_epoch_) return damaged("the stream ends inside an epoch");
    return make_error(absl::StatusCode::kOutOfRange, "stream offset {}: end of stream", frame_at_);
  }
  if (!status.ok()) return annotate(status, fmt::format("stream offset {}", frame_at_));
  bytes_ += bytes.size();
  if (!decode_header(bytes, header)) {
    return damaged(seen_preamble_ ? "no frame header where one should be"
                                  : "not a state stream (wrong magic)");
  }
  const LengthBounds bounds = length_bounds(header.type);
  if (bounds.least > bounds.most)
    return damaged(fmt::format("unknown frame type {}", static_cast<unsigned>(header.type)));
  if (header.length < bounds.least || header.length > bounds.most)
    return damaged(fmt::format("frame of impossible length {}", header.length));
  checksum_.reset();
  checksum_.update(std::span(bytes).first<kHashedHeaderBytes>());
  if (header.type == FrameType::kEpochBegin) {
    epoch_frames_ = 0;
    running_checksum_ = 0;
  }
  ++epoch_frames_;
  if (header.type != FrameType::kEpochEnd)
    running_checksum_ = Checksum::chain(running_checksum_, bytes);
  return absl::OkStatus();
}

absl::Status Reader::check_order(const FrameHeader& header) const {
  if (header.sequence != sequence_) {
    return damaged(fmt::format("frame {} where frame {} should be", header.sequence, sequence_));
  }
  const bool is_preamble = header.type == FrameType::kPreamble;
  if (is_preamble == seen_preamble_)
    return damaged(is_preamble ? "second preamble" : "the stream does not begin with a preamble");
  const bool opens = is_preamble || header.type == FrameType::kEpochBegin;
  if (opens == in_epoch_)
    return damaged(opens ? "an epoch begins inside another" : "frame outside of an epoch");
  return absl::OkStatus();
}

absl::Status Reader::read_payload(uint64_t bytes, bool contents) {
  while (bytes > 0) {
    const size_t now = std::min<uint64_t>(bytes, kGrowBytes);
    const size_t at = buffer_.size();
    buffer_.resize(at + now);
    const auto to = std::span(buffer_).subspan(at, now);
    absl::Status status = feed_.read(to);
    if (absl::IsOutOfRange(status) || absl::IsDataLoss(status))
      return damaged("the stream ends inside a frame");
    if (!status.ok()) return annotate(status, fmt::format("stream offset {}", bytes_));
    bytes_ += now;
    if (!contents || version_ != kVersionProven) checksum_.update(to);
    bytes -= now;
  }
  return absl::OkStatus();
}

absl::Status Reader::verify(uint64_t at) const {
  if (checksum_.value() == expected_) return absl::OkStatus();
  return make_error(absl::StatusCode::kDataLoss, "stream offset {}: checksum differs", at);
}

absl::StatusOr<Frame> Reader::read_pages(const FrameHeader& header) {
  Pages pages;
  uint32_t runs = 0;
  uint32_t count = 0;
  GW_RETURN_IF_ERROR(read_payload(kPagesFixedBytes));
  if (!decode_pages_fixed(buffer_, pages.space, runs, count))
    return damaged("number of page runs out of bounds");
  if (count == 0 || count > kMaxPagesPerFrame) return damaged("number of pages out of bounds");
  if (header.length != kPagesFixedBytes + runs * kRunBytes + count * kPageSize)
    return damaged("payload and its inner lengths disagree");

  GW_RETURN_IF_ERROR(read_runs(kPagesFixedBytes, runs, count, pages));
  pages.place = {frame_at_, sequence_};
  ++sequence_;
  if (page_data_ == PageData::kSkipped) {
    GW_RETURN_IF_ERROR(skip_data(count * kPageSize));
    return pages;
  }
  data_left_ = count * kPageSize;
  if (page_data_ == PageData::kBuffered) {
    const iovec all = {data_buffer(), data_left_};
    pages.data = {data_.front().get(), count * kPageSize};
    pages.keep = data_.front();
    GW_RETURN_IF_ERROR(read_data({&all, 1}));
  }
  return pages;
}

absl::Status Reader::skip_data(uint64_t bytes) {
  absl::Status status = feed_.skip(bytes);
  if (absl::IsOutOfRange(status) || absl::IsDataLoss(status))
    return damaged("the stream ends inside a frame");
  if (!status.ok()) return annotate(status, fmt::format("stream offset {}", bytes_));
  bytes_ += bytes;
  return absl::OkStatus();
}

absl::Status Reader::read_runs(size_t fixed, uint32_t runs, uint32_t count, Pages& pages) {
  GW_RETURN_IF_ERROR(read_payload(runs * kRunBytes));
  Decoder from(std::span<const std::byte>(buffer_).subspan(fixed));
  std::string_view fault;
  if (!decode_runs(from, runs, pages.runs, fault)) return damaged(fault);
  uint64_t sum = 0;
  for (const PageRun& run : pages.runs) sum += run.count;
  if (sum != count) return damaged("page runs do not add up to the pages");
  return absl::OkStatus();
}

// The checksum is of what came; only what it is right for is decompressed.
absl::StatusOr<Frame> Reader::read_compressed_pages(const FrameHeader& header) {
  if (version_ < kVersionCompressed) return damaged("compressed pages in a stream of version 1");
  Pages pages;
  uint32_t runs = 0;
  uint32_t count = 0;
  uint32_t stored = 0;
  GW_RETURN_IF_ERROR(read_payload(kCompressedFixedBytes));
  const std::span<const std::byte> fixed(buffer_);
  if (!decode_pages_fixed(fixed, pages.space, runs, count))
    return damaged("number of page runs out of bounds");
  if (count == 0 || count > kMaxPagesPerFrame) return damaged("number of pages out of bounds");
  if (!decode_compressed_fixed(fixed.subspan(kPagesFixedBytes), count, pages.codec, stored))
    return damaged("compressed pages of an unknown codec, or of a length out of bounds");
  if (header.length != kCompressedFixedBytes + runs * kRunBytes + stored)
    return damaged("payload and its inner lengths disagree");
  GW_RETURN_IF_ERROR(read_runs(kCompressedFixedBytes, runs, count, pages));
  pages.place = {frame_at_, sequence_};
  if (page_data_ == PageData::kSkipped) {
    ++sequence_;
    GW_RETURN_IF_ERROR(skip_data(stored));
    return pages;
  }
  GW_RETURN_IF_ERROR(read_payload(stored, true));
  GW_RETURN_IF_ERROR(verify(frame_at_));
  pages.stored = std::span<const std::byte>(buffer_).last(stored);
  const std::span<std::byte> data(data_buffer(), count * kPageSize);
  if (!decompressor_.decompress(pages.codec, pages.stored, data))
    return damaged(fmt::format("{} of compressed pages is damaged", codec_name(pages.codec)));
  ++sequence_;
  if (page_data_ == PageData::kBuffered) {
    pages.data = data;
    pages.keep = data_.front();
  } else {
    data_left_ = data.size();
    unpacked_ = data.data();
  }
  return pages;
}

absl::Status Reader::read_data(std::span<const iovec> to) {
  GW_RETURN_IF_ERROR(broken_);
  size_t bytes = 0;
  for (const iovec& part : to) bytes += part.iov_len;
  if (bytes > data_left_)
    return make_error(absl::StatusCode::kInvalidArgument,
                      "stream reader: {} bytes of page data asked for, {} are left", bytes,
                      data_left_);
  if (bytes == 0) return absl::OkStatus();
  if (unpacked_ != nullptr) {
    for (const iovec& part : to) {
      std::memcpy(part.iov_base, unpacked_, part.iov_len);
      unpacked_ += part.iov_len;
    }
    data_left_ -= bytes;
    return absl::OkStatus();
  }
  absl::Status status = feed_.readv(to);
  if (absl::IsOutOfRange(status) || absl::IsDataLoss(status))
    status = damaged("the stream ends inside a frame");
  else if (!status.ok())
    status = annotate(status, fmt::format("stream offset {}", bytes_));
  if (status.ok()) {
    bytes_ += bytes;
    data_left_ -= bytes;
    if (version_ != kVersionProven)
      for (const iovec& part : to) checksum_.update(part.iov_base, part.iov_len);
    if (data_left_ == 0) status = verify(frame_at_);
  }
  broken_ = status;
  return status;
}

absl::StatusOr<Frame> Reader::check_epoch(Frame frame) {
  ++sequence_;
  if (const auto* preamble = std::get_if<Preamble>(&frame)) {
    if (preamble->version == kVersionProven && !feed_.proves_bytes())
      return damaged("version 3 over what does not prove its bytes");
    seen_preamble_ = true;
    version_ = preamble->version;
  }
  if (const auto* begin = std::get_if<EpochBegin>(&frame)) {
    if (begin->number != next_epoch_)
      return damaged(fmt::format("epoch {} where epoch {} should be", begin->number, next_epoch_));
    in_epoch_ = true;
  }
  if (const auto* state = std::get_if<StateEnd>(&frame); state && state->number != next_epoch_)
    return damaged("the end of the state of another epoch");
  if (const auto* hashes = std::get_if<HashesEnd>(&frame); hashes && hashes->number != next_epoch_)
    return damaged("the end of the hashes of another epoch");
  if (const auto* end = std::get_if<EpochEnd>(&frame)) {
    if (end->number != next_epoch_) return damaged("the end of another epoch");
    if (end->frames != epoch_frames_) return damaged("the epoch has lost frames");
    if (end->checksum != running_checksum_) return damaged("checksum of the epoch differs");
    in_epoch_ = false;
    ++next_epoch_;
  }
  return frame;
}

}  // namespace godwit::stream
