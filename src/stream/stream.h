// The state stream: what a source captures and a replica applies, to a peer or to a file, byte for
// byte the same. docs/stream-format.md has the layout.
//
//   stream  = preamble epoch*
//   epoch   = epoch_begin frame* epoch_end
//   frame   = header(magic, type, sequence, length, XXH3-64 of header and payload) payload
//
// Bytes that come in are hostile: lengths are bounded before anything is allocated, every frame is
// checked, an error says the offset in the stream and creates nothing.
#ifndef GODWIT_STREAM_STREAM_H_
#define GODWIT_STREAM_STREAM_H_

#include <sys/uio.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "stream/checksum.h"
#include "stream/codec.h"

namespace godwit::tls {
class Channel;
}

namespace godwit::stream {

inline constexpr uint32_t kVersion = 1;
// Compressed pages may be in it. A reader that knows none of them stops at the preamble.
inline constexpr uint32_t kVersionCompressed = 2;
// As 2, but pages' contents are in no checksum: only where what carries the stream proves all bytes
// itself, as TLS does. Nobody else reads it.
inline constexpr uint32_t kVersionProven = 3;
// Of a reader, not of a stream: it obeys MemoryMapState.program as well.
inline constexpr uint32_t kReadsPrograms = 4;
inline constexpr size_t kPageSize = 4096;
inline constexpr size_t kMaxSectionBytes = size_t{64} << 20;
inline constexpr size_t kMaxPagesPerFrame = 1024;  // 4 MiB
inline constexpr size_t kMaxRunsPerFrame = 1024;
inline constexpr size_t kMaxKindBytes = 64;
inline constexpr size_t kMaxNameBytes = 255;
inline constexpr size_t kMaxFileStateBytes = size_t{1} << 20;
inline constexpr size_t kMaxFileDataBytes = size_t{4} << 20;

enum class FrameType : uint16_t {
  kInvalid = 0,
  kPreamble = 1,
  kEpochBegin = 2,
  kSection = 3,         // a resource's state, new or changed
  kSectionRemoved = 4,  // the resource is gone
  kPages = 5,           // contents
  kPagesDropped = 6,    // ranges that are unpopulated now (MADV_DONTNEED) or zero
  kFileBlocks = 7,      // content of files of the writable layer
  kEpochEnd = 8,
  kStateEnd = 9,  // every section of the epoch has been written: only pages follow
  kPageHashes = 10,
  kHashesEnd = 11,
  kPagesMissing = 12,     // what they hold comes after the stream: post-copy
  kCompressedPages = 13,  // contents
};

// Names one section: the resource's name in the registry and its object: a pid or tid, the id of
// an open file description, 0 for what there is one of.
struct SectionKey {
  std::string kind;
  uint64_t id = 0;
  auto operator<=>(const SectionKey&) const = default;
  template <typename H>
  friend H AbslHashValue(H h, const SectionKey& key) {
    return H::combine(std::move(h), key.kind, key.id);
  }
};

struct Preamble {
  uint32_t version = kVersion;
  std::string workload;      // name of the service
  std::string migration_id;  // empty in a file
  uint64_t page_size = kPageSize;
  int64_t created_unix_ns = 0;
};

struct EpochBegin {
  uint64_t number = 0;  // from 0, without gaps
  bool final = false;   // taken frozen: activate may follow
};

struct Section {
  SectionKey key;
  std::string state;  // the resource's protobuf message
};

struct SectionRemoved {
  SectionKey key;
};

// `count` pages from `address` on.
struct PageRun {
  uint64_t address = 0;
  uint32_t count = 0;
  auto operator<=>(const PageRun&) const = default;
};

// Pages of the address space `space` (ImagePid of its thread group, or the id of a shared memory
// object with kSharedSpace set). `data` holds the runs' pages one after the other.
inline constexpr uint64_t kSharedSpace = uint64_t{1} << 63;

// Where a frame of a stream begins, for a reader that comes back to it.
struct FramePlace {
  uint64_t offset = 0;
  uint64_t sequence = 0;
};

struct Pages {
  uint64_t space = 0;
  std::vector<PageRun> runs;
  std::span<const std::byte> data;  // valid until the next call of the reader
  // Whoever holds this has `data` for longer. Null: it is nobody's.
  std::shared_ptr<const std::byte[]> keep;
  // How they came; with a codec, `data` are the pages, and `stored` what was read for them.
  Codec codec = Codec::kNone;
  std::span<const std::byte> stored;
  FramePlace place;
};

struct PagesDropped {
  uint64_t space = 0;
  std::vector<PageRun> runs;
};

// The replica runs before it has these: what is there now must not be seen any more. Until a later
// frame of the stream has them after all.
struct PagesMissing {
  uint64_t space = 0;
  std::vector<PageRun> runs;
};

// A change in the file layer; `op` and meaning are capsule/file_layer's (its protobuf message).
struct FileBlocks {
  std::string state;
  std::span<const std::byte> data;
};

// The replica may work on the state while pages are still looked for.
struct StateEnd {
  uint64_t number = 0;  // of the epoch
};

// To verify (process/verify.h), in a final epoch after its pages: what the source has at these
// pages, the XXH3-128 of each in its canonical form.
using PageHash = std::array<std::byte, 16>;
struct PageHashes {
  uint64_t space = 0;
  std::vector<PageRun> runs;
  std::vector<PageHash> hashes;  // of the runs' pages, one after the other
};

// A page that no hash was sent for reads as zero, or as the file below it.
struct HashesEnd {
  uint64_t number = 0;  // of the epoch
};

struct EpochEnd {
  uint64_t number = 0;
  uint64_t frames = 0;    // of this epoch, begin and end counted
  uint64_t checksum = 0;  // chained XXH3-64 of the headers of the epoch's frames before this one
};

using Frame = std::variant<Preamble, EpochBegin, Section, SectionRemoved, Pages, PagesDropped,
                           FileBlocks, StateEnd, PageHashes, HashesEnd, EpochEnd, PagesMissing>;

// Where bytes go. Blocking; all of it or an error. What was written may wait in a buffer until
// flush(), but never overtakes.
class Sink {
 public:
  virtual ~Sink() = default;
  virtual absl::Status write(std::span<const iovec> parts) = 0;
  virtual absl::Status flush() = 0;
  // A reader at the other end gets these bytes, or an error.
  virtual bool proves_bytes() const { return false; }
};

// Where bytes come from. Fills `to` wholly; kOutOfRange at a clean end before the first byte,
// kDataLoss at an end after it.
class Feed {
 public:
  virtual ~Feed() = default;
  virtual absl::Status read(std::span<std::byte> to) = 0;
  // The same into several places. By default one read() for each.
  virtual absl::Status readv(std::span<const iovec> to);
  // Leaves out the next bytes. By default they are read. Beyond an end that lies in them the next
  // read() may be the first to fail.
  virtual absl::Status skip(uint64_t bytes);
  // What is read is what the writer's sink was given, whoever else had it in hand.
  virtual bool proves_bytes() const { return false; }
};

// Over a descriptor, which stays the caller's: a connected socket (blocking or not) or a file.
// kDeadlineExceeded when not one byte moves for `patience` (sockets only; SO_RCVTIMEO and
// SO_SNDTIMEO are not needed and not honoured).
//
// The sink gathers small writes (below 16 KiB) until 64 KiB, a large write or flush(); no signal
// is raised when a socket's peer is gone (EPIPE, as a status). The feed reads ahead up to 64 KiB:
// what follows the stream on the same descriptor must be read through the same feed.
std::unique_ptr<Sink> fd_sink(int fd, absl::Duration patience = absl::Seconds(60));
std::unique_ptr<Feed> fd_feed(int fd, absl::Duration patience = absl::Seconds(60));
// The same over a channel. `look`, if given, is asked after each `every` that a write waits; its
// error is the write's.
std::unique_ptr<Sink> channel_sink(tls::Channel& channel,
                                   absl::Duration patience = absl::Seconds(60),
                                   absl::Duration every = absl::InfiniteDuration(),
                                   std::function<absl::Status()> look = nullptr);
std::unique_ptr<Feed> channel_feed(tls::Channel& channel,
                                   absl::Duration patience = absl::Seconds(60));

// Not thread-safe; one writer a stream. Sections and page frames of an epoch come in any order
// that the registry's restore order allows. Arguments out of the format's bounds give
// kInvalidArgument and write nothing; after an error of the sink every call gives that error.
// preamble() and end_epoch() flush; between them call flush() when the peer is to see the frames
// now.
class Writer {
 public:
  explicit Writer(Sink& sink) : sink_(sink) {}
  absl::Status preamble(const Preamble& preamble);
  absl::Status begin_epoch(bool final);
  absl::Status section(const SectionKey& key, std::string_view state);
  absl::Status section_removed(const SectionKey& key);
  // `data` in as many parts as the caller has (no copy is made); their sum is the runs' pages.
  // At most kMaxRunsPerFrame runs and kMaxPagesPerFrame pages; no runs: no frame.
  absl::Status pages(uint64_t space, std::span<const PageRun> runs, std::span<const iovec> data);
  // `stored`: what a Compressor has made of the runs' pages, smaller than these. Bounds as for
  // pages(). Only in a stream of kVersionCompressed.
  absl::Status compressed_pages(uint64_t space, std::span<const PageRun> runs, Codec codec,
                                std::span<const std::byte> stored);
  // Any number of runs: as many frames as they need.
  absl::Status pages_dropped(uint64_t space, std::span<const PageRun> runs);
  absl::Status pages_missing(uint64_t space, std::span<const PageRun> runs);
  absl::Status file_blocks(std::string_view state, std::span<const std::byte> data);
  absl::Status end_state();
  // Bounds as for pages().
  absl::Status page_hashes(uint64_t space, std::span<const PageRun> runs,
                           std::span<const PageHash> hashes);
  absl::Status end_hashes();
  absl::Status end_epoch();
  absl::Status flush();

  uint64_t bytes_written() const { return bytes_; }
  // Number of the epoch that is open, else of the next one.
  uint64_t epoch() const { return epoch_; }

 private:
  absl::Status only_runs(FrameType type, uint64_t space, std::span<const PageRun> runs);
  // Writes `head` (fixed part of the payload), then `tail`.
  absl::Status frame(FrameType type, std::span<const std::byte> head,
                     std::span<const iovec> tail = {}, bool contents = false);
  absl::Status need_epoch() const;
  Sink& sink_;
  absl::Status broken_;
  std::vector<iovec> parts_;
  std::vector<std::byte> head_;
  uint64_t bytes_ = 0;
  uint64_t epoch_ = 0;
  uint64_t sequence_ = 0;
  uint64_t epoch_frames_ = 0;
  uint64_t running_checksum_ = 0;
  uint32_t version_ = kVersion;
  bool seen_preamble_ = false;
  bool in_epoch_ = false;
  Checksum checksum_;
};

// From the beginning of a page frame that is not compressed to its first page.
uint64_t pages_data_offset(size_t runs);

// How a reader hands out the data of page frames.
enum class PageData {
  kBuffered,  // next() reads and checks it all; Pages::data is the reader's buffer, page-aligned
  kDeferred,  // Pages::data is empty; read_data() puts it where the caller wants it
  kSkipped,   // Pages::data is empty, nothing of it was read, nor is the frame's checksum known to
              // be right: whoever wants it goes to Pages::place
};

class Reader {
 public:
  explicit Reader(Feed& feed, PageData page_data = PageData::kBuffered)
      : feed_(feed), page_data_(page_data) {}
  // The next frame, checked: order (preamble first, epochs numbered, sequence), bounds, checksum.
  // kOutOfRange "end of stream" at a clean end between epochs; kDataLoss for anything wrong, with
  // the offset. Spans in the frame stay valid until the next call. After an error every call
  // gives that error.
  absl::StatusOr<Frame> next();

  // With kDeferred, after next() gave Pages: the frame's data in order, straight into `to`, in as
  // many calls as wanted; together data_left() bytes. Runs have been checked for bounds, but not
  // yet against the checksum: the call that takes the last byte does (kDataLoss: what was read is
  // not to be used). next() reads and checks what was left. Of compressed pages all is read and
  // checked before.
  absl::Status read_data(std::span<const iovec> to);
  size_t data_left() const { return data_left_; }

  uint64_t bytes_read() const { return bytes_; }

  // The next frame is the page frame of that place, whose bytes the feed gives next: all checks of
  // one frame. What came before, an error too, is forgotten.
  void go_to(FramePlace place);

 private:
  absl::StatusOr<Frame> read_frame();
  absl::Status read_header(struct FrameHeader& header);
  absl::Status check_order(const struct FrameHeader& header) const;
  absl::StatusOr<Frame> read_pages(const struct FrameHeader& header);
  absl::StatusOr<Frame> read_compressed_pages(const struct FrameHeader& header);
  // Both: the runs behind the fixed part of `fixed` bytes.
  absl::Status read_runs(size_t fixed, uint32_t runs, uint32_t count, Pages& pages);
  absl::StatusOr<Frame> check_epoch(Frame frame);
  // Payload bytes into buffer_ behind what is there, hashed unless they are `contents` that need no
  // checksum.
  absl::Status read_payload(uint64_t bytes, bool contents = false);
  absl::Status verify(uint64_t at) const;
  absl::Status skip_data(uint64_t bytes);
  std::byte* data_buffer();
  absl::Status damaged(std::string_view what) const;

  Feed& feed_;
  const PageData page_data_;
  absl::Status broken_;
  std::vector<std::byte> buffer_;  // payload without page data
  // Page data, kMaxPagesPerFrame pages each; more than one where frames are kept. The first is the
  // current frame's.
  std::vector<std::shared_ptr<std::byte[]>> data_;
  size_t data_left_ = 0;
  const std::byte* unpacked_ = nullptr;  // they are the next bytes of data_, which is complete
  Decompressor decompressor_;
  uint64_t bytes_ = 0;
  uint64_t frame_at_ = 0;  // offset of the current frame
  uint64_t expected_ = 0;  // checksum in its header
  uint64_t sequence_ = 0;
  uint64_t next_epoch_ = 0;
  uint64_t epoch_frames_ = 0;
  uint64_t running_checksum_ = 0;
  uint32_t version_ = 0;
  bool seen_preamble_ = false;
  bool in_epoch_ = false;
  Checksum checksum_;
};

}  // namespace godwit::stream

#endif  // GODWIT_STREAM_STREAM_H_
