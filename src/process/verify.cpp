// Linux facts: reading a page of a mapping populates it, with the zero page or, through a shared
// mapping of shmem, with a new one; pread(2) of a hole does not. PAGEMAP_SCAN tells a page of a
// private file mapping that was copied (not FILE) from the file's own (fs/proc/task_mmu.c).
#include "process/verify.h"

#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "base/status.h"
#include "kernel/abi/pagemap_scan.h"
#include "pages/page_reader.h"
#include "pages/pagemap.h"

namespace godwit::process {
namespace {

using pages::kPageSize;
using pages::PageRange;
using pages::PageSet;
using resource::AddressRange;
using resource::MappingState;

constexpr size_t kChunkPages = 512;
constexpr size_t kRegions = 4096;

stream::PageHash hash_of(std::span<const std::byte> page) {
  XXH128_canonical_t canonical;
  XXH128_canonicalFromHash(&canonical, XXH3_128bits(page.data(), page.size()));
  stream::PageHash hash;
  static_assert(sizeof hash == sizeof canonical);
  std::memcpy(hash.data(), &canonical, sizeof hash);
  return hash;
}

std::string name_of(const MappingState& mapping) {
  const std::string& name = mapping.path().empty() ? mapping.name() : mapping.path();
  return fmt::format("mapping {:x}-{:x}{}{}", mapping.start(), mapping.end(),
                     name.empty() ? "" : " ", name);
}

// Cuts ranges into pieces of at most kChunkPages in all.
absl::Status in_chunks(std::span<const PageRange> ranges,
                       absl::FunctionRef<absl::Status(std::span<const PageRange>)> chunk) {
  std::vector<PageRange> some;
  uint64_t room = kChunkPages;
  for (PageRange left : ranges) {
    while (left.start < left.end) {
      const uint64_t count = std::min(room, left.pages());
      some.push_back({left.start, left.start + count * kPageSize});
      left.start = some.back().end;
      room -= count;
      if (room > 0) continue;
      GW_RETURN_IF_ERROR(chunk(some));
      some.clear();
      room = kChunkPages;
    }
  }
  return some.empty() ? absl::OkStatus() : chunk(some);
}

class Memory final : public Space {
 public:
  Memory(HostPid pid, const resource::MemoryMapState& map, pages::Pagemap pagemap,
         std::vector<AddressRange> left_out)
      : map_(map),
        pagemap_(std::move(pagemap)),
        reader_(pid),
        left_out_(std::move(left_out)),
        buffer_(kChunkPages * kPageSize) {}

  absl::StatusOr<std::vector<Part>> parts() override {
    std::vector<Part> parts;
    for (const MappingState& mapping : map_.mappings()) {
      if (mapping.kind() != MappingState::KIND_ANONYMOUS &&
          mapping.kind() != MappingState::KIND_PRIVATE_FILE)
        continue;
      Part& part = parts.emplace_back();
      part.name = name_of(mapping);
      part.range = {mapping.start(), mapping.end()};
      part.zero_is_nothing = mapping.kind() == MappingState::KIND_ANONYMOUS;
      GW_RETURN_IF_ERROR(annotate(find_populated(part), part.name));
    }
    if (!pagemap_.alive()) return errno_status(ESRCH, "ioctl(PAGEMAP_SCAN)");
    return parts;
  }

  absl::Status read(std::span<const PageRange> ranges, Each each) override {
    return in_chunks(ranges, [&](std::span<const PageRange> some) -> absl::Status {
      std::vector<PageRange> got;
      PageSet unreadable;
      GW_RETURN_IF_ERROR(reader_.read(some, buffer_, got, unreadable));
      std::byte* at = buffer_.data();
      for (const PageRange& range : got) {
        blank({range.start, range.end}, at);
        for (uint64_t page = range.start; page < range.end; page += kPageSize, at += kPageSize)
          GW_RETURN_IF_ERROR(each(page, {at, kPageSize}));
      }
      return absl::OkStatus();
    });
  }

 private:
  absl::Status find_populated(Part& part) {
    using namespace kernel::abi;  // NOLINT(google-build-using-namespace): bits of one header
    const pages::PageQuery query{.any_of = kPageIsPresent | kPageIsSwapped,
                                 .report = kPageIsPresent | kPageIsSwapped | kPageIsGuard |
                                           (part.zero_is_nothing ? 0 : kPageIsFile),
                                 .registered = false};
    std::vector<pages::Region> regions(kRegions);
    const int error = pagemap_.scan(query, part.range, regions, [&](const pages::Region& region) {
      if ((region.categories & (kPageIsGuard | kPageIsFile)) != 0) return;
      const PageRange found{region.start, region.end};
      if ((region.categories & kPageIsPresent) != 0)
        part.populated.add(found);
      else
        pagemap_.add_swapped(found, part.populated);
    });
    return error == 0 ? absl::OkStatus() : errno_status(-error, "ioctl(PAGEMAP_SCAN)");
  }

  // `at` holds what was read of `range`.
  void blank(AddressRange range, std::byte* at) const {
    for (const AddressRange& out : left_out_) {
      if (!out.overlaps(range.start, range.end)) continue;
      const uint64_t start = std::max(out.start, range.start);
      std::memset(at + (start - range.start), 0, std::min(out.end, range.end) - start);
    }
  }

  const resource::MemoryMapState& map_;
  pages::Pagemap pagemap_;
  pages::PageReader reader_;
  std::vector<AddressRange> left_out_;
  std::vector<std::byte> buffer_;
};

class Object final : public Space {
 public:
  Object(int fd, std::string name) : fd_(fd), name_(std::move(name)), buffer_(kPageSize) {}

  absl::StatusOr<std::vector<Part>> parts() override {
    struct stat stat {};
    if (::fstat(fd_, &stat) != 0) return errno_status(errno, fmt::format("fstat({})", name_));
    Part part{.name = name_, .range = {}, .populated = {}};
    part.range.end = (static_cast<uint64_t>(stat.st_size) + kPageSize - 1) / kPageSize * kPageSize;
    for (uint64_t at = 0; at < part.range.end;) {
      const off_t data = ::lseek(fd_, static_cast<off_t>(at), SEEK_DATA);
      if (data < 0 && errno == ENXIO) break;
      const off_t hole = data < 0 ? data : ::lseek(fd_, data, SEEK_HOLE);
      if (hole < 0) return errno_status(errno, fmt::format("lseek({}, at {})", name_, at));
      const uint64_t start = static_cast<uint64_t>(data) / kPageSize * kPageSize;
      at = std::max((static_cast<uint64_t>(hole) + kPageSize - 1) / kPageSize * kPageSize,
                    start + kPageSize);
      part.populated.add({start, at});
    }
    return std::vector<Part>{std::move(part)};
  }

  absl::Status read(std::span<const PageRange> ranges, Each each) override {
    for (const PageRange& range : ranges) {
      for (uint64_t page = range.start; page < range.end; page += kPageSize) {
        const ssize_t got = ::pread(fd_, buffer_.data(), kPageSize, static_cast<off_t>(page));
        if (got < 0) return errno_status(errno, fmt::format("pread({}, at {})", name_, page));
        // The last page of an object may end inside of it.
        std::fill(buffer_.begin() + got, buffer_.end(), std::byte{0});
        GW_RETURN_IF_ERROR(each(page, buffer_));
      }
    }
    return absl::OkStatus();
  }

 private:
  int fd_;
  std::string name_;
  std::vector<std::byte> buffer_;
};

// Gathers hashes into frames.
class HashFrames {
 public:
  HashFrames(uint64_t space, stream::Writer& writer) : space_(space), writer_(writer) {}

  absl::Status add(uint64_t address, const stream::PageHash& hash) {
    if (!runs_.empty() && runs_.back().address + runs_.back().count * kPageSize == address)
      ++runs_.back().count;
    else
      runs_.push_back({address, 1});
    hashes_.push_back(hash);
    return hashes_.size() == stream::kMaxPagesPerFrame ? flush() : absl::OkStatus();
  }
  absl::Status flush() {
    if (hashes_.empty()) return absl::OkStatus();
    GW_RETURN_IF_ERROR(writer_.page_hashes(space_, runs_, hashes_));
    runs_.clear();
    hashes_.clear();
    return absl::OkStatus();
  }

 private:
  uint64_t space_;
  stream::Writer& writer_;
  std::vector<stream::PageRun> runs_;
  std::vector<stream::PageHash> hashes_;
};

bool is_nothing(const Part& part, std::span<const std::byte> page) {
  return part.zero_is_nothing && pages::is_zero_page(page.data());
}

// Walks a frame's pages in their order.
class Cursor {
 public:
  explicit Cursor(const stream::PageHashes& frame) : frame_(frame) {}
  bool at_end() const { return run_ == frame_.runs.size(); }
  uint64_t address() const { return frame_.runs[run_].address + in_run_ * kPageSize; }
  const stream::PageHash& hash() const { return frame_.hashes[index_]; }
  void next() {
    ++index_;
    if (++in_run_ < frame_.runs[run_].count) return;
    ++run_;
    in_run_ = 0;
  }

 private:
  const stream::PageHashes& frame_;
  size_t run_ = 0;
  uint64_t in_run_ = 0;
  size_t index_ = 0;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Space>> memory_of(HostPid pid, const resource::MemoryMapState& map,
                                                 std::vector<AddressRange> left_out) {
  GW_ASSIGN_OR_RETURN(pages::Pagemap pagemap, pages::Pagemap::open(pid));
  return std::make_unique<Memory>(pid, map, std::move(pagemap), std::move(left_out));
}

std::unique_ptr<Space> object_of(int fd, std::string name) {
  return std::make_unique<Object>(fd, std::move(name));
}

absl::Status send_hashes(uint64_t id, Space& space, const pages::SendControl& control,
                         stream::Writer& writer) {
  HashFrames frames(id, writer);
  GW_ASSIGN_OR_RETURN(const std::vector<Part> parts, space.parts());
  for (const Part& part : parts) {
    GW_RETURN_IF_ERROR(space.read(
        part.populated.ranges(),
        [&](uint64_t address, std::span<const std::byte> page) -> absl::Status {
          if (control.cancelled()) return absl::CancelledError("verifying was cancelled");
          return is_nothing(part, page) ? absl::OkStatus() : frames.add(address, hash_of(page));
        }));
  }
  return frames.flush();
}

absl::StatusOr<Comparison> Comparison::begin(std::unique_ptr<Space> space) {
  Comparison one;
  GW_ASSIGN_OR_RETURN(one.parts_, space->parts());
  one.space_ = std::move(space);
  for (const Part& part : one.parts_) one.mapped_.add(part.range);
  return one;
}

absl::Status Comparison::see(const stream::PageHashes& frame) {
  const PageSet named = pages::page_set_of(frame.runs);
  named_.add(named);
  // Only what is mapped is asked for, in the frame's order.
  std::vector<PageRange> wanted;
  for (const stream::PageRun& run : frame.runs)
    for (const PageRange& part :
         mapped_.intersect(PageRange{run.address, run.address + run.count * kPageSize}))
      wanted.push_back(part);
  Cursor cursor(frame);
  const auto differs = [&] { differ_.add({cursor.address(), cursor.address() + kPageSize}); };
  GW_RETURN_IF_ERROR(
      space_->read(wanted, [&](uint64_t address, std::span<const std::byte> page) -> absl::Status {
        for (; !cursor.at_end() && cursor.address() != address; cursor.next()) differs();
        if (cursor.at_end()) return absl::OkStatus();
        if (hash_of(page) != cursor.hash()) differs();
        cursor.next();
        return absl::OkStatus();
      }));
  for (; !cursor.at_end(); cursor.next()) differs();
  return absl::OkStatus();
}

absl::Status Comparison::end() {
  for (const Part& part : parts_) {
    PageSet rest = part.populated;
    rest.subtract(named_.intersect(part.range));
    GW_RETURN_IF_ERROR(
        space_->read(rest.ranges(), [&](uint64_t address, std::span<const std::byte> page) {
          if (!is_nothing(part, page)) differ_.add({address, address + kPageSize});
          return absl::OkStatus();
        }));
  }
  return absl::OkStatus();
}

std::vector<std::string> Comparison::differences() const {
  std::vector<std::string> texts;
  const auto tell = [&](const std::string& name, const PageSet& pages) {
    if (pages.empty()) return;
    texts.push_back(fmt::format("{}: {} page{} other than the source's, the first at {:x}", name,
                                pages.pages(), pages.pages() == 1 ? " is" : "s are",
                                pages.begin()->start));
  };
  PageSet outside = differ_;
  for (const Part& part : parts_) {
    tell(part.name, differ_.intersect(part.range));
    outside.subtract(part.range);
  }
  tell("not mapped here", outside);
  return texts;
}

}  // namespace godwit::process
