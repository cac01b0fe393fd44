#include "stream/frame.h"

#include <algorithm>

namespace godwit::stream {

HeaderBytes encode_header(const FrameHeader& header) {
  HeaderBytes bytes{};
  const auto put = [&](size_t at, const auto& value) {
    std::memcpy(bytes.data() + at, &value, sizeof value);
  };
  put(0, kFrameMagic);
  put(4, static_cast<uint16_t>(header.type));
  put(8, header.sequence);
  put(16, header.length);
  put(24, header.checksum);
  return bytes;
}

bool decode_header(std::span<const std::byte, kHeaderBytes> bytes, FrameHeader& header) {
  Decoder from(bytes);
  const auto magic = from.number<uint32_t>();
  header.type = static_cast<FrameType>(from.number<uint16_t>());
  const auto reserved = from.number<uint16_t>();
  header.sequence = from.number<uint64_t>();
  header.length = from.number<uint64_t>();
  header.checksum = from.number<uint64_t>();
  return magic == kFrameMagic && reserved == 0;
}

LengthBounds length_bounds(FrameType type) {
  switch (type) {
    case FrameType::kPreamble:
      return {32, kMaxPreambleBytes};
    case FrameType::kEpochBegin:
      return {16, 16};
    case FrameType::kSection:
      return {16 + 1, 16 + kMaxKindBytes + kMaxSectionBytes};
    case FrameType::kSectionRemoved:
      return {16 + 1, 16 + kMaxKindBytes};
    case FrameType::kPages:
      return {kPagesFixedBytes + kRunBytes + kPageSize,
              kPagesFixedBytes + kMaxRunsPerFrame * kRunBytes + kMaxPagesPerFrame * kPageSize};
    case FrameType::kCompressedPages:
      return {
          kCompressedFixedBytes + kRunBytes + 1,
          kCompressedFixedBytes + kMaxRunsPerFrame * kRunBytes + kMaxPagesPerFrame * kPageSize - 1};
    case FrameType::kPagesDropped:
    case FrameType::kPagesMissing:
      return {kPagesFixedBytes + kRunBytes, kPagesFixedBytes + kMaxRunsPerFrame * kRunBytes};
    case FrameType::kFileBlocks:
      return {16, 16 + kMaxFileStateBytes + kMaxFileDataBytes};
    case FrameType::kEpochEnd:
      return {24, 24};
    case FrameType::kStateEnd:
    case FrameType::kHashesEnd:
      return {8, 8};
    case FrameType::kPageHashes:
      return {
          kPagesFixedBytes + kRunBytes + sizeof(PageHash),
          kPagesFixedBytes + kMaxRunsPerFrame * kRunBytes + kMaxPagesPerFrame * sizeof(PageHash)};
    case FrameType::kInvalid:
      break;
  }
  return {};
}

std::string_view fault_of_kind(std::string_view kind) {
  if (kind.empty() || kind.size() > kMaxKindBytes) return "section kind of a wrong length";
  const bool plain =
      std::all_of(kind.begin(), kind.end(), [](char c) { return c > ' ' && c <= '~'; });
  return plain ? "" : "section kind is not plain text";
}

std::string_view fault_of_name(std::string_view name) {
  if (name.size() > kMaxNameBytes) return "name too long";
  const bool plain = std::none_of(name.begin(), name.end(),
                                  [](char c) { return (c >= 0 && c < ' ') || c == 0x7f; });
  return plain ? "" : "name has control characters";
}

std::string_view fault_of_run(const PageRun& run) {
  if (run.address % kPageSize != 0) return "page run is not aligned";
  if (run.count == 0) return "empty page run";
  if (run.address > UINT64_MAX - run.count * kPageSize) return "page run wraps around";
  return "";
}

bool decode_pages_fixed(std::span<const std::byte> payload, uint64_t& space, uint32_t& runs,
                        uint32_t& pages) {
  Decoder from(payload);
  space = from.number<uint64_t>();
  runs = from.number<uint32_t>();
  pages = from.number<uint32_t>();
  return from.ok() && runs >= 1 && runs <= kMaxRunsPerFrame;
}

bool decode_compressed_fixed(std::span<const std::byte> payload, uint32_t pages, Codec& codec,
                             uint32_t& stored) {
  Decoder from(payload);
  codec = static_cast<Codec>(from.number<uint32_t>());
  stored = from.number<uint32_t>();
  return from.ok() && (codec == Codec::kLz4 || codec == Codec::kZstd) && stored > 0 &&
         stored < pages * kPageSize;
}

bool decode_runs(Decoder& from, uint32_t count, std::vector<PageRun>& runs,
                 std::string_view& fault) {
  runs.reserve(count);
  for (uint32_t i = 0; i < count; ++i) {
    PageRun run;
    run.address = from.number<uint64_t>();
    run.count = from.number<uint32_t>();
    if (from.number<uint32_t>() != 0) fault = "reserved bytes of a page run are set";
    if (!from.ok()) fault = "page runs are cut short";
    if (fault.empty()) fault = fault_of_run(run);
    if (!fault.empty()) return false;
    runs.push_back(run);
  }
  return true;
}

namespace {

bool decode_preamble(Decoder& from, Preamble& to, std::string_view& fault) {
  to.version = from.number<uint32_t>();
  if (from.number<uint32_t>() != 0) fault = "reserved bytes of the preamble are set";
  to.page_size = from.number<uint64_t>();
  to.created_unix_ns = static_cast<int64_t>(from.number<uint64_t>());
  const auto workload_bytes = from.number<uint32_t>();
  const auto migration_bytes = from.number<uint32_t>();
  to.workload = from.text(workload_bytes);
  to.migration_id = from.text(migration_bytes);
  if (to.version < kVersion || to.version > kVersionProven)
    fault = "the stream has a version that this program cannot read: it reads 1 and 2";
  if (fault.empty() && to.page_size != kPageSize) fault = "the stream has another page size";
  if (fault.empty()) fault = fault_of_name(to.workload);
  if (fault.empty()) fault = fault_of_name(to.migration_id);
  return fault.empty();
}

bool decode_epoch_begin(Decoder& from, EpochBegin& to, std::string_view& fault) {
  to.number = from.number<uint64_t>();
  const auto flags = from.number<uint64_t>();
  if (flags > 1) fault = "unknown flags of an epoch";
  to.final = flags == 1;
  return fault.empty();
}

// Section and SectionRemoved: the latter without state.
bool decode_section(Decoder& from, SectionKey& key, std::string* state, std::string_view& fault) {
  key.id = from.number<uint64_t>();
  const auto kind_bytes = from.number<uint32_t>();
  const auto state_bytes = from.number<uint32_t>();
  key.kind = from.text(std::min<size_t>(kind_bytes, kMaxKindBytes + 1));
  fault = fault_of_kind(key.kind);
  if (!fault.empty()) return false;
  if (state_bytes > (state ? kMaxSectionBytes : 0)) fault = "section too long";
  if (fault.empty() && state) *state = from.text(state_bytes);
  return fault.empty();
}

// PagesDropped and PagesMissing.
template <typename Ranges>
bool decode_ranges(Decoder& from, Ranges& to, std::string_view& fault) {
  to.space = from.number<uint64_t>();
  const auto count = from.number<uint32_t>();
  if (from.number<uint32_t>() != 0) fault = "reserved bytes of page ranges are set";
  if (count == 0 || count > kMaxRunsPerFrame) fault = "number of page runs out of bounds";
  return fault.empty() && decode_runs(from, count, to.runs, fault);
}

bool decode_file_blocks(Decoder& from, FileBlocks& to, std::string_view& fault) {
  const auto state_bytes = from.number<uint64_t>();
  const auto data_bytes = from.number<uint64_t>();
  if (state_bytes > kMaxFileStateBytes || data_bytes > kMaxFileDataBytes) {
    fault = "file blocks too long";
    return false;
  }
  to.state = from.text(state_bytes);
  to.data = from.take(data_bytes);
  return true;
}

bool decode_page_hashes(Decoder& from, PageHashes& to, std::string_view& fault) {
  to.space = from.number<uint64_t>();
  const auto runs = from.number<uint32_t>();
  const auto pages = from.number<uint32_t>();
  if (runs == 0 || runs > kMaxRunsPerFrame) fault = "number of page runs out of bounds";
  if (pages == 0 || pages > kMaxPagesPerFrame) fault = "number of pages out of bounds";
  if (!fault.empty() || !decode_runs(from, runs, to.runs, fault)) return false;
  uint64_t sum = 0;
  for (const PageRun& run : to.runs) sum += run.count;
  if (sum != pages) {
    fault = "page runs do not add up to the pages";
    return false;
  }
  const auto hashes = from.take(pages * sizeof(PageHash));
  to.hashes.resize(hashes.size() / sizeof(PageHash));
  std::memcpy(to.hashes.data(), hashes.data(), hashes.size());
  return true;
}

template <typename T, typename F>
bool decode_as(F decode, Decoder& from, Frame& frame, std::string_view& fault) {
  return decode(from, frame.emplace<T>(), fault);
}

}  // namespace

bool decode_payload(FrameType type, std::span<const std::byte> payload, Frame& frame,
                    std::string_view& fault) {
  Decoder from(payload);
  bool good = false;
  switch (type) {
    case FrameType::kPreamble:
      good = decode_as<Preamble>(decode_preamble, from, frame, fault);
      break;
    case FrameType::kEpochBegin:
      good = decode_as<EpochBegin>(decode_epoch_begin, from, frame, fault);
      break;
    case FrameType::kSection: {
      Section& section = frame.emplace<Section>();
      good = decode_section(from, section.key, &section.state, fault);
      break;
    }
    case FrameType::kSectionRemoved:
      good = decode_section(from, frame.emplace<SectionRemoved>().key, nullptr, fault);
      break;
    case FrameType::kPagesDropped:
      good = decode_as<PagesDropped>(decode_ranges<PagesDropped>, from, frame, fault);
      break;
    case FrameType::kPagesMissing:
      good = decode_as<PagesMissing>(decode_ranges<PagesMissing>, from, frame, fault);
      break;
    case FrameType::kFileBlocks:
      good = decode_as<FileBlocks>(decode_file_blocks, from, frame, fault);
      break;
    case FrameType::kEpochEnd: {
      EpochEnd& end = frame.emplace<EpochEnd>();
      end.number = from.number<uint64_t>();
      end.frames = from.number<uint64_t>();
      end.checksum = from.number<uint64_t>();
      good = true;
      break;
    }
    case FrameType::kStateEnd:
      frame.emplace<StateEnd>().number = from.number<uint64_t>();
      good = true;
      break;
    case FrameType::kPageHashes:
      good = decode_as<PageHashes>(decode_page_hashes, from, frame, fault);
      break;
    case FrameType::kHashesEnd:
      frame.emplace<HashesEnd>().number = from.number<uint64_t>();
      good = true;
      break;
    case FrameType::kPages:
    case FrameType::kCompressedPages:
    case FrameType::kInvalid:
      break;
  }
  if (good && !from.done()) fault = "payload and its inner lengths disagree";
  return good && from.done();
}

}  // namespace godwit::stream
