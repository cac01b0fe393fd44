#include "pages/image_pages.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <string>

#include "stream/codec.h"

namespace godwit::pages {
namespace {

constexpr uint64_t P = kPageSize;
constexpr uint64_t kSpace = 7;

// A file of memory with a stream in it, and what its pages should read as.
class ImagePagesTest : public ::testing::Test {
 protected:
  ImagePagesTest() : file_(::memfd_create("image", MFD_CLOEXEC)) {
    sink_ = stream::fd_sink(file_.get());
    writer_ = std::make_unique<stream::Writer>(*sink_);
    stream::Preamble preamble;
    preamble.version = stream::kVersionCompressed;
    EXPECT_TRUE(writer_->preamble(preamble).ok());
  }

  static std::vector<std::byte> content(uint64_t pages, int seed) {
    std::vector<std::byte> data(pages * P);
    for (size_t i = 0; i < data.size(); ++i)
      data[i] =
          static_cast<std::byte>(seed + static_cast<int>(i / P) * 3 + static_cast<int>(i % 7));
    return data;
  }
  void put(std::vector<stream::PageRun> runs, int seed,
           stream::Codec codec = stream::Codec::kNone) {
    uint64_t pages = 0;
    for (const stream::PageRun& run : runs) pages += run.count;
    std::vector<std::byte> data = content(pages, seed);
    if (codec == stream::Codec::kNone) {
      const iovec all{data.data(), data.size()};
      ASSERT_TRUE(writer_->pages(kSpace, runs, {&all, 1}).ok());
      return;
    }
    stream::Compressor compressor;
    std::vector<std::byte> stored(data.size());
    stored.resize(compressor.compress(codec, data, stored, [] {}));
    ASSERT_GT(stored.size(), 0U);
    ASSERT_TRUE(writer_->compressed_pages(kSpace, runs, codec, stored).ok());
  }
  std::unique_ptr<ImagePages> index() {
    EXPECT_TRUE(writer_->flush().ok());
    auto image = ImagePages::index(UniqueFd(::fcntl(file_.get(), F_DUPFD_CLOEXEC, 0)));
    EXPECT_TRUE(image.ok()) << image.status();
    return image.ok() ? *std::move(image) : nullptr;
  }
  static absl::StatusOr<std::vector<std::byte>> read(ImagePages& image, uint64_t page,
                                                     uint64_t count = 1) {
    std::vector<std::byte> data(count * P);
    const absl::Status status = image.read(kSpace, {page * P, (page + count) * P}, data);
    if (!status.ok()) return status;
    return data;
  }
  static std::vector<std::byte> part(const std::vector<std::byte>& all, uint64_t page,
                                     uint64_t count = 1) {
    return {all.begin() + static_cast<ptrdiff_t>(page * P),
            all.begin() + static_cast<ptrdiff_t>((page + count) * P)};
  }
  void flip(off_t at) const {
    char byte = 0;
    ASSERT_EQ(::pread(file_.get(), &byte, 1, at), 1);
    byte = static_cast<char>(byte ^ 1);
    ASSERT_EQ(::pwrite(file_.get(), &byte, 1, at), 1);
  }

  UniqueFd file_;
  std::unique_ptr<stream::Sink> sink_;
  std::unique_ptr<stream::Writer> writer_;
};

TEST_F(ImagePagesTest, TheLastEpochThatHasAPageWins) {
  ASSERT_TRUE(writer_->begin_epoch(false).ok());
  put({{10 * P, 8}, {100 * P, 2}}, 1);
  put({{200 * P, 4}}, 2, stream::Codec::kZstd);
  ASSERT_TRUE(writer_->end_epoch().ok());
  ASSERT_TRUE(writer_->begin_epoch(true).ok());
  put({{12 * P, 2}}, 3, stream::Codec::kLz4);
  const std::vector<stream::PageRun> gone{{16 * P, 1}, {100 * P, 1}};
  ASSERT_TRUE(writer_->pages_dropped(kSpace, gone).ok());
  ASSERT_TRUE(writer_->end_epoch().ok());
  const auto image = index();
  const auto first = content(10, 1), zstd = content(4, 2), lz4 = content(2, 3);
  EXPECT_EQ(image->pages(), 8U - 1 + 1 + 4);
  EXPECT_EQ(*read(*image, 10, 2), part(first, 0, 2));
  EXPECT_EQ(*read(*image, 12, 2), lz4);
  EXPECT_EQ(*read(*image, 14, 2), part(first, 4, 2));
  EXPECT_EQ(*read(*image, 17), part(first, 7));
  EXPECT_EQ(*read(*image, 101), part(first, 9));
  EXPECT_EQ(*read(*image, 200, 4), zstd);
  // Across frames, in one call.
  auto across = part(first, 0, 2);
  across.insert(across.end(), lz4.begin(), lz4.end());
  const auto behind = part(first, 4, 2);
  across.insert(across.end(), behind.begin(), behind.end());
  EXPECT_EQ(*read(*image, 10, 6), across);
  for (const uint64_t page : {16U, 100U, 18U, 9U, 5000U})
    EXPECT_EQ(read(*image, page).status().code(), absl::StatusCode::kDataLoss) << page;
  EXPECT_TRUE(image->has(kSpace));
  EXPECT_FALSE(image->has(kSpace + 1));
}

TEST_F(ImagePagesTest, ADamagedFrameLosesOnlyItsOwnPages) {
  ASSERT_TRUE(writer_->begin_epoch(true).ok());
  put({{10 * P, 8}}, 1);
  ASSERT_TRUE(writer_->flush().ok());
  const auto at = static_cast<off_t>(writer_->bytes_written());
  put({{20 * P, 8}}, 2);
  put({{30 * P, 8}}, 3, stream::Codec::kLz4);
  ASSERT_TRUE(writer_->end_epoch().ok());
  ASSERT_TRUE(writer_->flush().ok());
  flip(at + 5 * static_cast<off_t>(P));
  const auto image = index();
  EXPECT_EQ(*read(*image, 10, 8), content(8, 1));
  EXPECT_EQ(*read(*image, 30, 8), content(8, 3));
  // The one page that is damaged cannot be told from the others of its frame.
  for (uint64_t page = 20; page < 28; ++page)
    EXPECT_EQ(read(*image, page).status().code(), absl::StatusCode::kDataLoss);
  EXPECT_NE(read(*image, 20).status().message().find("offset"), std::string::npos);
}

// Many frames, so that it is not one that is in memory yet.
TEST_F(ImagePagesTest, WhatIsChangedAfterItWasCheckedIsSeen) {
  ASSERT_TRUE(writer_->begin_epoch(true).ok());
  for (uint64_t frame = 0; frame < 8; ++frame) put({{frame * 100 * P, 4}}, static_cast<int>(frame));
  ASSERT_TRUE(writer_->end_epoch().ok());
  const auto image = index();
  for (uint64_t frame = 0; frame < 8; ++frame)
    EXPECT_EQ(*read(*image, frame * 100, 4), content(4, static_cast<int>(frame)));
  EXPECT_EQ(*read(*image, 1, 2), part(content(4, 0), 1, 2));
  const off_t first = (32 + 32) + (32 + 16);  // preamble, epoch begin
  const off_t data = first + 32 + 16 + 16;
  flip(data + static_cast<off_t>(P));
  EXPECT_EQ(*read(*image, 0), part(content(4, 0), 0));
  EXPECT_EQ(read(*image, 1).status().code(), absl::StatusCode::kDataLoss);
}

TEST_F(ImagePagesTest, IsKnownByItsContents) {
  ASSERT_TRUE(writer_->begin_epoch(true).ok());
  put({{10 * P, 8}}, 1);
  ASSERT_TRUE(writer_->end_epoch().ok());
  const uint64_t identity = index()->identity();
  EXPECT_EQ(index()->identity(), identity);
  const UniqueFd before = std::move(file_);
  file_.reset(::memfd_create("image", MFD_CLOEXEC));
  sink_ = stream::fd_sink(file_.get());
  writer_ = std::make_unique<stream::Writer>(*sink_);
  stream::Preamble preamble;
  ASSERT_TRUE(writer_->preamble(preamble).ok());
  ASSERT_TRUE(writer_->begin_epoch(true).ok());
  put({{10 * P, 8}}, 2);
  ASSERT_TRUE(writer_->end_epoch().ok());
  EXPECT_NE(index()->identity(), identity);
}

TEST_F(ImagePagesTest, WithoutItsEndItIsNoFileToRestoreFrom) {
  ASSERT_TRUE(writer_->begin_epoch(true).ok());
  put({{10 * P, 8}}, 1);
  ASSERT_TRUE(writer_->flush().ok());
  const auto cut = ImagePages::index(UniqueFd(::fcntl(file_.get(), F_DUPFD_CLOEXEC, 0)));
  EXPECT_EQ(cut.status().code(), absl::StatusCode::kDataLoss);
}

}  // namespace
}  // namespace godwit::pages
