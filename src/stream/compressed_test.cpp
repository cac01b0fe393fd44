// Compressed page frames, and the codec that makes them.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "base/status.h"
#include "stream/codec.h"
#include "stream/frame.h"
#include "stream/memory_for_test.h"
#include "stream/stream.h"

namespace godwit::stream {
namespace {

using ::testing::HasSubstr;

std::vector<std::byte> noise(size_t bytes, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<std::byte> data(bytes);
  for (std::byte& one : data) one = static_cast<std::byte>(random());
  return data;
}

// Words of a small vocabulary: about 4 times smaller.
std::vector<std::byte> text(size_t bytes, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<std::byte> data;
  while (data.size() < bytes) {
    const std::string word = std::to_string(random() % 500) + " is said of it; ";
    for (const char c : word) data.push_back(static_cast<std::byte>(c));
  }
  data.resize(bytes);
  return data;
}

std::vector<std::byte> compressed(Codec codec, std::span<const std::byte> data, size_t room) {
  Compressor compressor;
  std::vector<std::byte> to(room);
  to.resize(compressor.compress(codec, data, to, [] {}));
  return to;
}

class CodecTest : public ::testing::TestWithParam<Codec> {};
INSTANTIATE_TEST_SUITE_P(All, CodecTest, ::testing::Values(Codec::kLz4, Codec::kZstd),
                         [](const auto& one) { return std::string(codec_name(one.param)); });

TEST_P(CodecTest, WhatIsCompressedComesBack) {
  Decompressor decompressor;
  for (const size_t bytes : {size_t{1}, kPageSize, kChunkBytes - 1, kChunkBytes, kChunkBytes + 1,
                             kMaxPagesPerFrame * kPageSize}) {
    for (const auto& data : {text(bytes, 1), noise(bytes, 2), std::vector<std::byte>(bytes)}) {
      const auto stored = compressed(GetParam(), data, 2 * bytes + 64);
      ASSERT_FALSE(stored.empty());
      std::vector<std::byte> back(bytes, std::byte{0xee});
      EXPECT_TRUE(decompressor.decompress(GetParam(), stored, back));
      EXPECT_EQ(back, data);
    }
  }
}

TEST_P(CodecTest, LetsOthersRunAfterEachChunk) {
  Compressor compressor;
  int calls = 0;
  std::vector<std::byte> to(size_t{4} << 20);
  ASSERT_GT(compressor.compress(GetParam(), text(kChunkBytes * 3 + 5, 1), to, [&] { ++calls; }), 0);
  EXPECT_EQ(calls, 4);
}

TEST_P(CodecTest, WhatDoesNotFitIsRefused) {
  const auto data = noise(2 * kChunkBytes, 1);
  EXPECT_TRUE(compressed(GetParam(), data, data.size() - 1).empty());
  EXPECT_TRUE(compressed(GetParam(), data, 0).empty());
  // A chunk of noise among others goes as it is, and the rest is compressed.
  auto mixed = text(3 * kChunkBytes, 1);
  std::copy_n(data.begin(), kChunkBytes, mixed.begin() + kChunkBytes);
  const auto stored = compressed(GetParam(), mixed, mixed.size());
  EXPECT_GT(stored.size(), kChunkBytes);
  EXPECT_LT(stored.size(), 2 * kChunkBytes);
  std::vector<std::byte> back(mixed.size());
  EXPECT_TRUE(Decompressor().decompress(GetParam(), stored, back));
  EXPECT_EQ(back, mixed);
}

TEST_P(CodecTest, AnotherSizeOrAnotherCodecIsDamage) {
  const auto data = text(kChunkBytes + 100, 1);
  const auto stored = compressed(GetParam(), data, data.size());
  Decompressor decompressor;
  for (const size_t other : {size_t{1}, kChunkBytes, data.size() - 1, data.size() + 1}) {
    std::vector<std::byte> back(other);
    EXPECT_FALSE(decompressor.decompress(GetParam(), stored, back)) << other;
  }
  std::vector<std::byte> back(data.size());
  EXPECT_FALSE(decompressor.decompress(Codec::kNone, stored, back));
  EXPECT_FALSE(decompressor.decompress(static_cast<Codec>(77), stored, back));
  EXPECT_FALSE(decompressor.decompress(GetParam() == Codec::kLz4 ? Codec::kZstd : Codec::kLz4,
                                       stored, back));
}

TEST_P(CodecTest, DamagedBytesAreSurvived) {
  const auto data = text(2 * kPageSize, 1);
  const auto stored = compressed(GetParam(), data, data.size());
  Decompressor decompressor;
  std::mt19937 random(3);
  for (int i = 0; i < 3000; ++i) {
    auto bad = stored;
    for (int n = 1 + static_cast<int>(random() % 3); n > 0; --n)
      bad[random() % bad.size()] = static_cast<std::byte>(random());
    if (i % 3 == 0) bad.resize(random() % bad.size());
    // Its own block, so that a sanitizer sees the byte behind it.
    std::vector<std::byte> back(data.size());
    const bool whole = decompressor.decompress(GetParam(), bad, back);
    EXPECT_FALSE(whole && bad.size() < stored.size());
  }
}

Preamble version_2() {
  Preamble preamble;
  preamble.version = kVersionCompressed;
  preamble.workload = "web";
  return preamble;
}

std::string stream_of(Codec codec, const std::vector<std::byte>& data) {
  MemorySink sink;
  Writer writer(sink);
  EXPECT_TRUE(writer.preamble(version_2()).ok());
  EXPECT_TRUE(writer.begin_epoch(true).ok());
  const std::vector<PageRun> runs = {{0x1000, 1},
                                     {0x7fff'0000'0000, uint32_t(data.size() / kPageSize - 1)}};
  EXPECT_TRUE(
      writer.compressed_pages(12, runs, codec, compressed(codec, data, data.size() - 1)).ok());
  EXPECT_TRUE(writer.end_epoch().ok());
  EXPECT_EQ(writer.bytes_written(), sink.bytes.size());
  return sink.bytes;
}

absl::Status read_all(std::string_view bytes, PageData how = PageData::kBuffered) {
  MemoryFeed feed(bytes);
  Reader reader(feed, how);
  absl::Status status;
  while (status.ok()) status = reader.next().status();
  return status;
}

// The frame at `at` gets a checksum that is right for what it says now.
void sign(std::string& bytes, size_t at) {
  uint64_t length = 0;
  std::memcpy(&length, bytes.data() + at + 16, sizeof length);
  Checksum checksum;
  checksum.update(bytes.data() + at, kHashedHeaderBytes);
  checksum.update(bytes.data() + at + kHeaderBytes, length);
  const uint64_t value = checksum.value();
  std::memcpy(bytes.data() + at + kHashedHeaderBytes, &value, sizeof value);
}

constexpr size_t kPreambleEnd = kHeaderBytes + 32 + 3;
constexpr size_t kPagesAt = kPreambleEnd + kHeaderBytes + 16;

TEST_P(CodecTest, CompressedPagesCrossAStream) {
  const auto data = text(300 * kPageSize, 5);
  const std::string bytes = stream_of(GetParam(), data);
  EXPECT_LT(bytes.size(), data.size() / 2);
  for (const PageData how : {PageData::kBuffered, PageData::kDeferred}) {
    MemoryFeed feed(bytes);
    Reader reader(feed, how);
    EXPECT_EQ(std::get<Preamble>(*reader.next()).version, kVersionCompressed);
    EXPECT_TRUE(std::holds_alternative<EpochBegin>(*reader.next()));
    const auto frame = reader.next();
    ASSERT_TRUE(frame.ok()) << frame.status();
    const auto& pages = std::get<Pages>(*frame);
    EXPECT_EQ(pages.space, 12u);
    EXPECT_EQ(pages.codec, GetParam());
    EXPECT_EQ(pages.runs, (std::vector<PageRun>{{0x1000, 1}, {0x7fff'0000'0000, 299}}));
    EXPECT_EQ(pages.stored.size() + kHeaderBytes + kCompressedFixedBytes + 2 * kRunBytes,
              reader.bytes_read() - kPagesAt);
    if (how == PageData::kBuffered) {
      EXPECT_TRUE(std::equal(pages.data.begin(), pages.data.end(), data.begin(), data.end()));
    } else {
      EXPECT_TRUE(pages.data.empty());
      ASSERT_EQ(reader.data_left(), data.size());
      std::vector<std::byte> back(data.size() - 10);
      const std::vector<iovec> parts = {{back.data(), 100}, {back.data() + 100, back.size() - 100}};
      ASSERT_TRUE(reader.read_data(parts).ok());
      EXPECT_TRUE(std::equal(back.begin(), back.end(), data.begin()));
    }
    EXPECT_TRUE(std::holds_alternative<EpochEnd>(*reader.next()));  // what was left is skipped
    EXPECT_TRUE(absl::IsOutOfRange(reader.next().status()));
  }
}

TEST_P(CodecTest, EveryTruncationOfAStreamIsToldWithItsOffset) {
  const std::string bytes = stream_of(GetParam(), text(2 * kPageSize, 5));
  for (size_t cut = kPreambleEnd + 1; cut < bytes.size(); ++cut) {
    const absl::Status status = read_all(bytes.substr(0, cut));
    EXPECT_TRUE(absl::IsDataLoss(status)) << cut << " " << status;
    EXPECT_THAT(std::string(message_of(status)), HasSubstr("stream offset "));
  }
}

TEST_P(CodecTest, EveryFlippedBitOfAStreamIsFound) {
  const std::string bytes = stream_of(GetParam(), text(2 * kPageSize, 5));
  for (size_t at = kPagesAt; at < bytes.size(); ++at) {
    std::string bad = bytes;
    bad[at] = static_cast<char>(bad[at] ^ 0x10);
    EXPECT_TRUE(absl::IsDataLoss(read_all(bad))) << at;
  }
}

// With a right checksum as well: what the codec and the bounds say.
TEST_P(CodecTest, DamageUnderARightChecksumIsToldWithItsOffset) {
  const std::string bytes = stream_of(GetParam(), text(2 * kPageSize, 5));
  std::mt19937 random(7);
  for (int i = 0; i < 2000; ++i) {
    std::string bad = bytes;
    uint64_t length = 0;
    std::memcpy(&length, bad.data() + kPagesAt + 16, sizeof length);
    bad[kPagesAt + kHeaderBytes + random() % length] = static_cast<char>(random());
    sign(bad, kPagesAt);
    const absl::Status status =
        read_all(bad, i % 2 == 0 ? PageData::kBuffered : PageData::kDeferred);
    EXPECT_TRUE(absl::IsDataLoss(status) || absl::IsOutOfRange(status)) << status;
    EXPECT_THAT(std::string(message_of(status)), HasSubstr("stream offset "));
  }
}

TEST_P(CodecTest, WhatIsWrongWithAFrameIsSaid) {
  const std::string bytes = stream_of(GetParam(), text(2 * kPageSize, 5));
  const auto with = [&](size_t at, uint32_t value) {
    std::string bad = bytes;
    std::memcpy(bad.data() + kPagesAt + kHeaderBytes + at, &value, sizeof value);
    sign(bad, kPagesAt);
    return std::string(message_of(read_all(bad)));
  };
  const std::string offset = "stream offset " + std::to_string(kPagesAt) + ": ";
  EXPECT_THAT(with(16, 0), HasSubstr(offset + "compressed pages of an unknown codec"));
  EXPECT_THAT(with(16, 3), HasSubstr(offset + "compressed pages of an unknown codec"));
  EXPECT_THAT(with(20, 0),
              HasSubstr(offset + "compressed pages of an unknown codec, or of a length"));
  EXPECT_THAT(with(20, 2 * kPageSize), HasSubstr("of a length out of bounds"));
  EXPECT_THAT(with(20, 5), HasSubstr(offset + "payload and its inner lengths disagree"));
  EXPECT_THAT(with(12, 1024), HasSubstr(offset + "page runs do not add up to the pages"));
  EXPECT_THAT(with(12, 1025), HasSubstr(offset + "number of pages out of bounds"));
  EXPECT_THAT(with(8, 0), HasSubstr(offset + "number of page runs out of bounds"));
  const size_t chunk = kCompressedFixedBytes + 2 * kRunBytes;
  for (const uint32_t length : {0u, 1u, 0xffff'ffffu})
    EXPECT_THAT(with(chunk, length), HasSubstr(offset + std::string(codec_name(GetParam())) +
                                               " of compressed pages is damaged"));
}

TEST(CompressedPages, NeedAStreamOfVersion2) {
  const auto data = text(2 * kPageSize, 5);
  const auto stored = compressed(Codec::kLz4, data, data.size());
  const std::vector<PageRun> runs = {{0x1000, 2}};
  MemorySink sink;
  Writer writer(sink);
  ASSERT_TRUE(writer.preamble({}).ok());
  ASSERT_TRUE(writer.begin_epoch(true).ok());
  EXPECT_TRUE(absl::IsInvalidArgument(writer.compressed_pages(1, runs, Codec::kLz4, stored)));

  // A stream that claims version 1, and one of a version to come.
  std::string bytes = stream_of(Codec::kLz4, data);
  bytes[kHeaderBytes] = 1;
  sign(bytes, 0);
  EXPECT_THAT(std::string(message_of(read_all(bytes))),
              HasSubstr("compressed pages in a stream of version 1"));
  bytes[kHeaderBytes] = 4;
  sign(bytes, 0);
  EXPECT_THAT(std::string(message_of(read_all(bytes))),
              HasSubstr("stream offset 0: the stream has a version that this program cannot read"));
}

TEST(CompressedPages, TheWriterKeepsTheBounds) {
  const auto data = text(2 * kPageSize, 5);
  const auto stored = compressed(Codec::kLz4, data, data.size());
  MemorySink sink;
  Writer writer(sink);
  ASSERT_TRUE(writer.preamble(version_2()).ok());
  ASSERT_TRUE(writer.begin_epoch(true).ok());
  const size_t before = sink.bytes.size();
  const std::vector<PageRun> runs = {{0x1000, 2}};
  const auto refused = [&](std::span<const PageRun> of, Codec codec,
                           std::span<const std::byte> bytes) {
    return absl::IsInvalidArgument(writer.compressed_pages(1, of, codec, bytes));
  };
  EXPECT_TRUE(refused(runs, Codec::kNone, stored));
  EXPECT_TRUE(refused(runs, Codec::kLz4, {}));
  EXPECT_TRUE(refused(runs, Codec::kLz4, data));
  EXPECT_TRUE(refused({}, Codec::kLz4, stored));
  EXPECT_EQ(sink.bytes.size(), before);
  EXPECT_TRUE(writer.compressed_pages(1, runs, Codec::kLz4, stored).ok());
}

}  // namespace
}  // namespace godwit::stream
