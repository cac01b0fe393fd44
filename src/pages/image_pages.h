// The pages of processes that a checkpoint file holds, for a service that runs before they are
// read. The file is gone through once, by its frames' headers; what a later epoch has takes the
// place of what an earlier one had.
//
//   space 17:  [0x1000, 0x5000) -> frame 3, its pages 10..13
//              [0x5000, 0x6000) -> frame 9, its page 0        from a later epoch
//
// A frame's checksum is over all of it. So a frame is read and checked as a whole where the first
// of its pages is wanted; of one that is not compressed the hash of each page is kept then, and
// single pages are read by it.
#ifndef GODWIT_PAGES_IMAGE_PAGES_H_
#define GODWIT_PAGES_IMAGE_PAGES_H_

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/unique_fd.h"
#include "pages/page_source.h"
#include "stream/stream.h"

namespace godwit::pages {

class ImagePages final : public PageSource {
 public:
  // `file` is read at offsets of its own only. Nothing is known of it before see() is told.
  explicit ImagePages(UniqueFd file);
  ~ImagePages() override;
  // All of a file.
  static absl::StatusOr<std::unique_ptr<ImagePages>> index(UniqueFd file);

  // Each frame in its order, from a reader with PageData::kSkipped.
  void see(const stream::Frame& frame);
  // Checked, until the next call of anything here: the data of a frame that was seen.
  absl::StatusOr<std::span<const std::byte>> contents(const stream::Pages& frame);

  // By the checksums of all its epochs: another file has another one.
  uint64_t identity() const { return identity_; }
  uint64_t pages() const;
  PageSet pages_of(uint64_t space) const;

  bool has(uint64_t space) const override { return spaces_.contains(space); }
  absl::Status read(uint64_t space, PageRange range, std::span<std::byte> to) override;

 private:
  struct Frame {
    stream::FramePlace place;
    uint32_t pages = 0;
    uint64_t data_at = 0;  // offset in the file; compressed: 0
    std::vector<uint64_t> hashes;
    absl::Status damaged;  // once it was found to be
  };
  struct Piece {
    uint64_t end;
    size_t frame;    // of frames_
    uint32_t first;  // of the frame's pages
  };
  using Pieces = std::map<uint64_t, Piece>;
  class Loaded;
  static void cut(Pieces& pieces, uint64_t at);
  static void remove(Pieces& pieces, PageRange range);
  absl::StatusOr<std::span<const std::byte>> load(size_t frame);
  absl::Status read_piece(size_t frame, uint32_t first, std::span<std::byte> to);

  UniqueFd file_;
  uint64_t identity_ = 0;
  std::vector<Frame> frames_;
  std::map<uint64_t, Pieces> spaces_;
  // What is pushed and what is waited for are often in different frames.
  std::array<std::unique_ptr<Loaded>, 4> loaded_;
  size_t oldest_ = 0;
};

}  // namespace godwit::pages

#endif  // GODWIT_PAGES_IMAGE_PAGES_H_
