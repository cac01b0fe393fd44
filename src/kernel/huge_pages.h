// Explicit huge pages: MAP_HUGETLB (mmap(2)), MFD_HUGETLB (memfd_create(2)), SHM_HUGETLB
// (shmget(2)). Each size has a pool of its own
// (Documentation/admin-guide/mm/hugetlbpage.rst, /sys/kernel/mm/hugepages).
//
// Facts (fs/hugetlbfs/inode.c, mm/hugetlb.c; tried on Linux 6.18): all memory without a name of one
// size is files of one mount that nobody sees, by whose device number maps show it; hugetlbfs that
// somebody mounts has another one. A mapping reserves its pages when it is made, a shared one once
// for all who map the object, but with MAP_NORESERVE ("nr" in VmFlags). Such files can be read, not
// written; lseek(2) SEEK_DATA does not know their holes. UFFDIO_CONTINUE (Linux 5.13) maps a page
// that is there and fails with EFAULT where none is.
#ifndef GODWIT_KERNEL_HUGE_PAGES_H_
#define GODWIT_KERNEL_HUGE_PAGES_H_

#include <cstdint>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "base/ids.h"
#include "kernel/proc/maps.h"

namespace godwit::kernel {

// As maps show anonymous memory of huge pages, private or shared.
inline constexpr std::string_view kAnonymousHugePages = "/anon_hugepage (deleted)";

struct HugePages {
  uint64_t page_bytes = 0;
  uint64_t pages = 0;
};
// By size, those that may still be reserved: free and not reserved, or to be had above the pool's
// size (nr_overcommit_hugepages).
absl::StatusOr<std::vector<HugePages>> read_huge_page_pools();

// Bytes of a page of the kernel's own hugetlbfs mounts, 0: it is none of these.
uint64_t huge_page_bytes(dev_t device);
inline uint64_t huge_page_bytes(const Mapping& mapping) {
  return mapping.dev == 0 ? 0 : huge_page_bytes(mapping.dev);
}
// Of a descriptor, on a mounted hugetlbfs too; 0: it is not on one.
uint64_t huge_page_bytes_of(int fd);

// For the flags of mmap(2), memfd_create(2) and shmget(2): the size in the place where all of them
// have it (MAP_HUGE_SHIFT). Has the kernel pages of that size?
inline constexpr int kHugeShift = 26;
unsigned huge_size_flag(uint64_t page_bytes);
bool has_huge_pages_of(uint64_t page_bytes);

// Which pages of a hugetlbfs file of `size` bytes are there, by their number. An open one, of a
// memfd that may not be written to any more: all but where none at all is there.
absl::StatusOr<std::vector<bool>> huge_pages_there(int fd, uint64_t size, uint64_t page_bytes);

// A writable mapping of our own has these pages afterwards, or an error where the pool has none: a
// touch would be a SIGBUS.
absl::Status populate_huge_pages(void* start, uint64_t bytes, uint64_t page_bytes);

// What a process's own mappings take of a pool, and the objects that it maps.
struct HugePagesOf {
  struct Object {
    uint64_t page_bytes = 0;
    uint64_t inode = 0;
    uint64_t pages = 0;
  };
  std::vector<HugePages> own;  // by mapping
  std::vector<Object> objects;
};
// Reserved pages, or those that are there where none are reserved.
absl::StatusOr<HugePagesOf> huge_pages_of(HostPid pid);

}  // namespace godwit::kernel

#endif  // GODWIT_KERNEL_HUGE_PAGES_H_
