// The state stream: what a source captures and a replica applies, to a peer or to a file, byte for
// byte the same. docs/stream-format.md has the layout.
//
//   stream  = preamble epoch*
//   epoch   = epoch_begin frame* epoch_end
//   frame   = header(type, length, sequence, XXH3-64 of payload) payload
//
// Bytes that come in are hostile: lengths are bounded before anything is allocated, every frame is
// checked, an error says the offset in the stream and creates nothing.
#ifndef GODWIT_STREAM_STREAM_H_
#define GODWIT_STREAM_STREAM_H_

#include <sys/uio.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace godwit::stream {

inline constexpr uint32_t kVersion = 1;
inline constexpr size_t kPageSize = 4096;
inline constexpr size_t kMaxSectionBytes = size_t{64} << 20;
inline constexpr size_t kMaxPagesPerFrame = 1024;  // 4 MiB
inline constexpr size_t kMaxRunsPerFrame = 1024;

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
};

// Names one section: the resource's name in the registry and its object: a pid or tid, the id of
// an open file description, 0 for what there is one of.
struct SectionKey {
  std::string kind;
  uint64_t id = 0;
  auto operator<=>(const SectionKey&) const = default;
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
struct Pages {
  uint64_t space = 0;
  std::vector<PageRun> runs;
  std::span<const std::byte> data;  // valid until the next call of the reader
};

struct PagesDropped {
  uint64_t space = 0;
  std::vector<PageRun> runs;
};

// A change in the file layer; `op` and meaning are capsule/file_layer's (its protobuf message).
struct FileBlocks {
  std::string state;
  std::span<const std::byte> data;
};

struct EpochEnd {
  uint64_t number = 0;
  uint64_t frames = 0;    // of this epoch, begin and end counted
  uint64_t checksum = 0;  // XXH3-64 over the headers of the epoch's frames before this one
};

using Frame = std::variant<Preamble, EpochBegin, Section, SectionRemoved, Pages, PagesDropped,
                           FileBlocks, EpochEnd>;

// Where bytes go. Blocking; all of it or an error.
class Sink {
 public:
  virtual ~Sink() = default;
  virtual absl::Status write(std::span<const iovec> parts) = 0;
  virtual absl::Status flush() = 0;
};

// Where bytes come from. Fills `to` wholly; kOutOfRange at a clean end before the first byte.
class Feed {
 public:
  virtual ~Feed() = default;
  virtual absl::Status read(std::span<std::byte> to) = 0;
};

// Over a descriptor: a connected socket (flush corks nothing: MSG_MORE is not used) or a file.
std::unique_ptr<Sink> fd_sink(int fd);
std::unique_ptr<Feed> fd_feed(int fd);

// Not thread-safe; one writer a stream. Sections and page frames of an epoch come in any order
// that the registry's restore order allows.
class Writer {
 public:
  explicit Writer(Sink& sink) : sink_(sink) {}
  absl::Status preamble(const Preamble& preamble);
  absl::Status begin_epoch(bool final);
  absl::Status section(const SectionKey& key, std::string_view state);
  absl::Status section_removed(const SectionKey& key);
  // `data` in as many parts as the caller has (no copy is made); their sum is the runs' pages.
  absl::Status pages(uint64_t space, std::span<const PageRun> runs, std::span<const iovec> data);
  absl::Status pages_dropped(uint64_t space, std::span<const PageRun> runs);
  absl::Status file_blocks(std::string_view state, std::span<const std::byte> data);
  absl::Status end_epoch();
  absl::Status flush() { return sink_.flush(); }

  uint64_t bytes_written() const { return bytes_; }
  uint64_t epoch() const { return epoch_; }

 private:
  absl::Status frame(FrameType type, std::span<const iovec> payload);
  Sink& sink_;
  uint64_t bytes_ = 0;
  uint64_t epoch_ = 0;
  uint64_t sequence_ = 0;
  uint64_t epoch_frames_ = 0;
  uint64_t running_checksum_ = 0;
  bool in_epoch_ = false;
};

class Reader {
 public:
  explicit Reader(Feed& feed);
  ~Reader();
  // The next frame, checked: order (preamble first, epochs numbered, sequence), bounds, checksum.
  // kOutOfRange "end of stream" at a clean end between epochs; kDataLoss for anything wrong, with
  // the offset. Spans in the frame stay valid until the next call.
  absl::StatusOr<Frame> next();
  uint64_t bytes_read() const { return bytes_; }

 private:
  Feed& feed_;
  std::vector<std::byte> buffer_;
  uint64_t bytes_ = 0;
  uint64_t sequence_ = 0;
  uint64_t next_epoch_ = 0;
  uint64_t epoch_frames_ = 0;
  uint64_t running_checksum_ = 0;
  bool seen_preamble_ = false;
  bool in_epoch_ = false;
};

}  // namespace godwit::stream

#endif  // GODWIT_STREAM_STREAM_H_
