#include "kernel/huge_pages.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/magic.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <charconv>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "base/status.h"
#include "base/unique_fd.h"
#include "kernel/syscalls.h"

namespace godwit::kernel {
namespace {

// 64 KiB, the least on any CPU, to 16 GiB, the most.
constexpr unsigned kSmallestShift = 16;
constexpr unsigned kLargestShift = 34;
constexpr int kMadvPopulateWrite = 23;  // <linux/mman.h>, Linux 5.14

struct Size {
  dev_t device;
  uint64_t page_bytes;
};

// Making one takes no page. The mounts are there from boot on.
std::vector<Size> find_sizes() {
  std::vector<Size> sizes;
  for (unsigned shift = kSmallestShift; shift <= kLargestShift; ++shift) {
    const auto fd = memfd_create("huge", MFD_CLOEXEC | MFD_HUGETLB | (shift << kHugeShift));
    struct stat stat {};
    if (fd.ok() && ::fstat(fd->get(), &stat) == 0)
      sizes.push_back({stat.st_dev, uint64_t{1} << shift});
  }
  return sizes;
}

const std::vector<Size>& sizes() {
  static const std::vector<Size> found = find_sizes();
  return found;
}

absl::StatusOr<uint64_t> number_of_pool(uint64_t page_bytes, std::string_view name) {
  const std::string path =
      fmt::format("/sys/kernel/mm/hugepages/hugepages-{}kB/{}", page_bytes >> 10, name);
  GW_ASSIGN_OR_RETURN(const std::string text, read_file(path, 64));
  uint64_t value = 0;
  if (std::from_chars(text.data(), text.data() + text.size(), value).ec != std::errc())
    return make_error(absl::StatusCode::kInvalidArgument, "{}: \"{}\" is no number", path, text);
  return value;
}

// A userfaultfd for a shared mapping of ours. Not asked for anything by faults: nothing waits.
absl::StatusOr<UniqueFd> watch(void* start, uint64_t bytes) {
  UniqueFd uffd(
      static_cast<int>(::syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY)));
  if (!uffd) return errno_status(errno, "userfaultfd()");
  uffdio_api api{UFFD_API, UFFD_FEATURE_MINOR_HUGETLBFS, 0};
  if (::ioctl(uffd.get(), UFFDIO_API, &api) != 0)
    return errno_status(errno, "ioctl(UFFDIO_API, MINOR_HUGETLBFS)");
  uffdio_register request{};
  request.range = {reinterpret_cast<uint64_t>(start), bytes};
  request.mode = UFFDIO_REGISTER_MODE_MINOR;
  if (::ioctl(uffd.get(), UFFDIO_REGISTER, &request) != 0)
    return errno_status(errno, "ioctl(UFFDIO_REGISTER, MINOR)");
  return uffd;
}

// The lines of smaps of pages that are there, by the mapping's start: bytes.
absl::StatusOr<std::vector<std::pair<uint64_t, uint64_t>>> bytes_there(HostPid pid) {
  GW_ASSIGN_OR_RETURN(const std::string text, read_file(fmt::format("/proc/{}/smaps", pid.value)));
  std::vector<std::pair<uint64_t, uint64_t>> all;
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find('\n', at), text.size());
    const std::string_view line(text.data() + at, end - at);
    at = end + 1;
    uint64_t value = 0;
    if (line.starts_with("Private_Hugetlb:") || line.starts_with("Shared_Hugetlb:")) {
      const char* digits = line.data() + line.find_first_of("0123456789");
      if (!all.empty() && line.find_first_of("0123456789") != std::string_view::npos &&
          std::from_chars(digits, line.data() + line.size(), value).ec == std::errc())
        all.back().second += value << 10;
    } else if (!line.empty() && (line.front() < 'A' || line.front() > 'Z') &&
               std::from_chars(line.data(), line.data() + line.size(), value, 16).ec ==
                   std::errc()) {
      all.emplace_back(value, 0);
    }
  }
  return all;
}

}  // namespace

absl::StatusOr<std::vector<HugePages>> read_huge_page_pools() {
  std::vector<HugePages> pools;
  for (const Size& size : sizes()) {
    const uint64_t bytes = size.page_bytes;
    GW_ASSIGN_OR_RETURN(const uint64_t free, number_of_pool(bytes, "free_hugepages"));
    GW_ASSIGN_OR_RETURN(const uint64_t reserved, number_of_pool(bytes, "resv_hugepages"));
    GW_ASSIGN_OR_RETURN(const uint64_t more, number_of_pool(bytes, "nr_overcommit_hugepages"));
    GW_ASSIGN_OR_RETURN(const uint64_t surplus, number_of_pool(bytes, "surplus_hugepages"));
    const uint64_t all = free + (more > surplus ? more - surplus : 0);
    pools.push_back({bytes, all > reserved ? all - reserved : 0});
  }
  return pools;
}

uint64_t huge_page_bytes(dev_t device) {
  for (const Size& size : sizes())
    if (size.device == device) return size.page_bytes;
  return 0;
}

uint64_t huge_page_bytes_of(int fd) {
  struct statfs fs {};
  if (::fstatfs(fd, &fs) != 0 || fs.f_type != HUGETLBFS_MAGIC) return 0;
  return static_cast<uint64_t>(fs.f_bsize);
}

unsigned huge_size_flag(uint64_t page_bytes) {
  return static_cast<unsigned>(std::countr_zero(page_bytes)) << kHugeShift;
}

bool has_huge_pages_of(uint64_t page_bytes) {
  return std::any_of(sizes().begin(), sizes().end(),
                     [&](const Size& size) { return size.page_bytes == page_bytes; });
}

absl::StatusOr<std::vector<bool>> huge_pages_there(int fd, uint64_t size, uint64_t page_bytes) {
  const uint64_t count = size / page_bytes;
  struct stat stat {};
  if (::fstat(fd, &stat) != 0) return errno_status(errno, fmt::format("fstat({})", fd));
  // It counts what is there.
  const uint64_t there = static_cast<uint64_t>(stat.st_blocks) * 512 / page_bytes;
  if (there == 0 || there >= count) return std::vector<bool>(count, there != 0);
  auto writable = open(fmt::format("/proc/self/fd/{}", fd), O_RDWR | O_CLOEXEC);
  if (!writable.ok()) return std::vector<bool>(count, true);
  void* memory = ::mmap(nullptr, count * page_bytes, PROT_READ, MAP_SHARED | MAP_NORESERVE,
                        writable->get(), 0);
  if (memory == MAP_FAILED)
    return errno_status(errno, fmt::format("mmap({} huge pages of {} bytes)", count, page_bytes));
  const auto unmapped = absl::MakeCleanup([&] { ::munmap(memory, count * page_bytes); });
  const auto uffd = watch(memory, count * page_bytes);
  // Sealed: userfaultfd wants what could be made writable.
  if (errno_of(uffd.status()) == EPERM) return std::vector<bool>(count, true);
  GW_RETURN_IF_ERROR(uffd.status());
  std::vector<bool> found(count);
  for (uint64_t i = 0; i < count; ++i) {
    uffdio_continue one{};
    do {
      one.range = {reinterpret_cast<uint64_t>(memory) + i * page_bytes, page_bytes};
    } while (::ioctl(uffd->get(), UFFDIO_CONTINUE, &one) != 0 &&
             (errno == EAGAIN || errno == EINTR));
    if (one.mapped == static_cast<int64_t>(page_bytes) || one.mapped == -EEXIST)
      found[i] = true;
    else if (one.mapped != -EFAULT)
      return errno_status(static_cast<int>(-one.mapped),
                          fmt::format("ioctl(UFFDIO_CONTINUE, huge page {})", i));
  }
  return found;
}

absl::Status populate_huge_pages(void* start, uint64_t bytes, uint64_t page_bytes) {
  const uint64_t first = reinterpret_cast<uint64_t>(start) / page_bytes * page_bytes;
  const uint64_t end =
      (reinterpret_cast<uint64_t>(start) + bytes + page_bytes - 1) / page_bytes * page_bytes;
  while (::madvise(reinterpret_cast<void*>(first), end - first, kMadvPopulateWrite) != 0)
    if (errno != EINTR && errno != EAGAIN)
      return make_error(absl::StatusCode::kResourceExhausted,
                        "no huge page of {} KiB is left on this node: raise nr_hugepages in "
                        "/sys/kernel/mm/hugepages/hugepages-{}kB",
                        page_bytes >> 10, page_bytes >> 10);
  return absl::OkStatus();
}

absl::StatusOr<HugePagesOf> huge_pages_of(HostPid pid) {
  HugePagesOf found;
  GW_ASSIGN_OR_RETURN(std::vector<Mapping> maps, read_maps(pid));
  if (std::none_of(maps.begin(), maps.end(),
                   [](const Mapping& one) { return huge_page_bytes(one) != 0; }))
    return found;
  GW_ASSIGN_OR_RETURN(maps, read_smaps(pid));
  GW_ASSIGN_OR_RETURN(const auto there, bytes_there(pid));
  for (const Mapping& mapping : maps) {
    const uint64_t page_bytes = huge_page_bytes(mapping);
    if (page_bytes == 0) continue;
    uint64_t bytes = mapping.size();
    if (mapping.has_flag("nr")) {
      bytes = 0;
      for (const auto& [start, some] : there)
        if (start >= mapping.start && start < mapping.end) bytes += some;
    }
    if (!mapping.shared) {
      found.own.push_back({page_bytes, bytes / page_bytes});
      continue;
    }
    found.objects.push_back({page_bytes, mapping.inode, bytes / page_bytes});
  }
  return found;
}

}  // namespace godwit::kernel
