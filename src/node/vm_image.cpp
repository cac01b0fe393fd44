#include "node/vm_image.h"

#include <fcntl.h>

#include <algorithm>
#include <array>

#include "base/clock.h"
#include "base/status.h"
#include "capsule/content_hash.h"
#include "kernel/syscalls.h"
#include "stream/sealed.h"

namespace godwit::node {
namespace {

using stream::kPageSize;

constexpr size_t kBatchBytes = size_t{1} << 20;
static_assert(kBatchBytes <= pages::PageCompression::kSlotBytes &&
              kBatchBytes <= stream::kMaxPagesPerFrame * kPageSize);

bool is_zero(std::span<const std::byte> page) {
  return std::all_of(page.begin(), page.end(), [](std::byte each) { return each == std::byte{0}; });
}

absl::Status damaged(const stream::Reader& reader, std::string_view what) {
  return make_error(absl::StatusCode::kDataLoss, "stream offset {}: {}", reader.bytes_read(), what);
}

}  // namespace

absl::Status SpaceWriter::add(uint64_t offset, std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    if (offset >= at_ + kBatchBytes) {
      GW_RETURN_IF_ERROR(write_batch());
      at_ = offset / kPageSize * kPageSize;
    }
    const size_t into = offset - at_;
    const size_t count = std::min(bytes.size(), kBatchBytes - into);
    batch_.resize(into);  // what was left out is zero
    batch_.insert(batch_.end(), bytes.begin(), bytes.begin() + static_cast<ptrdiff_t>(count));
    offset += count;
    end_ = offset;
    bytes = bytes.subspan(count);
    if (batch_.size() < kBatchBytes) continue;
    GW_RETURN_IF_ERROR(write_batch());
  }
  return absl::OkStatus();
}

absl::Status SpaceWriter::finish() { return write_batch(); }

absl::Status SpaceWriter::write_batch() {
  batch_.resize((batch_.size() + kPageSize - 1) / kPageSize * kPageSize);
  std::vector<stream::PageRun> runs;
  size_t kept = 0;
  for (size_t from = 0; from < batch_.size(); from += kPageSize) {
    const auto page = std::span(batch_).subspan(from, kPageSize);
    if (is_zero(page)) continue;
    const uint64_t address = at_ + from;
    if (!runs.empty() && runs.back().address + runs.back().count * kPageSize == address)
      ++runs.back().count;
    else
      runs.push_back({address, 1});
    if (kept != from)
      std::copy(page.begin(), page.end(), batch_.begin() + static_cast<ptrdiff_t>(kept));
    kept += kPageSize;
  }
  at_ += batch_.size();
  const auto data = std::span<const std::byte>(batch_).first(kept);
  absl::Status written = absl::OkStatus();
  if (!data.empty()) {
    const stream::Codec codec = compression_.choose(kept, pages::PageCompression::Pipeline::kAlone);
    pages::PageCompression::Packed packed;
    if (codec != stream::Codec::kNone) packed = compression_.compress(codec, data, 0);
    const iovec part{const_cast<std::byte*>(data.data()), data.size()};
    const int64_t begin = monotonic_ns();
    written = pages::PageCompression::write(writer_, stream::kSharedSpace | space_, runs,
                                            {&part, 1}, packed);
    pages::BatchFigures figures;
    figures.codec = packed.codec;
    figures.bytes = kept;
    figures.wire_bytes = packed.stored.empty() ? kept : packed.stored.size();
    figures.compress_ns = packed.ns;
    figures.write_ns = monotonic_ns() - begin;
    figures.cycle_ns = figures.compress_ns + figures.write_ns;
    compression_.sent(figures);
  }
  batch_.clear();
  return written;
}

absl::Status VmImageReader::read(stream::Feed& feed) {
  stream::Reader reader(feed);
  bool has_image = false;
  bool final = false;
  std::map<uint64_t, uint64_t> ends;  // of what came of a space
  for (;;) {
    auto frame = reader.next();
    if (absl::IsOutOfRange(frame.status())) break;
    GW_RETURN_IF_ERROR(frame.status());
    if (const auto* begin = std::get_if<stream::EpochBegin>(&*frame)) {
      final = begin->final;
    } else if (const auto* section = std::get_if<stream::Section>(&*frame)) {
      VmImage image;
      VmSpace space;
      if (section->key.kind == kVmSection && !has_image) {
        if (!image.ParseFromString(section->state))
          return damaged(reader, "section vm does not parse");
        has_image = true;
        GW_RETURN_IF_ERROR(on_image(image));
      } else if (section->key.kind == kVmSpaceSection && has_image) {
        if (!space.ParseFromString(section->state))
          return damaged(reader, "section vm_space does not parse");
        if (on_space) GW_RETURN_IF_ERROR(on_space(section->key.id, space));
      } else {
        return damaged(reader, fmt::format("a section {} in a virtual machine's checkpoint",
                                           section->key.kind));
      }
    } else if (auto* pages = std::get_if<stream::Pages>(&*frame)) {
      if (!has_image || (pages->space & stream::kSharedSpace) == 0)
        return damaged(reader, "pages of no space of a virtual machine");
      const uint64_t space = pages->space & ~stream::kSharedSpace;
      std::span<const std::byte> data = pages->data;
      uint64_t& end = ends[space];
      for (const stream::PageRun& run : pages->runs) {
        if (run.address < end) return damaged(reader, "pages out of order");
        const size_t bytes = run.count * kPageSize;
        end = run.address + bytes;
        GW_RETURN_IF_ERROR(on_bytes(space, run.address, data.first(bytes)));
        data = data.subspan(bytes);
      }
    } else if (std::get_if<stream::EpochEnd>(&*frame) == nullptr &&
               std::get_if<stream::Preamble>(&*frame) == nullptr) {
      return damaged(reader, "a frame that no virtual machine's checkpoint has");
    }
    if (!on_frame) continue;
    GW_ASSIGN_OR_RETURN(const bool more, on_frame(reader.bytes_read()));
    if (!more) return absl::OkStatus();
  }
  if (!has_image || !final)
    return damaged(reader, "it ends too early: there is no whole virtual machine in it");
  return absl::OkStatus();
}

absl::StatusOr<std::string> hash_file(vm::Hypervisor& hypervisor, const std::string& path) {
  static constexpr std::array<std::byte, 65536> kZeros{};
  capsule::Hasher hasher;
  uint64_t at = 0;
  const auto skip_to = [&](uint64_t offset) {
    while (at < offset) {
      const size_t count = std::min<uint64_t>(offset - at, kZeros.size());
      hasher.update(std::span(kZeros).first(count));
      at += count;
    }
  };
  GW_ASSIGN_OR_RETURN(const uint64_t size, hypervisor.file_bytes(path));
  GW_RETURN_IF_ERROR(
      hypervisor.read_file(path, [&](uint64_t offset, std::span<const std::byte> bytes) {
        skip_to(offset);
        hasher.update(bytes);
        at += bytes.size();
        return absl::OkStatus();
      }));
  skip_to(size);
  return hasher.value();
}

bool is_vm_image(const std::string& file, const std::string& key_file) {
  const auto fd = kernel::open(file, O_RDONLY | O_CLOEXEC);
  if (!fd.ok()) return false;
  const auto feed = stream::image_feed(fd->get(), key_file);
  if (!feed.ok()) return false;
  stream::Reader reader(**feed);
  for (;;) {
    const auto frame = reader.next();
    if (!frame.ok()) return false;
    if (const auto* section = std::get_if<stream::Section>(&*frame))
      return section->key.kind == kVmSection;
    if (std::get_if<stream::Preamble>(&*frame) == nullptr &&
        std::get_if<stream::EpochBegin>(&*frame) == nullptr)
      return false;
  }
}

}  // namespace godwit::node
