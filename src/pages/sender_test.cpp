#include "pages/sender.h"

#include <gtest/gtest.h>
#include <sys/uio.h>

#include <cstring>
#include <map>
#include <random>
#include <string>

#include "base/clock.h"
#include "base/status.h"
#include "pages/puppet_for_test.h"

namespace godwit::pages {
namespace {

constexpr uint64_t P = kPageSize;
constexpr uint64_t B = 0x2000'0000'0000;

class CountingSink final : public stream::Sink {
 public:
  absl::Status write(std::span<const iovec> parts) override {
    if (bytes_per_s > 0) {
      uint64_t size = 0;
      for (const iovec& part : parts) size += part.iov_len;
      const timespec time{0, static_cast<long>(size * 1'000'000'000 / bytes_per_s)};
      ::nanosleep(&time, nullptr);
    }
    for (const iovec& part : parts) {
      bytes += part.iov_len;
      if (keep == nullptr) continue;
      keep->append(static_cast<const char*>(part.iov_base), part.iov_len);
    }
    if (bytes > fail_after) return absl::UnavailableError("the link is down");
    return absl::OkStatus();
  }
  absl::Status flush() override { return absl::OkStatus(); }
  uint64_t bytes = 0;
  uint64_t fail_after = UINT64_MAX;
  uint64_t bytes_per_s = 0;
  std::string* keep = nullptr;
};

class TextFeed final : public stream::Feed {
 public:
  explicit TextFeed(const std::string& text) : left_(text) {}
  absl::Status read(std::span<std::byte> to) override {
    if (left_.size() < to.size()) return absl::OutOfRangeError("end");
    std::memcpy(to.data(), left_.data(), to.size());
    left_.remove_prefix(to.size());
    return absl::OkStatus();
  }

 private:
  std::string_view left_;
};

struct Path {
  explicit Path(std::string* keep = nullptr) : writer(sink), sender(puppet.pid(), writer, control) {
    sink.keep = keep;
    stream::Preamble preamble;
    preamble.version = stream::kVersionCompressed;
    EXPECT_TRUE(writer.preamble(preamble).ok());
    EXPECT_TRUE(writer.begin_epoch(false).ok());
  }
  absl::Status send(PageSet pages, ZeroPages zero = ZeroPages::kDrop) {
    return sender.send(1, pages, zero, unreadable);
  }
  Puppet puppet;
  CountingSink sink;
  SendControl control;
  stream::Writer writer;
  PageSender sender;
  PageSet unreadable;
};

TEST(PageReader, ZeroPagesAreToldByAnyByte) {
  alignas(64) std::byte page[kPageSize] = {};
  EXPECT_TRUE(is_zero_page(page));
  for (size_t i = 0; i < kPageSize; ++i) {
    page[i] = std::byte{1};
    EXPECT_FALSE(is_zero_page(page)) << i;
    page[i] = std::byte{0};
  }
}

TEST(PageSender, ZeroPagesAreSentAsDroppedOrCarried) {
  Path path;
  path.puppet.map(B, 16 * P);
  path.puppet.fill(B, P, 1);
  path.puppet.touch(B + P);
  ASSERT_TRUE(path.send({{B, B + 2 * P}}).ok());
  EXPECT_EQ(path.control.pages_sent, 1u);
  EXPECT_EQ(path.control.zero_pages, 1u);
  ASSERT_TRUE(path.send({{B, B + 2 * P}}, ZeroPages::kCarry).ok());
  EXPECT_EQ(path.control.pages_sent, 3u);
}

TEST(PageSender, AFewZeroPagesDoNotBreakAWholeBlock) {
  Path path;
  path.puppet.map(B, 1024 * P);
  path.puppet.fill(B, 1024 * P, 1);
  path.puppet.call(SYS_madvise, B + 10 * P, 3 * P, MADV_DONTNEED);
  path.puppet.call(SYS_madvise, B + 600 * P, 200 * P, MADV_DONTNEED);
  for (uint64_t page = 10; page < 13; ++page) path.puppet.poke(B + page * P, 0);
  for (uint64_t page = 600; page < 800; ++page) path.puppet.poke(B + page * P, 0);
  ASSERT_TRUE(path.send({{B, B + 512 * P}}).ok());
  EXPECT_EQ(path.control.pages_sent, 512u);
  EXPECT_EQ(path.control.zero_pages, 0u);
  ASSERT_TRUE(path.send({{B + 512 * P, B + 1024 * P}}).ok());
  EXPECT_EQ(path.control.pages_sent, 512u + 312u);
  EXPECT_EQ(path.control.zero_pages, 200u);
}

TEST(PageSender, PagesThatWentAwayAreLeftOutAndNamed) {
  Path path;
  path.puppet.map(B, 2048 * P);
  path.puppet.fill(B, 2048 * P, 1);
  path.puppet.call(SYS_munmap, B + 100 * P, 3 * P);
  path.puppet.call(SYS_munmap, B + 1500 * P, P);
  path.puppet.call(SYS_munmap, B + 2047 * P, P);
  path.puppet.call(SYS_mprotect, B + 700 * P, 100 * P, PROT_NONE);
  ASSERT_TRUE(path.send({{B, B + 2048 * P}}).ok());
  EXPECT_EQ(path.unreadable, (PageSet{{B + 100 * P, B + 103 * P},
                                      {B + 1500 * P, B + 1501 * P},
                                      {B + 2047 * P, B + 2048 * P}}));
  EXPECT_EQ(path.control.pages_sent, 2043u);
  EXPECT_EQ(path.control.pages_skipped, 5u);
}

TEST(PageSender, ManyScatteredPages) {
  Path path;
  path.puppet.map(B, 8192 * P);
  path.puppet.fill(B, 8192 * P, 1);
  PageSet pages;
  for (uint64_t i = 0; i < 8192; i += 2) pages.add({B + i * P, B + (i + 1) * P});
  ASSERT_TRUE(path.send(pages).ok());
  EXPECT_EQ(path.control.pages_sent, 4096u);
}

TEST(PageSender, ABlockThatIsSentWholeIsInOneFrame) {
  std::string bytes;
  Path path(&bytes);
  constexpr uint64_t kBlock = 512;  // pages
  path.puppet.map(B, 6 * kBlock * P);
  path.puppet.fill(B, 6 * kBlock * P, 1);
  // Lone pages, a part of the first block, two whole ones, a part of the last.
  const PageSet pages{{B + 2 * P, B + 3 * P},
                      {B + 100 * P, B + (3 * kBlock + 10) * P},
                      {B + 4 * kBlock * P, B + 5 * kBlock * P}};
  ASSERT_TRUE(path.send(pages).ok());
  ASSERT_TRUE(path.writer.end_epoch().ok());

  TextFeed feed(bytes);
  stream::Reader reader(feed);
  PageSet got;
  PageSet whole;
  for (auto frame = reader.next(); frame.ok(); frame = reader.next()) {
    const auto* sent = std::get_if<stream::Pages>(&*frame);
    if (sent == nullptr) continue;
    const PageSet here = page_set_of(sent->runs);
    EXPECT_TRUE(got.intersect(here).empty());
    got.add(here);
    for (uint64_t block = B; block < B + 6 * kBlock * P; block += kBlock * P)
      if (here.intersect(PageRange{block, block + kBlock * P}).pages() == kBlock)
        whole.add({block, block + kBlock * P});
  }
  EXPECT_EQ(got, pages);
  EXPECT_EQ(whole, (PageSet{{B + kBlock * P, B + 3 * kBlock * P},
                            {B + 4 * kBlock * P, B + 5 * kBlock * P}}));
}

TEST(PageSender, CancelFailureAndDeathEndIt) {
  Path path;
  path.puppet.map(B, 4096 * P);
  path.puppet.fill(B, 4096 * P, 1);
  const PageSet all{{B, B + 4096 * P}};
  path.control.cancel();
  EXPECT_TRUE(absl::IsCancelled(path.send(all)));

  Path broken;
  broken.puppet.map(B, 4096 * P);
  broken.puppet.fill(B, 4096 * P, 1);
  broken.sink.fail_after = 3'000'000;
  EXPECT_TRUE(absl::IsUnavailable(broken.send(all)));

  Path dead;
  dead.puppet.map(B, 4096 * P);
  dead.puppet.fill(B, 4096 * P, 1);
  ::kill(dead.puppet.pid().value, SIGKILL);
  siginfo_t info{};
  ASSERT_EQ(::waitid(P_PID, static_cast<id_t>(dead.puppet.pid().value), &info, WEXITED | WNOWAIT),
            0);
  EXPECT_EQ(errno_of(dead.send(all)), ESRCH);
}

// Every page of the stream, by its address; what was dropped is zero.
std::map<uint64_t, std::string> pages_in(const std::string& bytes, uint64_t& compressed) {
  TextFeed feed(bytes);
  stream::Reader reader(feed);
  std::map<uint64_t, std::string> pages;
  for (auto frame = reader.next(); frame.ok(); frame = reader.next()) {
    if (const auto* dropped = std::get_if<stream::PagesDropped>(&*frame))
      for (const stream::PageRun& run : dropped->runs)
        for (uint64_t i = 0; i < run.count; ++i)
          pages[run.address + i * P] = std::string(P, char{0});
    const auto* sent = std::get_if<stream::Pages>(&*frame);
    if (sent == nullptr) continue;
    const auto* at = reinterpret_cast<const char*>(sent->data.data());
    for (const stream::PageRun& run : sent->runs)
      for (uint64_t i = 0; i < run.count; ++i, at += P) {
        pages[run.address + i * P].assign(at, P);
        compressed += sent->codec == stream::Codec::kNone ? 0 : 1;
      }
  }
  return pages;
}

void put(const Puppet& puppet, uint64_t address, std::string& bytes) {
  const iovec from = {bytes.data(), bytes.size()};
  const iovec to = {reinterpret_cast<void*>(address), bytes.size()};
  ASSERT_EQ(::process_vm_writev(puppet.pid().value, &from, 1, &to, 1, 0),
            static_cast<ssize_t>(bytes.size()));
}

// Pages of words, zero pages among them; and one block of what does not shrink.
void fill_mixed(Puppet& puppet, uint64_t pages) {
  puppet.map(B, pages * P);
  std::mt19937 random(1);
  for (uint64_t i = 0; i < pages; ++i) {
    if (i % 7 == 3) continue;
    if (i / 512 == 2) {
      puppet.fill(B + i * P, P, i);
      continue;
    }
    std::string page;
    while (page.size() < P) page += std::to_string(random() % 900) + " words of it, ";
    page.resize(P);
    put(puppet, B + i * P, page);
  }
}

TEST(PageSender, EveryCodecCarriesTheSamePages) {
  constexpr uint64_t kPages = 4096 + 100;
  std::map<uint64_t, std::string> plain;
  for (const Compress compress : {Compress::kNone, Compress::kLz4, Compress::kZstd}) {
    std::string bytes;
    Path path(&bytes);
    path.control.compression().set(compress);
    fill_mixed(path.puppet, kPages);
    ASSERT_TRUE(path.send({{B, B + kPages * P}}).ok());
    ASSERT_TRUE(path.writer.end_epoch().ok());
    uint64_t compressed = 0;
    const auto pages = pages_in(bytes, compressed);
    ASSERT_EQ(pages.size(), kPages);
    if (compress == Compress::kNone) plain = pages;
    EXPECT_TRUE(pages == plain);
    const PageCompression& figures = path.control.compression();
    EXPECT_EQ(figures.bytes(), path.control.pages_sent * P);
    if (compress == Compress::kNone) {
      EXPECT_EQ(compressed, 0u);
      EXPECT_EQ(figures.wire_bytes(), figures.bytes());
      EXPECT_EQ(figures.used(), "none");
      continue;
    }
    // All but those of the third block, which do not shrink.
    EXPECT_LT(figures.wire_bytes(), figures.bytes() / 3);
    EXPECT_GT(figures.wire_bytes(), 400 * P);
    EXPECT_GT(compressed, path.control.pages_sent - 512);
    EXPECT_LT(compressed, path.control.pages_sent - 400);
    EXPECT_EQ(figures.used(), compress == Compress::kLz4 ? "lz4" : "zstd");
  }
}

TEST(PageSender, AHandfulOfPagesGoesAsItIs) {
  std::string bytes;
  Path path(&bytes);
  path.control.compression().set(Compress::kZstd);
  fill_mixed(path.puppet, 64);
  ASSERT_TRUE(path.send({{B, B + 8 * P}}).ok());
  EXPECT_EQ(path.control.compression().used(), "none");
  ASSERT_TRUE(path.send({{B, B + 64 * P}}).ok());
  EXPECT_EQ(path.control.compression().used(), "zstd");
}

TEST(PageSender, ASlowLinkIsFoundAndSoIsALimit) {
  for (const bool limited : {false, true}) {
    Path path;
    path.control.compression().set(Compress::kAuto);
    fill_mixed(path.puppet, 512 * 40);
    // So slow that compressing pays on a machine that has little time for it, too.
    constexpr uint64_t kRate = uint64_t{25} << 20;
    if (limited)
      path.control.set_bytes_per_second(kRate);
    else
      path.sink.bytes_per_s = kRate;
    const int64_t before = monotonic_ns();
    ASSERT_TRUE(path.send({{B, B + 512 * 40 * P}}).ok());
    const double took = static_cast<double>(monotonic_ns() - before) * 1e-9;
    const PageCompression& figures = path.control.compression();
    EXPECT_NE(figures.used(), "none") << limited;
    EXPECT_LT(figures.wire_bytes(), figures.bytes() * 2 / 3) << limited;
    EXPECT_LT(took, static_cast<double>(figures.bytes()) / kRate) << limited;
  }
}

TEST(PageSender, RateIsKept) {
  Path path;
  path.puppet.map(B, 2048 * P);
  path.puppet.fill(B, 2048 * P, 1);
  path.control.set_bytes_per_second(uint64_t{64} << 20);
  const int64_t before = monotonic_ns();
  ASSERT_TRUE(path.send({{B, B + 2048 * P}}).ok());  // 8 MiB: 125 ms, less the burst
  EXPECT_GT(monotonic_ns() - before, 90'000'000);
}

}  // namespace
}  // namespace godwit::pages
