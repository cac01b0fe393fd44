#include "pages/image_pages.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "base/status.h"

namespace godwit::pages {
namespace {

absl::Status read_at(int file, uint64_t offset, std::span<std::byte> to) {
  while (!to.empty()) {
    const ssize_t n = ::pread(file, to.data(), to.size(), static_cast<off_t>(offset));
    if (n < 0 && errno == EINTR) continue;
    // EIO too: this part of the disk, others may be well.
    if (n < 0)
      return make_error(absl::StatusCode::kDataLoss, "stream offset {}: {}", offset,
                        std::strerror(errno));
    if (n == 0)
      return make_error(absl::StatusCode::kDataLoss, "stream offset {}: the file ends", offset);
    offset += static_cast<size_t>(n);
    to = to.subspan(static_cast<size_t>(n));
  }
  return absl::OkStatus();
}

// What stands in a file from an offset on.
class FileFeed final : public stream::Feed {
 public:
  explicit FileFeed(int file) : file_(file) {}
  void go_to(uint64_t offset) { at_ = offset; }
  absl::Status read(std::span<std::byte> to) override {
    GW_RETURN_IF_ERROR(read_at(file_, at_, to));
    at_ += to.size();
    return absl::OkStatus();
  }

 private:
  int file_;
  uint64_t at_ = 0;
};

}  // namespace

// One frame, whole and checked.
class ImagePages::Loaded {
 public:
  explicit Loaded(int file) : feed_(file), reader_(feed_) {}
  absl::Status load(size_t frame, stream::FramePlace place, uint32_t pages) {
    frame_.reset();
    feed_.go_to(place.offset);
    reader_.go_to(place);
    GW_ASSIGN_OR_RETURN(const stream::Frame read, reader_.next());
    const auto* found = std::get_if<stream::Pages>(&read);
    if (found == nullptr || found->data.size() != pages * kPageSize)
      return make_error(absl::StatusCode::kDataLoss, "stream offset {}: the file was changed",
                        place.offset);
    data_ = found->data;
    frame_ = frame;
    return absl::OkStatus();
  }
  bool is(size_t frame) const { return frame_ == frame; }
  std::span<const std::byte> data() const { return data_; }

 private:
  FileFeed feed_;
  stream::Reader reader_;
  std::optional<size_t> frame_;
  std::span<const std::byte> data_;
};

ImagePages::ImagePages(UniqueFd file) : file_(std::move(file)) {}
ImagePages::~ImagePages() = default;

absl::StatusOr<std::unique_ptr<ImagePages>> ImagePages::index(UniqueFd file) {
  auto image = std::make_unique<ImagePages>(std::move(file));
  if (::lseek(image->file_.get(), 0, SEEK_SET) != 0) return errno_status(errno, "lseek(image)");
  const auto feed = stream::fd_feed(image->file_.get());
  stream::Reader reader(*feed, stream::PageData::kSkipped);
  for (bool final = false;;) {
    GW_ASSIGN_OR_RETURN(const stream::Frame frame, reader.next());
    image->see(frame);
    if (const auto* begin = std::get_if<stream::EpochBegin>(&frame)) final = begin->final;
    if (final && std::holds_alternative<stream::EpochEnd>(frame)) return image;
  }
}

void ImagePages::cut(Pieces& pieces, uint64_t at) {
  auto next = pieces.upper_bound(at);
  if (next == pieces.begin()) return;
  const auto piece = std::prev(next);
  if (piece->first == at || piece->second.end <= at) return;
  const Piece tail{piece->second.end, piece->second.frame,
                   piece->second.first + static_cast<uint32_t>((at - piece->first) / kPageSize)};
  piece->second.end = at;
  pieces.emplace_hint(next, at, tail);
}

void ImagePages::remove(Pieces& pieces, PageRange range) {
  cut(pieces, range.start);
  cut(pieces, range.end);
  pieces.erase(pieces.lower_bound(range.start), pieces.lower_bound(range.end));
}

void ImagePages::see(const stream::Frame& frame) {
  if (const auto* end = std::get_if<stream::EpochEnd>(&frame))
    identity_ = stream::Checksum::chain(identity_, std::as_bytes(std::span(&end->checksum, 1)));
  if (const auto* dropped = std::get_if<stream::PagesDropped>(&frame)) {
    const auto space = spaces_.find(dropped->space);
    if (space == spaces_.end()) return;
    for (const stream::PageRun& run : dropped->runs)
      remove(space->second, {run.address, run.address + uint64_t{run.count} * kPageSize});
  }
  const auto* pages = std::get_if<stream::Pages>(&frame);
  if (pages == nullptr) return;
  Frame& added = frames_.emplace_back();
  added.place = pages->place;
  for (const stream::PageRun& run : pages->runs) added.pages += run.count;
  if (pages->codec == stream::Codec::kNone)
    added.data_at = pages->place.offset + stream::pages_data_offset(pages->runs.size());
  if ((pages->space & stream::kSharedSpace) != 0) return;
  Pieces& pieces = spaces_[pages->space];
  uint32_t first = 0;
  for (const stream::PageRun& run : pages->runs) {
    const PageRange range{run.address, run.address + uint64_t{run.count} * kPageSize};
    remove(pieces, range);
    pieces.emplace(range.start, Piece{range.end, frames_.size() - 1, first});
    first += run.count;
  }
}

uint64_t ImagePages::pages() const {
  uint64_t sum = 0;
  for (const auto& [id, pieces] : spaces_)
    for (const auto& [start, piece] : pieces) sum += (piece.end - start) / kPageSize;
  return sum;
}

PageSet ImagePages::pages_of(uint64_t space) const {
  PageSet set;
  const auto found = spaces_.find(space);
  if (found == spaces_.end()) return set;
  for (const auto& [start, piece] : found->second) set.add({start, piece.end});
  return set;
}

absl::StatusOr<std::span<const std::byte>> ImagePages::contents(const stream::Pages& frame) {
  const auto found = std::lower_bound(
      frames_.begin(), frames_.end(), frame.place.offset,
      [](const Frame& each, uint64_t offset) { return each.place.offset < offset; });
  if (found == frames_.end() || found->place.offset != frame.place.offset)
    return absl::InternalError("a frame that was not seen");
  return load(static_cast<size_t>(found - frames_.begin()));
}

absl::StatusOr<std::span<const std::byte>> ImagePages::load(size_t number) {
  for (const auto& each : loaded_)
    if (each && each->is(number)) return each->data();
  Frame& frame = frames_[number];
  auto& slot = loaded_.at(std::exchange(oldest_, (oldest_ + 1) % loaded_.size()));
  if (!slot) slot = std::make_unique<Loaded>(file_.get());
  GW_RETURN_IF_ERROR(frame.damaged);
  frame.damaged = slot->load(number, frame.place, frame.pages);
  GW_RETURN_IF_ERROR(frame.damaged);
  if (frame.data_at != 0 && frame.hashes.empty())
    for (uint32_t page = 0; page < frame.pages; ++page)
      frame.hashes.push_back(
          stream::Checksum::chain(0, slot->data().subspan(page * kPageSize, kPageSize)));
  return slot->data();
}

absl::Status ImagePages::read_piece(size_t number, uint32_t first, std::span<std::byte> to) {
  const Frame& frame = frames_[number];
  const bool here = std::any_of(loaded_.begin(), loaded_.end(),
                                [&](const auto& each) { return each && each->is(number); });
  if (here || frame.hashes.empty()) {
    GW_ASSIGN_OR_RETURN(const std::span<const std::byte> data, load(number));
    std::memcpy(to.data(), data.data() + first * kPageSize, to.size());
    return absl::OkStatus();
  }
  GW_RETURN_IF_ERROR(read_at(file_.get(), frame.data_at + first * kPageSize, to));
  for (size_t page = 0; page * kPageSize < to.size(); ++page)
    if (stream::Checksum::chain(0, to.subspan(page * kPageSize, kPageSize)) !=
        frame.hashes[first + page])
      return make_error(absl::StatusCode::kDataLoss,
                        "stream offset {}: page {} was changed since the frame was checked",
                        frame.place.offset, first + page);
  return absl::OkStatus();
}

absl::Status ImagePages::read(uint64_t space, PageRange range, std::span<std::byte> to) {
  static const Pieces kNone;
  const auto found = spaces_.find(space);
  const Pieces& pieces = found == spaces_.end() ? kNone : found->second;
  for (uint64_t at = range.start; at < range.end;) {
    auto piece = pieces.upper_bound(at);
    if (piece == pieces.begin() || (--piece)->second.end <= at)
      return make_error(absl::StatusCode::kDataLoss, "page {:x} of process {} is not in the file",
                        at, space);
    const uint64_t stop = std::min(range.end, piece->second.end);
    const auto first = piece->second.first + static_cast<uint32_t>((at - piece->first) / kPageSize);
    GW_RETURN_IF_ERROR(
        read_piece(piece->second.frame, first, to.subspan(at - range.start, stop - at)));
    at = stop;
  }
  return absl::OkStatus();
}

}  // namespace godwit::pages
