#include "node/vm_image.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "stream/memory_for_test.h"

namespace godwit::node {
namespace {

using stream::kPageSize;

constexpr uint64_t kDisk = kFirstVmDisk;

std::span<const std::byte> bytes_of(const std::string& text) {
  return std::as_bytes(std::span(text));
}

// Memory of some bytes more than a page, and a disk with holes.
class VmImageTest : public testing::TestWithParam<std::string> {
 protected:
  std::string make() {
    stream::MemorySink sink;
    stream::Writer writer(sink);
    pages::PageCompression compression;
    compression.set(*pages::compress_named(GetParam()));
    stream::Preamble preamble;
    preamble.version = stream::kVersionCompressed;
    preamble.workload = "web";
    EXPECT_TRUE(writer.preamble(preamble).ok());
    EXPECT_TRUE(writer.begin_epoch(false).ok());
    VmImage image;
    image.set_name("web");
    EXPECT_TRUE(writer.section({kVmSection, 0}, image.SerializeAsString()).ok());
    SpaceWriter memory(writer, compression, kVmMemory);
    // In pieces that are no pages.
    for (size_t at = 0; at < memory_.size(); at += 1000)
      EXPECT_TRUE(memory.add(at, bytes_of(memory_.substr(at, 1000))).ok());
    EXPECT_TRUE(memory.finish().ok());
    EXPECT_EQ(memory.end(), memory_.size());
    EXPECT_TRUE(writer.end_epoch().ok());
    EXPECT_TRUE(writer.begin_epoch(true).ok());
    VmSpace space;
    space.set_bytes(memory_.size());
    EXPECT_TRUE(writer.section({kVmSpaceSection, kVmMemory}, space.SerializeAsString()).ok());
    SpaceWriter disk(writer, compression, kDisk);
    for (const auto& [at, text] : disk_) EXPECT_TRUE(disk.add(at, bytes_of(text)).ok());
    EXPECT_TRUE(disk.finish().ok());
    EXPECT_TRUE(writer.end_epoch().ok());
    return sink.bytes;
  }

  const std::string memory_ = std::string(3 * kPageSize + 17, 'm') +
                              std::string(2 * kPageSize, '\0') + std::string(100, 'n');
  // The last two are a page's end, and far away.
  const std::vector<std::pair<uint64_t, std::string>> disk_ = {
      {0, std::string(5000, 'a')},
      {uint64_t{7} * kPageSize, std::string(kPageSize, '\0')},
      {uint64_t{9} * kPageSize + 100, "b"},
      {uint64_t{1} << 40, std::string(10, 'c')}};
};

TEST_P(VmImageTest, ComesBackAsItWas) {
  const std::string file = make();
  stream::MemoryFeed feed(file);
  std::map<uint64_t, char> disk;
  std::string memory;
  VmImageReader reader;
  reader.on_image = [](const VmImage&) { return absl::OkStatus(); };
  reader.on_bytes = [&](uint64_t space, uint64_t offset, std::span<const std::byte> bytes) {
    for (size_t i = 0; i < bytes.size(); ++i) {
      const char each = static_cast<char>(bytes[i]);
      if (space == kVmMemory) {
        memory.resize(std::max<size_t>(memory.size(), offset + i + 1));
        memory[offset + i] = each;
      } else if (each != 0) {
        disk[offset + i] = each;
      }
    }
    return absl::OkStatus();
  };
  ASSERT_TRUE(reader.read(feed).ok());
  memory.resize(memory_.size());
  EXPECT_EQ(memory, memory_);
  std::map<uint64_t, char> expected;
  for (const auto& [at, text] : disk_)
    for (size_t i = 0; i < text.size(); ++i)
      if (text[i] != 0) expected[at + i] = text[i];
  EXPECT_EQ(disk, expected);
  EXPECT_LT(file.size(), size_t{64} << 10) << "holes and zeros are not in it";
}

TEST_P(VmImageTest, EveryCutIsDamage) {
  const std::string file = make();
  for (size_t cut = 0; cut < file.size(); cut += 13) {
    stream::MemoryFeed feed(std::string_view(file).substr(0, cut));
    VmImageReader reader;
    reader.on_image = [](const VmImage&) { return absl::OkStatus(); };
    reader.on_bytes = [](uint64_t, uint64_t, std::span<const std::byte>) {
      return absl::OkStatus();
    };
    const absl::Status read = reader.read(feed);
    ASSERT_TRUE(absl::IsDataLoss(read)) << cut << ": " << read;
    ASSERT_THAT(std::string(read.message()), testing::HasSubstr("offset")) << cut;
  }
}

INSTANTIATE_TEST_SUITE_P(Compressed, VmImageTest, testing::Values("none", "lz4", "zstd"));

TEST(VmImage, PagesBeforeTheMachineAreDamage) {
  stream::MemorySink sink;
  stream::Writer writer(sink);
  ASSERT_TRUE(writer.preamble({}).ok());
  ASSERT_TRUE(writer.begin_epoch(true).ok());
  pages::PageCompression compression;
  SpaceWriter memory(writer, compression, kVmMemory);
  const std::string text = "something";
  ASSERT_TRUE(memory.add(0, bytes_of(text)).ok());
  ASSERT_TRUE(memory.finish().ok());
  ASSERT_TRUE(writer.end_epoch().ok());
  stream::MemoryFeed feed(sink.bytes);
  VmImageReader reader;
  EXPECT_TRUE(absl::IsDataLoss(reader.read(feed)));
}

}  // namespace
}  // namespace godwit::node
