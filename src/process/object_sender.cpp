#include "process/object_sender.h"

#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include <algorithm>
#include <cstring>

#include "base/clock.h"
#include "base/status.h"
#include "kernel/huge_pages.h"

namespace godwit::process {
namespace {
constexpr uint64_t kPage = stream::kPageSize;
constexpr uint64_t kChunk = 256 * kPage;
// Stays in a CPU's cache from the reading to the hashing.
constexpr uint64_t kComparedChunk = 64 * kPage;

uint64_t hash_of(const std::byte* page) { return std::max<uint64_t>(1, XXH3_64bits(page, kPage)); }
}  // namespace

ObjectSender::ObjectSender(uint64_t id, UniqueFd fd)
    : id_(id), fd_(std::move(fd)), huge_page_bytes_(kernel::huge_page_bytes_of(fd_.get())) {}

absl::StatusOr<ObjectSender::Range> ObjectSender::next_data(uint64_t at, uint64_t size) const {
  if (huge_page_bytes_ != 0) {
    size_t page = at / huge_page_bytes_;
    while (page < huge_pages_.size() && !huge_pages_[page]) ++page;
    size_t end = page;
    while (end < huge_pages_.size() && huge_pages_[end]) ++end;
    return Range{page * huge_page_bytes_, end * huge_page_bytes_};
  }
  const off_t data = ::lseek(fd_.get(), static_cast<off_t>(at), SEEK_DATA);
  if (data < 0 && errno == ENXIO) return Range{size, size};
  if (data < 0) return errno_status(errno, "lseek(shared object, SEEK_DATA)");
  const uint64_t start = static_cast<uint64_t>(data) / kPage * kPage;
  const off_t hole = ::lseek(fd_.get(), static_cast<off_t>(start), SEEK_HOLE);
  if (hole < 0) return errno_status(errno, "lseek(shared object, SEEK_HOLE)");
  const uint64_t end = std::min(size, (static_cast<uint64_t>(hole) + kPage - 1) / kPage * kPage);
  return Range{start, std::max(end, start + kPage)};
}

absl::StatusOr<std::vector<ObjectSender::Range>> ObjectSender::pieces(uint64_t bytes,
                                                                      stream::Writer& writer) {
  std::vector<Range> found;
  struct stat stat {};
  if (::fstat(fd_.get(), &stat) != 0) return errno_status(errno, "fstat(shared object)");
  const uint64_t size = (static_cast<uint64_t>(stat.st_size) + kPage - 1) / kPage * kPage;
  sent_.resize(size / kPage);
  if (huge_page_bytes_ != 0) {
    GW_ASSIGN_OR_RETURN(huge_pages_, kernel::huge_pages_there(fd_.get(), size, huge_page_bytes_));
  }
  for (uint64_t at = 0; at < size;) {
    GW_ASSIGN_OR_RETURN(const Range data, next_data(at, size));
    GW_RETURN_IF_ERROR(drop(at, std::min(data.start, size), writer));
    if (data.start >= size) break;
    const uint64_t end = std::min(data.end, size);
    for (uint64_t piece = data.start; piece < end; piece += bytes)
      found.push_back({piece, std::min(piece + bytes, end)});
    at = data.end;
  }
  return found;
}

absl::Status ObjectSender::send(stream::Writer& writer, pages::SendControl& control, bool limited) {
  GW_ASSIGN_OR_RETURN(const std::vector<Range> all, pieces(kChunk, writer));
  buffer_.resize(kChunk);
  for (const Range& piece : all) GW_RETURN_IF_ERROR(send_piece(piece, writer, control, limited));
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

absl::Status ObjectSender::read(Range range, std::byte* to) const {
  const uint64_t bytes = range.end - range.start;
  const ssize_t got = ::pread(fd_.get(), to, bytes, static_cast<off_t>(range.start));
  if (got < 0) return errno_status(errno, fmt::format("pread(shared object, at {})", range.start));
  // The last page of an object may end inside of it.
  std::fill(to + got, to + bytes, std::byte{0});
  return absl::OkStatus();
}

std::vector<stream::PageRun> ObjectSender::changed(Range piece, const std::byte* pages) {
  std::vector<stream::PageRun> runs;
  for (uint64_t at = piece.start; at < piece.end; at += kPage) {
    const uint64_t hash = hash_of(pages + (at - piece.start));
    if (std::exchange(sent_[at / kPage], hash) == hash) continue;
    if (!runs.empty() && runs.back().address + runs.back().count * kPage == at)
      ++runs.back().count;
    else
      runs.push_back({at, 1});
  }
  return runs;
}

absl::Status ObjectSender::send_piece(Range piece, stream::Writer& writer,
                                      pages::SendControl& control, bool limited) {
  const int64_t begin = monotonic_ns();
  GW_RETURN_IF_ERROR(read(piece, buffer_.data()));
  const std::vector<stream::PageRun> runs = changed(piece, buffer_.data());
  std::vector<iovec> parts;
  for (const stream::PageRun& run : runs)
    parts.push_back({buffer_.data() + (run.address - piece.start), run.count * kPage});
  return send_pages(runs, parts, writer, control, limited, begin);
}

absl::Status ObjectSender::send_frozen(stream::Writer& writer, pages::SendControl& control,
                                       pages::WorkPool& pool) {
  if (sent_.empty()) return send(writer, control, false);
  GW_ASSIGN_OR_RETURN(const std::vector<Range> all, pieces(kComparedChunk, writer));
  std::vector<std::vector<stream::PageRun>> runs(all.size());
  std::vector<absl::Status> results(all.size());
  std::vector<std::vector<std::byte>> buffers(pool.threads());
  pool.run(all.size(), [&](size_t thread, size_t i) {
    std::vector<std::byte>& buffer = buffers[thread];
    buffer.resize(kComparedChunk);
    results[i] = read(all[i], buffer.data());
    if (results[i].ok()) runs[i] = changed(all[i], buffer.data());
  });
  for (const absl::Status& result : results) GW_RETURN_IF_ERROR(result);
  buffer_.resize(kComparedChunk);
  for (const std::vector<stream::PageRun>& piece : runs) {
    const int64_t begin = monotonic_ns();
    std::vector<iovec> parts;
    std::byte* to = buffer_.data();
    for (const stream::PageRun& run : piece) {
      const uint64_t bytes = run.count * kPage;
      GW_RETURN_IF_ERROR(read({run.address, run.address + bytes}, to));
      parts.push_back({to, bytes});
      to += bytes;
    }
    GW_RETURN_IF_ERROR(send_pages(piece, parts, writer, control, false, begin));
  }
  return absl::OkStatus();
}

// One thread reads, compresses and writes. While the program runs the choice is told of it as of
// any other batch, and finds out what that gains.
absl::Status ObjectSender::send_pages(std::span<const stream::PageRun> runs,
                                      std::span<const iovec> parts, stream::Writer& writer,
                                      pages::SendControl& control, bool limited, int64_t begin_ns) {
  if (runs.empty()) return absl::OkStatus();
  using Pipeline = pages::PageCompression::Pipeline;
  pages::PageCompression& compression = control.compression();
  pages::BatchFigures figures;
  for (const iovec& part : parts) figures.bytes += part.iov_len;
  control.pages_sent += figures.bytes / kPage;
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
