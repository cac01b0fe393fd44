#include "pages/shared_object.h"

#include <fcntl.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "base/status.h"
#include "kernel/syscalls.h"
#include "pages/page_reader.h"

namespace godwit::pages {
namespace {

constexpr uint64_t kStepPages = 256;
constexpr uint64_t kStepBytes = kStepPages * kPageSize;

uint64_t round_up(uint64_t bytes) { return (bytes + kPageSize - 1) / kPageSize * kPageSize; }

}  // namespace

absl::StatusOr<UniqueFd> open_mapped_object(HostPid pid, const kernel::Mapping& mapping,
                                            int flags) {
  return kernel::open(
      fmt::format("/proc/{}/map_files/{:x}-{:x}", pid.value, mapping.start, mapping.end),
      flags | O_CLOEXEC);
}

SharedObjectTracker::SharedObjectTracker(UniqueFd fd)
    : fd_(std::move(fd)), buffer_(std::make_unique<std::byte[]>(kStepBytes)) {
  // Nobody can make two contents of one hash without the seed. A seed of 0 does no harm.
  seed_ = 0;
  [[maybe_unused]] const ssize_t n = ::getrandom(&seed_, sizeof seed_, 0);
}

absl::StatusOr<uint64_t> SharedObjectTracker::size() const {
  struct stat st {};
  if (::fstat(fd_.get(), &st) != 0) return errno_status(errno, fmt::format("fstat({})", fd_.get()));
  return static_cast<uint64_t>(st.st_size);
}

absl::Status SharedObjectTracker::each_data_range(
    absl::FunctionRef<absl::Status(PageRange)> action) const {
  // lseek(2) with SEEK_DATA moves the file offset: only on a description of our own. A duplicate of
  // the program's is opened anew through /proc.
  GW_ASSIGN_OR_RETURN(const UniqueFd own, kernel::open(fmt::format("/proc/self/fd/{}", fd_.get()),
                                                       O_RDONLY | O_CLOEXEC));
  for (off_t at = 0;;) {
    const off_t data = ::lseek(own.get(), at, SEEK_DATA);
    if (data < 0 && errno == ENXIO) return absl::OkStatus();  // nothing but a hole
    if (data < 0) return errno_status(errno, fmt::format("lseek({}, SEEK_DATA)", fd_.get()));
    const off_t hole = ::lseek(own.get(), data, SEEK_HOLE);
    if (hole < 0 && errno == ENXIO) return absl::OkStatus();  // cut off meanwhile
    if (hole < 0) return errno_status(errno, fmt::format("lseek({}, SEEK_HOLE)", fd_.get()));
    GW_RETURN_IF_ERROR(action({static_cast<uint64_t>(data) / kPageSize * kPageSize,
                               round_up(static_cast<uint64_t>(hole))}));
    at = hole;
  }
}

absl::Status SharedObjectTracker::read(PageRange range) {
  // pread(2), not a mapping of ours: it populates no hole, and an object that shrinks meanwhile
  // gives less, not SIGBUS.
  size_t done = 0;
  const size_t wanted = range.end - range.start;
  while (done < wanted) {
    const ssize_t n = ::pread(fd_.get(), buffer_.get() + done, wanted - done,
                              static_cast<off_t>(range.start + done));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return errno_status(errno, fmt::format("pread({}, {})", fd_.get(), range.start));
    if (n == 0) break;
    done += static_cast<size_t>(n);
  }
  std::memset(buffer_.get() + done, 0, wanted - done);
  return absl::OkStatus();
}

uint64_t& SharedObjectTracker::hash_of(uint64_t offset) {
  const uint64_t page = offset / kPageSize;
  auto& chunk = hashes_[page / kPagesPerChunk];
  if (!chunk) chunk = std::make_unique<Hashes>();
  return (*chunk)[page % kPagesPerChunk];
}

absl::Status SharedObjectTracker::scan(PageSet& dirty, PageSet& dropped) {
  PageSet holds;
  const auto compare = [&](PageRange range) -> absl::Status {
    for (; range.start < range.end; range.start += kStepBytes) {
      const PageRange step{range.start, std::min(range.end, range.start + kStepBytes)};
      GW_RETURN_IF_ERROR(read(step));
      for (uint64_t at = step.start; at < step.end; at += kPageSize) {
        const std::byte* page = buffer_.get() + (at - step.start);
        if (is_zero_page(page)) continue;
        holds.add({at, at + kPageSize});
        const uint64_t hash = std::max<uint64_t>(1, XXH3_64bits_withSeed(page, kPageSize, seed_));
        uint64_t& before = hash_of(at);
        if (before != hash) dirty.add({at, at + kPageSize});
        before = hash;
      }
    }
    return absl::OkStatus();
  };
  GW_RETURN_IF_ERROR(each_data_range(compare));
  for (auto& [number, chunk] : hashes_) {
    for (uint64_t i = 0; i < kPagesPerChunk; ++i) {
      const uint64_t at = (number * kPagesPerChunk + i) * kPageSize;
      if ((*chunk)[i] == 0 || holds.contains(at)) continue;
      (*chunk)[i] = 0;
      dropped.add({at, at + kPageSize});
    }
  }
  return absl::OkStatus();
}

absl::Status SharedObjectTracker::send(uint64_t object, const PageSet& pages,
                                       stream::Writer& writer, SendControl& control) {
  for (PageRange range : pages) {
    for (; range.start < range.end; range.start += kStepBytes) {
      const PageRange step{range.start, std::min(range.end, range.start + kStepBytes)};
      GW_RETURN_IF_ERROR(read(step));
      // What is read now may be newer than what was hashed: then the next scan finds it again.
      GW_RETURN_IF_ERROR(control.admit(step.end - step.start));
      const stream::PageRun run{step.start, static_cast<uint32_t>(step.pages())};
      const iovec data = {buffer_.get(), step.end - step.start};
      GW_RETURN_IF_ERROR(writer.pages(stream::kSharedSpace | object, {&run, 1}, {&data, 1}));
      control.pages_sent += step.pages();
    }
  }
  return absl::OkStatus();
}

absl::Status apply_to_object(int fd, const stream::Pages& frame) {
  std::span<const std::byte> data = frame.data;
  for (const stream::PageRun& run : frame.runs) {
    const size_t bytes = run.count * kPageSize;
    if (bytes > data.size())
      return make_error(absl::StatusCode::kInvalidArgument, "shared object: less data than pages");
    for (size_t done = 0; done < bytes;) {
      const ssize_t n =
          ::pwrite(fd, data.data() + done, bytes - done, static_cast<off_t>(run.address + done));
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) return errno_status(errno, fmt::format("pwrite({}, {})", fd, run.address + done));
      done += static_cast<size_t>(n);
    }
    data = data.subspan(bytes);
  }
  return absl::OkStatus();
}

absl::Status drop_from_object(int fd, const stream::PagesDropped& frame) {
  for (const stream::PageRun& run : frame.runs) {
    // EINTR has done nothing or all of it: both may be done again.
    while (::fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                       static_cast<off_t>(run.address),
                       static_cast<off_t>(run.count * kPageSize)) != 0) {
      if (errno != EINTR)
        return errno_status(errno, fmt::format("fallocate({}, PUNCH_HOLE, {})", fd, run.address));
    }
  }
  return absl::OkStatus();
}

}  // namespace godwit::pages
