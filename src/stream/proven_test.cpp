// Version 3: what carries the stream proves its bytes, and no checksum is over pages' contents.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <vector>

#include "stream/frame.h"
#include "stream/memory_for_test.h"

namespace godwit::stream {
namespace {

using ::testing::HasSubstr;

constexpr size_t kPagesAt = kHeaderBytes + 32 + 3 + kHeaderBytes + 16;  // of the first page frame

Preamble preamble(uint32_t version) {
  Preamble preamble;
  preamble.version = version;
  preamble.workload = "web";
  return preamble;
}

std::string page_text(char of) { return std::string(2 * kPageSize, of); }

// Two frames of pages, as they are and compressed.
std::string stream(uint32_t version) {
  MemorySink sink(true);
  Writer writer(sink);
  EXPECT_TRUE(writer.preamble(preamble(version)).ok());
  EXPECT_TRUE(writer.begin_epoch(false).ok());
  const std::string first = page_text('1'), second = page_text('2');
  const iovec data{const_cast<char*>(first.data()), first.size()};
  EXPECT_TRUE(writer.pages(1, std::vector<PageRun>{{0x1000, 2}}, {&data, 1}).ok());
  Compressor compressor;
  std::vector<std::byte> stored(second.size());
  stored.resize(compressor.compress(Codec::kLz4, std::as_bytes(std::span(second)), stored, [] {}));
  EXPECT_TRUE(
      writer.compressed_pages(1, std::vector<PageRun>{{0x5000, 2}}, Codec::kLz4, stored).ok());
  EXPECT_TRUE(writer.end_epoch().ok());
  return sink.bytes;
}

std::string text_of(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

absl::Status read_all(const std::string& bytes, bool proves, std::string* pages = nullptr) {
  MemoryFeed feed(bytes, proves);
  Reader reader(feed);
  for (;;) {
    const auto frame = reader.next();
    if (!frame.ok()) return frame.status();
    const auto* got = std::get_if<Pages>(&*frame);
    if (got != nullptr && pages != nullptr) *pages += text_of(got->data);
  }
}

TEST(ProvenStreamTest, IsReadAsItWasWritten) {
  std::string pages;
  EXPECT_TRUE(absl::IsOutOfRange(read_all(stream(kVersionProven), true, &pages)));
  EXPECT_EQ(pages, page_text('1') + page_text('2'));
}

TEST(ProvenStreamTest, IsNeitherWrittenNorReadWhereNothingProvesIt) {
  MemorySink sink;
  Writer writer(sink);
  EXPECT_TRUE(absl::IsInvalidArgument(writer.preamble(preamble(kVersionProven))));
  EXPECT_TRUE(sink.bytes.empty());
  const absl::Status refused = read_all(stream(kVersionProven), false);
  EXPECT_TRUE(absl::IsDataLoss(refused));
  EXPECT_THAT(std::string(refused.message()), HasSubstr("prove"));
  const std::string bytes = stream(kVersionProven);
  MemoryFeed feed(bytes);
  EXPECT_TRUE(absl::IsDataLoss(Reader(feed).next().status()));
}

TEST(ProvenStreamTest, ChecksumsAreOverAllButContents) {
  const std::string good = stream(kVersionProven);
  // As a bug above TLS would have it: the runs are still guarded, what they hold is not.
  std::string bad = good;
  bad[kPagesAt + kHeaderBytes + kPagesFixedBytes + 1] ^= 0x10;  // the run's address
  EXPECT_TRUE(absl::IsDataLoss(read_all(bad, true)));
  bad = good;
  bad[kPagesAt + kHeaderBytes + kPagesFixedBytes + kRunBytes + 100] ^= 1;
  std::string pages;
  EXPECT_TRUE(absl::IsOutOfRange(read_all(bad, true, &pages)));
  EXPECT_NE(pages, page_text('1') + page_text('2'));
  // Elsewhere they are.
  bad = stream(kVersionCompressed);
  bad[kPagesAt + kHeaderBytes + kPagesFixedBytes + kRunBytes + 100] ^= 1;
  EXPECT_TRUE(absl::IsDataLoss(read_all(bad, true)));
}

TEST(ReaderTest, DataThatIsKeptStaysWhileMoreIsRead) {
  const std::string bytes = stream(kVersionCompressed);
  MemoryFeed feed(bytes);
  Reader reader(feed);
  std::vector<Pages> kept;
  for (auto frame = reader.next(); frame.ok(); frame = reader.next())
    if (auto* pages = std::get_if<Pages>(&*frame)) kept.push_back(std::move(*pages));
  ASSERT_EQ(kept.size(), 2u);
  EXPECT_NE(kept[0].data.data(), kept[1].data.data());
  EXPECT_EQ(text_of(kept[0].data), page_text('1'));
  EXPECT_EQ(text_of(kept[1].data), page_text('2'));
}

TEST(ReaderTest, DataThatNobodyKeepsTakesOneBuffer) {
  const std::string bytes = stream(kVersionCompressed);
  MemoryFeed feed(bytes);
  Reader reader(feed);
  std::vector<const std::byte*> at;
  for (;;) {
    const auto frame = reader.next();
    if (!frame.ok()) break;
    if (const auto* pages = std::get_if<Pages>(&*frame)) at.push_back(pages->data.data());
  }
  ASSERT_EQ(at.size(), 2u);
  EXPECT_EQ(at[0], at[1]);
}

}  // namespace
}  // namespace godwit::stream
