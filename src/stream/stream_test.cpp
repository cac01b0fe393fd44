#include "stream/stream.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/socket.h>

#include <cstring>
#include <random>
#include <thread>

#include "base/status.h"
#include "base/unique_fd.h"
#include "stream/frame.h"
#include "stream/memory_for_test.h"

namespace godwit::stream {
namespace {

using ::testing::HasSubstr;

std::string pattern(size_t bytes, uint32_t seed) {
  std::mt19937 random(seed);
  std::string text(bytes, '\0');
  for (char& c : text) c = static_cast<char>(random());
  return text;
}

iovec part(const std::string& text) { return {const_cast<char*>(text.data()), text.size()}; }

void write_sample(Writer& writer) {
  const std::string pages = pattern(3 * kPageSize, 1);
  ASSERT_TRUE(
      writer.preamble({.workload = "web", .migration_id = "m-1", .created_unix_ns = -5}).ok());
  ASSERT_TRUE(writer.begin_epoch(false).ok());
  ASSERT_TRUE(writer.section({"pipe", 7}, "state of a pipe").ok());
  ASSERT_TRUE(writer.section({"empty", 0}, "").ok());
  const std::vector<PageRun> runs = {{0x1000, 1}, {0x7fff'0000'0000, 2}};
  const std::vector<iovec> parts = {{const_cast<char*>(pages.data()), 100},
                                    {const_cast<char*>(pages.data()) + 100, 3 * kPageSize - 100}};
  ASSERT_TRUE(writer.pages(12, runs, parts).ok());
  ASSERT_TRUE(writer.end_epoch().ok());
  ASSERT_TRUE(writer.begin_epoch(true).ok());
  ASSERT_TRUE(writer.section_removed({"pipe", 7}).ok());
  ASSERT_TRUE(
      writer.pages_dropped(kSharedSpace | 3, std::vector<PageRun>{{0, 4'000'000'000u}}).ok());
  ASSERT_TRUE(writer.pages_missing(12, std::vector<PageRun>{{0x5000, 3}, {0x9000, 1}}).ok());
  ASSERT_TRUE(writer.file_blocks("op", std::as_bytes(std::span(pages).first(5))).ok());
  const std::vector<PageHash> hashes = {PageHash{std::byte{1}}, PageHash{std::byte{2}}};
  ASSERT_TRUE(writer.page_hashes(12, std::vector<PageRun>{{0x4000, 2}}, hashes).ok());
  ASSERT_TRUE(writer.end_hashes().ok());
  ASSERT_TRUE(writer.end_epoch().ok());
}

std::string sample() {
  MemorySink sink;
  Writer writer(sink);
  write_sample(writer);
  EXPECT_EQ(writer.bytes_written(), sink.bytes.size());
  return sink.bytes;
}

void expect_sample(Reader& reader) {
  const auto next = [&] {
    auto frame = reader.next();
    EXPECT_TRUE(frame.ok()) << frame.status();
    return frame.ok() ? *std::move(frame) : Frame{};
  };
  const auto preamble = std::get<Preamble>(next());
  EXPECT_EQ(preamble.workload, "web");
  EXPECT_EQ(preamble.migration_id, "m-1");
  EXPECT_EQ(preamble.created_unix_ns, -5);
  const auto begin = std::get<EpochBegin>(next());
  EXPECT_EQ(begin.number, 0u);
  EXPECT_FALSE(begin.final);
  const auto section = std::get<Section>(next());
  EXPECT_EQ(section.key, (SectionKey{"pipe", 7}));
  EXPECT_EQ(section.state, "state of a pipe");
  EXPECT_EQ(std::get<Section>(next()).state, "");
  const auto pages = std::get<Pages>(next());
  EXPECT_EQ(pages.space, 12u);
  EXPECT_EQ(pages.runs, (std::vector<PageRun>{{0x1000, 1}, {0x7fff'0000'0000, 2}}));
  ASSERT_EQ(pages.data.size(), 3 * kPageSize);
  EXPECT_EQ(std::memcmp(pages.data.data(), pattern(3 * kPageSize, 1).data(), 3 * kPageSize), 0);
  EXPECT_EQ(std::get<EpochEnd>(next()).frames, 5u);
  EXPECT_TRUE(std::get<EpochBegin>(next()).final);
  EXPECT_EQ(std::get<SectionRemoved>(next()).key, (SectionKey{"pipe", 7}));
  const auto dropped = std::get<PagesDropped>(next());
  EXPECT_EQ(dropped.space, kSharedSpace | 3);
  EXPECT_EQ(dropped.runs, (std::vector<PageRun>{{0, 4'000'000'000u}}));
  const auto missing = std::get<PagesMissing>(next());
  EXPECT_EQ(missing.space, 12u);
  EXPECT_EQ(missing.runs, (std::vector<PageRun>{{0x5000, 3}, {0x9000, 1}}));
  const auto blocks = std::get<FileBlocks>(next());
  EXPECT_EQ(blocks.state, "op");
  EXPECT_EQ(blocks.data.size(), 5u);
  const auto hashes = std::get<PageHashes>(next());
  EXPECT_EQ(hashes.space, 12u);
  EXPECT_EQ(hashes.runs, (std::vector<PageRun>{{0x4000, 2}}));
  EXPECT_EQ(hashes.hashes, (std::vector<PageHash>{PageHash{std::byte{1}}, PageHash{std::byte{2}}}));
  EXPECT_EQ(std::get<HashesEnd>(next()).number, 1u);
  EXPECT_EQ(std::get<EpochEnd>(next()).number, 1u);
  EXPECT_TRUE(absl::IsOutOfRange(reader.next().status()));
}

// Reads to the end; the last status.
absl::Status read_all(std::string_view bytes, PageData mode = PageData::kBuffered) {
  MemoryFeed feed(bytes);
  Reader reader(feed, mode);
  while (true) {
    auto frame = reader.next();
    if (!frame.ok()) {
      EXPECT_EQ(reader.next().status(), frame.status()) << "an error stays";
      return frame.status();
    }
  }
}

TEST(Stream, EveryFrameComesBackAsWritten) {
  const std::string bytes = sample();
  MemoryFeed feed(bytes);
  Reader reader(feed);
  expect_sample(reader);
  EXPECT_EQ(reader.bytes_read(), bytes.size());
}

TEST(Stream, HeaderHasTheDocumentedBytes) {
  const std::string bytes = sample();
  EXPECT_EQ(bytes.substr(0, 8), std::string("GWT1\x01\0\0\0", 8));
  // Second frame: epoch begin, sequence 1, length 16.
  const size_t at = kHeaderBytes + 32 + 3 + 3;
  EXPECT_EQ(bytes.substr(at, 24), std::string("GWT1\x02\0\0\0"
                                              "\x01\0\0\0\0\0\0\0"
                                              "\x10\0\0\0\0\0\0\0",
                                              24));
  const std::string hashed = bytes.substr(at, 24) + bytes.substr(at + 32, 16);
  uint64_t checksum = 0;
  std::memcpy(&checksum, bytes.data() + at + 24, 8);
  EXPECT_EQ(checksum, XXH3_64bits(hashed.data(), hashed.size()));
}

TEST(Stream, ChecksumInPiecesIsTheChecksumOfAll) {
  const std::string bytes = pattern(300'000, 9);
  Checksum checksum;
  size_t at = 0;
  for (size_t step = 1; at < bytes.size(); step = step * 3 + 1) {
    const size_t n = std::min(step, bytes.size() - at);
    checksum.update(bytes.data() + at, n);
    at += n;
  }
  EXPECT_EQ(checksum.value(), XXH3_64bits(bytes.data(), bytes.size()));
}

TEST(Stream, EveryTruncationIsAnErrorWithItsOffset) {
  const std::string bytes = sample();
  std::vector<size_t> clean_ends;
  for (size_t length = 0; length < bytes.size(); ++length) {
    const absl::Status status = read_all(std::string_view(bytes).substr(0, length));
    EXPECT_THAT(message_of(status), HasSubstr("stream offset"));
    if (absl::IsOutOfRange(status)) {
      clean_ends.push_back(length);
    } else {
      EXPECT_TRUE(absl::IsDataLoss(status)) << length << " " << status;
    }
  }
  // After the preamble and after epoch 0.
  ASSERT_EQ(clean_ends.size(), 2u);
  EXPECT_EQ(clean_ends[0], kHeaderBytes + 32 + 3 + 3);
}

TEST(Stream, EveryFlippedBitIsFound) {
  const std::string bytes = sample();
  for (size_t at = 0; at < bytes.size(); ++at) {
    if (at > 1000 && at + 1000 < bytes.size() && at % 61 != 0) continue;  // middles of pages
    std::string bad = bytes;
    bad[at] = static_cast<char>(bad[at] ^ (1 << (at % 8)));
    for (const PageData mode : {PageData::kBuffered, PageData::kDeferred}) {
      const absl::Status status = read_all(bad, mode);
      EXPECT_TRUE(absl::IsDataLoss(status)) << at << " " << status;
      EXPECT_THAT(message_of(status), HasSubstr("stream offset"));
    }
  }
}

// Puts the right checksum on every frame that still has a header, so that what lies behind the
// checksum is reached.
void reseal(std::string& bytes) {
  size_t at = 0;
  while (at + kHeaderBytes <= bytes.size()) {
    uint64_t length = 0;
    std::memcpy(&length, bytes.data() + at + 16, 8);
    if (length > bytes.size() - at - kHeaderBytes) return;
    Checksum checksum;
    checksum.update(bytes.data() + at, kHashedHeaderBytes);
    checksum.update(bytes.data() + at + kHeaderBytes, length);
    const uint64_t value = checksum.value();
    std::memcpy(bytes.data() + at + 24, &value, 8);
    at += kHeaderBytes + length;
  }
}

TEST(Stream, RandomDamageBehindGoodChecksumsNeverPasses) {
  const std::string bytes = sample();
  std::mt19937 random(20);
  const auto below = [&](size_t n) { return static_cast<size_t>(random() % n); };
  int passed = 0;
  for (int i = 0; i < 20'000; ++i) {
    std::string bad = bytes;
    const size_t changes = 1 + below(3);
    for (size_t k = 0; k < changes; ++k) {
      switch (below(4)) {
        case 0:
          bad[below(std::min<size_t>(bad.size(), 400))] = static_cast<char>(random());
          break;
        case 1:
          bad[bad.size() - 1 - below(std::min<size_t>(bad.size(), 500))] =
              static_cast<char>(random());
          break;
        case 2:
          bad.resize(1 + below(bad.size()));
          break;
        case 3: {
          const size_t from = below(bad.size());
          bad.insert(below(bad.size()), bad.substr(from, below(100)));
          break;
        }
      }
    }
    reseal(bad);
    const absl::Status status = read_all(bad);
    EXPECT_TRUE(absl::IsDataLoss(status) || absl::IsOutOfRange(status)) << status;
    EXPECT_THAT(message_of(status), HasSubstr("stream offset"));
    if (absl::IsOutOfRange(status)) ++passed;
  }
  // Damage inside an epoch that has resealed frames is still found by the epoch's own checksum;
  // what may pass is the preamble's content and a cut between epochs.
  EXPECT_LT(passed, 6'000);
}

TEST(Stream, FramesOfAnotherEpochAreNotTaken) {
  // A frame cut out, the others renumbered and sealed again: the end mark counts and hashes.
  MemorySink sink;
  Writer writer(sink);
  ASSERT_TRUE(writer.preamble({}).ok());
  ASSERT_TRUE(writer.begin_epoch(true).ok());
  ASSERT_TRUE(writer.section({"a", 1}, "x").ok());
  const size_t from = writer.bytes_written();
  ASSERT_TRUE(writer.section({"a", 2}, "y").ok());
  const size_t to = writer.bytes_written();
  ASSERT_TRUE(writer.end_epoch().ok());
  std::string bad = sink.bytes.substr(0, from) + sink.bytes.substr(to);
  bad[from + 8] = 3;  // sequence of the end mark
  reseal(bad);
  const absl::Status status = read_all(bad);
  EXPECT_TRUE(absl::IsDataLoss(status));
  EXPECT_THAT(message_of(status), HasSubstr("lost frames"));
}

TEST(Stream, HugeLengthTakesNoMemory) {
  MemorySink sink;
  Writer writer(sink);
  ASSERT_TRUE(writer.preamble({}).ok());
  ASSERT_TRUE(writer.begin_epoch(false).ok());
  FrameHeader header{
      .type = FrameType::kSection, .sequence = 2, .length = kMaxSectionBytes, .checksum = 0};
  for (const uint64_t length : {uint64_t{kMaxSectionBytes}, uint64_t{1} << 40, UINT64_MAX}) {
    header.length = length;
    const HeaderBytes bytes = encode_header(header);
    const std::string all =
        sink.bytes + std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size());
    EXPECT_TRUE(absl::IsDataLoss(read_all(all)));
  }
}

TEST(Stream, WriterRefusesWhatTheFormatCannotHold) {
  MemorySink sink;
  Writer writer(sink);
  EXPECT_TRUE(absl::IsFailedPrecondition(writer.begin_epoch(false)));
  ASSERT_TRUE(writer.preamble({}).ok());
  EXPECT_TRUE(absl::IsFailedPrecondition(writer.preamble({})));
  EXPECT_TRUE(absl::IsFailedPrecondition(writer.section({"a", 0}, "")));
  ASSERT_TRUE(writer.begin_epoch(false).ok());
  const size_t before = sink.bytes.size();
  EXPECT_TRUE(absl::IsInvalidArgument(writer.section({"", 0}, "")));
  EXPECT_TRUE(absl::IsInvalidArgument(writer.section({"a b", 0}, "")));
  const std::string page(kPageSize, 'x');
  const iovec one = part(page);
  const auto pages = [&](PageRun run) {
    return writer.pages(1, std::vector<PageRun>{run}, std::vector<iovec>{one});
  };
  EXPECT_TRUE(absl::IsInvalidArgument(pages({0x1001, 1})));
  EXPECT_TRUE(absl::IsInvalidArgument(pages({0x1000, 0})));
  EXPECT_TRUE(absl::IsInvalidArgument(pages({0x1000, 2})));
  EXPECT_TRUE(absl::IsInvalidArgument(pages({UINT64_MAX - 4095, 1})));
  EXPECT_EQ(sink.bytes.size(), before);
  EXPECT_TRUE(pages({0x1000, 1}).ok());
}

TEST(Stream, ManyDroppedRunsBecomeSeveralFrames) {
  MemorySink sink;
  Writer writer(sink);
  ASSERT_TRUE(writer.preamble({}).ok());
  ASSERT_TRUE(writer.begin_epoch(false).ok());
  std::vector<PageRun> runs;
  for (uint64_t i = 0; i < 2500; ++i) runs.push_back({i * 2 * kPageSize, 1});
  ASSERT_TRUE(writer.pages_dropped(1, runs).ok());
  ASSERT_TRUE(writer.end_epoch().ok());
  MemoryFeed feed(sink.bytes);
  Reader reader(feed);
  std::vector<PageRun> got;
  for (auto frame = reader.next(); frame.ok(); frame = reader.next()) {
    if (const auto* dropped = std::get_if<PagesDropped>(&*frame))
      got.insert(got.end(), dropped->runs.begin(), dropped->runs.end());
  }
  EXPECT_EQ(got, runs);
}

TEST(Stream, DeferredDataGoesWhereTheCallerWants) {
  const std::string bytes = sample();
  const std::string want = pattern(3 * kPageSize, 1);
  MemoryFeed feed(bytes);
  Reader reader(feed, PageData::kDeferred);
  int pages = 0;
  for (auto frame = reader.next(); frame.ok(); frame = reader.next()) {
    if (!std::holds_alternative<Pages>(*frame)) continue;
    ++pages;
    EXPECT_EQ(reader.data_left(), 3 * kPageSize);
    std::string a(1000, '\0');
    std::string b(2 * kPageSize, '\0');
    std::string c(kPageSize - 1000, '\0');
    const std::vector<iovec> first = {part(a), part(b)};
    ASSERT_TRUE(reader.read_data(first).ok());
    const iovec rest = part(c);
    EXPECT_TRUE(absl::IsInvalidArgument(reader.read_data(std::vector<iovec>{rest, rest})));
    ASSERT_TRUE(reader.read_data({&rest, 1}).ok());
    EXPECT_EQ(a + b + c, want);
    EXPECT_EQ(reader.data_left(), 0u);
  }
  EXPECT_EQ(pages, 1);
  EXPECT_TRUE(absl::IsOutOfRange(read_all(bytes, PageData::kDeferred))) << "skipped data";
}

class SocketPair {
 public:
  SocketPair() {
    int fds[2];
    EXPECT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
    a.reset(fds[0]);
    b.reset(fds[1]);
  }
  UniqueFd a;
  UniqueFd b;
};

TEST(StreamFd, SampleCrossesASocketAndItsCloseIsTheEnd) {
  SocketPair pair;
  std::thread sender([&] {
    const auto sink = fd_sink(pair.a.get());
    Writer writer(*sink);
    write_sample(writer);
    pair.a.reset();
  });
  const auto feed = fd_feed(pair.b.get());
  Reader reader(*feed);
  expect_sample(reader);
  sender.join();
}

TEST(StreamFd, LargeFramesOfManyPartsArriveWhole) {
  SocketPair pair;
  constexpr int kFrames = 8;
  std::thread sender([&] {
    const auto sink = fd_sink(pair.a.get());
    Writer writer(*sink);
    ASSERT_TRUE(writer.preamble({}).ok());
    ASSERT_TRUE(writer.begin_epoch(false).ok());
    for (uint32_t i = 0; i < kFrames; ++i) {
      const std::string data = pattern(kMaxPagesPerFrame * kPageSize, i);
      std::vector<iovec> parts;  // more parts than IOV_MAX
      for (size_t at = 0; at < data.size(); at += 2048)
        parts.push_back({const_cast<char*>(data.data()) + at, 2048});
      const PageRun run{i * data.size(), kMaxPagesPerFrame};
      ASSERT_TRUE(writer.pages(1, {&run, 1}, parts).ok());
      ASSERT_TRUE(writer.section({"small", i}, "between").ok());
    }
    ASSERT_TRUE(writer.end_epoch().ok());
    pair.a.reset();
  });
  const auto feed = fd_feed(pair.b.get());
  Reader reader(*feed);
  uint32_t pages = 0;
  absl::Status end;
  while (true) {
    auto frame = reader.next();
    if (!frame.ok()) {
      end = frame.status();
      break;
    }
    if (const auto* p = std::get_if<Pages>(&*frame)) {
      const std::string want = pattern(kMaxPagesPerFrame * kPageSize, pages++);
      ASSERT_EQ(p->data.size(), want.size());
      EXPECT_EQ(std::memcmp(p->data.data(), want.data(), want.size()), 0);
    }
  }
  EXPECT_TRUE(absl::IsOutOfRange(end)) << end;
  EXPECT_EQ(pages, uint32_t{kFrames});
  sender.join();
}

TEST(StreamFd, GonePeerIsAStatusNotASignal) {
  SocketPair pair;
  pair.b.reset();
  const auto sink = fd_sink(pair.a.get());
  Writer writer(*sink);
  const absl::Status status = writer.preamble({});
  EXPECT_EQ(errno_of(status), EPIPE) << status;
  EXPECT_EQ(writer.begin_epoch(false), status);
}

TEST(StreamFd, SilentPeerEndsTheWait) {
  SocketPair pair;
  const auto feed = fd_feed(pair.b.get(), absl::Milliseconds(20));
  Reader reader(*feed);
  EXPECT_TRUE(absl::IsDeadlineExceeded(reader.next().status()));
  const auto sink = fd_sink(pair.a.get(), absl::Milliseconds(20));
  const std::string much(size_t{8} << 20, 'x');
  const iovec all = part(much);
  EXPECT_TRUE(absl::IsDeadlineExceeded(sink->write({&all, 1})));
}

TEST(StreamFd, FileHoldsTheSameBytes) {
  UniqueFd file(::memfd_create("image", MFD_CLOEXEC));
  const auto sink = fd_sink(file.get());
  Writer writer(*sink);
  write_sample(writer);
  const std::string want = sample();
  std::string got(want.size() + 1, '\0');
  EXPECT_EQ(::pread(file.get(), got.data(), got.size(), 0), static_cast<ssize_t>(want.size()));
  got.pop_back();
  EXPECT_EQ(got, want);
  ASSERT_EQ(::lseek(file.get(), 0, SEEK_SET), 0);
  const auto feed = fd_feed(file.get());
  Reader reader(*feed);
  expect_sample(reader);
}

}  // namespace
}  // namespace godwit::stream
