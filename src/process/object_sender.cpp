#include "process/object_sender.h"

#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include <algorithm>
#include <cstring>

#include "base/clock.h"
#include "base/status.h"

namespace godwit::process {
namespace {
constexpr uint64_t kPage = stream::kPageSize;
constexpr uint64_t kChunk = 256 * kPage;

uint64_t hash_of(const std::byte* page) { return std::max<uint64_t>(1, XXH3_64bits(page, kPage)); }
}  // namespace

absl::Status ObjectSender::send(stream::Writer& writer, pages::SendControl& control, bool limited) {
  struct stat stat {};
  if (::fstat(fd_.get(), &stat) != 0) return errno_status(errno, "fstat(shared object)");
  const uint64_t size = (static_cast<uint64_t>(stat.st_size) + kPage - 1) / kPage * kPage;
  sent_.resize(size / kPage);
  uint64_t at = 0;
  while (at < size) {
    const off_t data = ::lseek(fd_.get(), static_cast<off_t>(at), SEEK_DATA);
    if (data < 0 && errno != ENXIO) return errno_status(errno, "lseek(shared object, SEEK_DATA)");
    const uint64_t start = data < 0 ? size : static_cast<uint64_t>(data) / kPage * kPage;
    GW_RETURN_IF_ERROR(drop(at, std::min(start, size), writer));
    if (start >= size) break;
    const off_t hole = ::lseek(fd_.get(), static_cast<off_t>(start), SEEK_HOLE);
    if (hole < 0) return errno_status(errno, "lseek(shared object, SEEK_HOLE)");
    const uint64_t end = std::min(size, (static_cast<uint64_t>(hole) + kPage - 1) / kPage * kPage);
    GW_RETURN_IF_ERROR(send_data(start, end, writer, control, limited));
    at = std::max(end, start + kPage);
  }
  return absl::OkStatus();
}

absl::Status ObjectSender::drop(uint64_t start, uint64_t end, stream::Writer& writer) {
  std::vector<stream::PageRun> runs;
  for (uint64_t at = start; at < end; at += kPage) {
    if (std::exchange(sent_[at / kPage], 0) == 0) continue;
    if (!runs.empty() && runs.back().address + runs.back().count * kPage == at)
      ++runs.back().count;
    else
      runs.push_back({at, 1});
    if (runs.size() == stream::kMaxRunsPerFrame) {
      GW_RETURN_IF_ERROR(writer.pages_dropped(stream::kSharedSpace | id_, runs));
      runs.clear();
    }
  }
  return runs.empty() ? absl::OkStatus() : writer.pages_dropped(stream::kSharedSpace | id_, runs);
}

absl::Status ObjectSender::send_data(uint64_t start, uint64_t end, stream::Writer& writer,
                                     pages::SendControl& control, bool limited) {
  buffer_.resize(kChunk);
  for (uint64_t at = start; at < end; at += kChunk) {
    const uint64_t bytes = std::min(kChunk, end - at);
    const int64_t begin = monotonic_ns();
    const ssize_t got = ::pread(fd_.get(), buffer_.data(), bytes, static_cast<off_t>(at));
    if (got < 0) return errno_status(errno, fmt::format("pread(shared object, at {})", at));
    // The last page of an object may end inside of it.
    std::fill(buffer_.begin() + got, buffer_.end(), std::byte{0});
    std::vector<stream::PageRun> runs;
    std::vector<iovec> parts;
    for (uint64_t page = 0; page < bytes; page += kPage) {
      std::byte* const from = buffer_.data() + page;
      const uint64_t hash = hash_of(from);
      if (std::exchange(sent_[(at + page) / kPage], hash) == hash) continue;
      if (!runs.empty() && runs.back().address + runs.back().count * kPage == at + page) {
        ++runs.back().count;
        parts.back().iov_len += kPage;
      } else {
        runs.push_back({at + page, 1});
        parts.push_back({from, kPage});
      }
      ++control.pages_sent;
    }
    if (runs.empty()) continue;
    GW_RETURN_IF_ERROR(send_pages(runs, parts, writer, control, limited, begin));
  }
  return absl::OkStatus();
}

// One thread reads, compresses and writes. While the program runs the choice is told of it as of
// any other batch, and finds out what that gains.
absl::Status ObjectSender::send_pages(std::span<const stream::PageRun> runs,
                                      std::span<const iovec> parts, stream::Writer& writer,
                                      pages::SendControl& control, bool limited, int64_t begin_ns) {
  using Pipeline = pages::PageCompression::Pipeline;
  pages::PageCompression& compression = control.compression();
  pages::BatchFigures figures;
  for (const iovec& part : parts) figures.bytes += part.iov_len;
  figures.read_ns = monotonic_ns() - begin_ns;
  pages::PageCompression::Packed packed;
  figures.codec = compression.choose(figures.bytes, limited ? Pipeline::kOne : Pipeline::kAlone);
  if (figures.codec != stream::Codec::kNone) {
    // The hashes are known: what was not changed may be overwritten.
    std::byte* to = buffer_.data();
    for (const iovec& part : parts) {
      if (part.iov_base != to) std::memmove(to, part.iov_base, part.iov_len);
      to += part.iov_len;
    }
    packed = compression.compress(figures.codec, {buffer_.data(), figures.bytes}, 0);
    figures.compress_ns = packed.ns;
  }
  const iovec closed_up = {buffer_.data(), figures.bytes};
  if (figures.codec != stream::Codec::kNone) parts = {&closed_up, 1};
  if (limited) compression.look(parts);
  figures.wire_bytes = packed.stored.empty() ? figures.bytes : packed.stored.size();
  const int64_t write_begin = monotonic_ns();
  if (limited) GW_RETURN_IF_ERROR(control.admit(figures.wire_bytes));
  GW_RETURN_IF_ERROR(
      pages::PageCompression::write(writer, stream::kSharedSpace | id_, runs, parts, packed));
  const int64_t end = monotonic_ns();
  figures.write_ns = end - write_begin;
  figures.cycle_ns = limited ? end - begin_ns : 0;
  compression.sent(figures);
  return absl::OkStatus();
}

}  // namespace godwit::process
