#include <algorithm>
#include <array>

#include "base/status.h"
#include "stream/frame.h"
#include "stream/stream.h"

namespace godwit::stream {
namespace {

absl::Status refuse(std::string_view what) {
  return make_error(absl::StatusCode::kInvalidArgument, "stream writer: {}", what);
}

iovec part_of(std::string_view bytes) { return {const_cast<char*>(bytes.data()), bytes.size()}; }

void encode_runs(Encoder& to, std::span<const PageRun> runs) {
  for (const PageRun& run : runs) to.number(run.address).number(run.count).number(uint32_t{0});
}

// How many there are, if the runs are fit for one frame.
absl::StatusOr<uint64_t> pages_of(std::span<const PageRun> runs) {
  if (runs.empty() || runs.size() > kMaxRunsPerFrame) return refuse("wrong number of page runs");
  uint64_t count = 0;
  for (const PageRun& run : runs) {
    if (const auto fault = fault_of_run(run); !fault.empty()) return refuse(fault);
    count += run.count;
  }
  if (count > kMaxPagesPerFrame) return refuse("too many pages for one frame");
  return count;
}

}  // namespace

absl::Status Writer::frame(FrameType type, std::span<const std::byte> head,
                           std::span<const iovec> tail, bool contents) {
  GW_RETURN_IF_ERROR(broken_);
  FrameHeader header{.type = type, .sequence = sequence_, .length = head.size(), .checksum = 0};
  for (const iovec& part : tail) header.length += part.iov_len;

  HeaderBytes bytes = encode_header(header);
  checksum_.reset();
  checksum_.update(std::span(bytes).first<kHashedHeaderBytes>());
  checksum_.update(head);
  if (!contents || version_ != kVersionProven)
    for (const iovec& part : tail) checksum_.update(part.iov_base, part.iov_len);
  header.checksum = checksum_.value();
  bytes = encode_header(header);

  parts_.clear();
  parts_.push_back({bytes.data(), bytes.size()});
  parts_.push_back({const_cast<std::byte*>(head.data()), head.size()});
  parts_.insert(parts_.end(), tail.begin(), tail.end());
  broken_ = sink_.write(parts_);
  GW_RETURN_IF_ERROR(broken_);
  ++sequence_;
  ++epoch_frames_;
  running_checksum_ = Checksum::chain(running_checksum_, bytes);
  bytes_ += kHeaderBytes + header.length;
  return absl::OkStatus();
}

absl::Status Writer::need_epoch() const {
  GW_RETURN_IF_ERROR(broken_);
  if (in_epoch_) return absl::OkStatus();
  return make_error(absl::StatusCode::kFailedPrecondition, "stream writer: no epoch is open");
}

absl::Status Writer::flush() {
  GW_RETURN_IF_ERROR(broken_);
  broken_ = sink_.flush();
  return broken_;
}

absl::Status Writer::preamble(const Preamble& preamble) {
  if (seen_preamble_)
    return make_error(absl::StatusCode::kFailedPrecondition, "stream writer: second preamble");
  if (preamble.version < kVersion || preamble.version > kVersionProven ||
      preamble.page_size != kPageSize)
    return refuse("this program writes versions 1 to 3 with pages of 4096 bytes");
  if (preamble.version == kVersionProven && !sink_.proves_bytes())
    return refuse("version 3 over what does not prove its bytes");
  for (const std::string& name : {preamble.workload, preamble.migration_id}) {
    if (const auto fault = fault_of_name(name); !fault.empty()) return refuse(fault);
  }
  Encoder(head_)
      .number(preamble.version)
      .number(uint32_t{0})
      .number(preamble.page_size)
      .number(static_cast<uint64_t>(preamble.created_unix_ns))
      .number(static_cast<uint32_t>(preamble.workload.size()))
      .number(static_cast<uint32_t>(preamble.migration_id.size()))
      .text(preamble.workload)
      .text(preamble.migration_id);
  GW_RETURN_IF_ERROR(frame(FrameType::kPreamble, head_));
  seen_preamble_ = true;
  version_ = preamble.version;
  return flush();
}

absl::Status Writer::begin_epoch(bool final) {
  GW_RETURN_IF_ERROR(broken_);
  if (!seen_preamble_ || in_epoch_) {
    return make_error(absl::StatusCode::kFailedPrecondition,
                      "stream writer: an epoch begins after the preamble or an epoch's end");
  }
  epoch_frames_ = 0;
  running_checksum_ = 0;
  Encoder(head_).number(epoch_).number(uint64_t{final ? 1u : 0u});
  GW_RETURN_IF_ERROR(frame(FrameType::kEpochBegin, head_));
  in_epoch_ = true;
  return absl::OkStatus();
}

absl::Status Writer::section(const SectionKey& key, std::string_view state) {
  GW_RETURN_IF_ERROR(need_epoch());
  if (const auto fault = fault_of_kind(key.kind); !fault.empty()) return refuse(fault);
  if (state.size() > kMaxSectionBytes) return refuse("section too long");
  Encoder(head_)
      .number(key.id)
      .number(static_cast<uint32_t>(key.kind.size()))
      .number(static_cast<uint32_t>(state.size()))
      .text(key.kind);
  const iovec tail = part_of(state);
  return frame(FrameType::kSection, head_, {&tail, 1});
}

absl::Status Writer::section_removed(const SectionKey& key) {
  GW_RETURN_IF_ERROR(need_epoch());
  if (const auto fault = fault_of_kind(key.kind); !fault.empty()) return refuse(fault);
  Encoder(head_)
      .number(key.id)
      .number(static_cast<uint32_t>(key.kind.size()))
      .number(uint32_t{0})
      .text(key.kind);
  return frame(FrameType::kSectionRemoved, head_);
}

absl::Status Writer::pages(uint64_t space, std::span<const PageRun> runs,
                           std::span<const iovec> data) {
  GW_RETURN_IF_ERROR(need_epoch());
  if (runs.empty() && data.empty()) return absl::OkStatus();
  GW_ASSIGN_OR_RETURN(const uint64_t count, pages_of(runs));
  uint64_t bytes = 0;
  for (const iovec& part : data) bytes += part.iov_len;
  if (bytes != count * kPageSize) return refuse("data and runs differ in length");

  Encoder to(head_);
  to.number(space).number(static_cast<uint32_t>(runs.size())).number(static_cast<uint32_t>(count));
  encode_runs(to, runs);
  return frame(FrameType::kPages, head_, data, true);
}

absl::Status Writer::compressed_pages(uint64_t space, std::span<const PageRun> runs, Codec codec,
                                      std::span<const std::byte> stored) {
  GW_RETURN_IF_ERROR(need_epoch());
  if (version_ < kVersionCompressed) return refuse("compressed pages in a stream of version 1");
  if (codec != Codec::kLz4 && codec != Codec::kZstd) return refuse("no such codec");
  GW_ASSIGN_OR_RETURN(const uint64_t count, pages_of(runs));
  if (stored.empty() || stored.size() >= count * kPageSize)
    return refuse("compressed pages are not smaller than plain ones");
  Encoder to(head_);
  to.number(space)
      .number(static_cast<uint32_t>(runs.size()))
      .number(static_cast<uint32_t>(count))
      .number(static_cast<uint32_t>(codec))
      .number(static_cast<uint32_t>(stored.size()));
  encode_runs(to, runs);
  const iovec tail = {const_cast<std::byte*>(stored.data()), stored.size()};
  return frame(FrameType::kCompressedPages, head_, {&tail, 1}, true);
}

absl::Status Writer::pages_dropped(uint64_t space, std::span<const PageRun> runs) {
  return only_runs(FrameType::kPagesDropped, space, runs);
}

absl::Status Writer::pages_missing(uint64_t space, std::span<const PageRun> runs) {
  return only_runs(FrameType::kPagesMissing, space, runs);
}

absl::Status Writer::only_runs(FrameType type, uint64_t space, std::span<const PageRun> runs) {
  GW_RETURN_IF_ERROR(need_epoch());
  for (const PageRun& run : runs) {
    if (const auto fault = fault_of_run(run); !fault.empty()) return refuse(fault);
  }
  while (!runs.empty()) {
    const auto some = runs.first(std::min(runs.size(), kMaxRunsPerFrame));
    Encoder to(head_);
    to.number(space).number(static_cast<uint32_t>(some.size())).number(uint32_t{0});
    encode_runs(to, some);
    GW_RETURN_IF_ERROR(frame(type, head_));
    runs = runs.subspan(some.size());
  }
  return absl::OkStatus();
}

absl::Status Writer::file_blocks(std::string_view state, std::span<const std::byte> data) {
  GW_RETURN_IF_ERROR(need_epoch());
  if (state.size() > kMaxFileStateBytes || data.size() > kMaxFileDataBytes)
    return refuse("file blocks too long");
  Encoder(head_).number(uint64_t{state.size()}).number(uint64_t{data.size()});
  const std::array<iovec, 2> tail = {part_of(state),
                                     iovec{const_cast<std::byte*>(data.data()), data.size()}};
  return frame(FrameType::kFileBlocks, head_, tail);
}

absl::Status Writer::end_state() {
  GW_RETURN_IF_ERROR(need_epoch());
  Encoder(head_).number(epoch_);
  return frame(FrameType::kStateEnd, head_);
}

absl::Status Writer::page_hashes(uint64_t space, std::span<const PageRun> runs,
                                 std::span<const PageHash> hashes) {
  GW_RETURN_IF_ERROR(need_epoch());
  GW_ASSIGN_OR_RETURN(const uint64_t count, pages_of(runs));
  if (count != hashes.size()) return refuse("hashes and runs differ in length");
  Encoder to(head_);
  to.number(space).number(static_cast<uint32_t>(runs.size())).number(static_cast<uint32_t>(count));
  encode_runs(to, runs);
  const iovec tail = {const_cast<PageHash*>(hashes.data()), hashes.size_bytes()};
  return frame(FrameType::kPageHashes, head_, {&tail, 1});
}

absl::Status Writer::end_hashes() {
  GW_RETURN_IF_ERROR(need_epoch());
  Encoder(head_).number(epoch_);
  return frame(FrameType::kHashesEnd, head_);
}

absl::Status Writer::end_epoch() {
  GW_RETURN_IF_ERROR(need_epoch());
  Encoder(head_).number(epoch_).number(epoch_frames_ + 1).number(running_checksum_);
  GW_RETURN_IF_ERROR(frame(FrameType::kEpochEnd, head_));
  in_epoch_ = false;
  ++epoch_;
  return flush();
}

}  // namespace godwit::stream
