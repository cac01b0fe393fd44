#include "pages/pinned.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <vector>

#include "base/status.h"
#include "kernel/syscalls.h"

namespace godwit::pages {
namespace {

using kernel::KernelAddress;

constexpr uint64_t kPresent = uint64_t{1} << 63;  // Documentation/admin-guide/mm/pagemap.rst
constexpr uint64_t kFrame = (uint64_t{1} << 55) - 1;
constexpr int32_t kPin = 1024;  // GUP_PIN_COUNTING_BIAS, <linux/mm.h>
constexpr uint64_t kAtOnce = 128;
constexpr uint64_t kMostPageBytes = 256;

// One page of ours: its frame, and its struct page.
struct Own {
  uint64_t frame = 0;
  KernelAddress page;
};

absl::StatusOr<Own> own_page(const kernel::KernelMemory& memory) {
  const UniqueFd fd(::memfd_create("godwit-page", MFD_CLOEXEC));
  if (!fd) return errno_status(errno, "memfd_create(godwit-page)");
  if (::ftruncate(fd.get(), kPageSize) != 0) return errno_status(errno, "ftruncate(memfd)");
  void* at = ::mmap(nullptr, kPageSize, PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0);
  if (at == MAP_FAILED) return errno_status(errno, "mmap(memfd)");
  Own own;
  const auto look = [&]() -> absl::Status {
    // It stays there while it is looked at.
    if (::mlock(at, kPageSize) != 0) return errno_status(errno, "mlock(memfd)");
    *static_cast<volatile char*>(at) = 1;
    GW_ASSIGN_OR_RETURN(const UniqueFd map,
                        kernel::open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC));
    uint64_t entry = 0;
    const auto where = static_cast<off_t>(reinterpret_cast<uint64_t>(at) / kPageSize * 8);
    if (::pread(map.get(), &entry, sizeof entry, where) != sizeof entry)
      return errno_status(errno, "pread(/proc/self/pagemap)");
    own.frame = entry & kFrame;
    if ((entry & kPresent) == 0 || own.frame == 0)
      return absl::PermissionDeniedError("/proc/self/pagemap shows no frames");
    GW_ASSIGN_OR_RETURN(const KernelAddress file, memory.file(fd.get()));
    GW_ASSIGN_OR_RETURN(const KernelAddress mapping, memory.pointer(file, "file", "f_mapping"));
    // An array with the first entry alone has it in the place of its tree (xarray.h).
    GW_ASSIGN_OR_RETURN(own.page, memory.pointer(mapping, "address_space", "i_pages.xa_head"));
    if (!own.page || (own.page.value & 3) != 0)
      return absl::UnimplementedError("a file's only page is not where it should be");
    return absl::OkStatus();
  };
  const absl::Status looked = look();
  ::munmap(at, kPageSize);
  GW_RETURN_IF_ERROR(looked);
  return own;
}

}  // namespace

absl::Status PinnedPages::find_offsets() {
  GW_ASSIGN_OR_RETURN(const kernel::Btf::Field head, memory_->btf().field("page", "compound_head"));
  GW_ASSIGN_OR_RETURN(const kernel::Btf::Field count,
                      memory_->btf().field("page", "_refcount.counter"));
  GW_ASSIGN_OR_RETURN(page_bytes_, memory_->btf().size("page"));
  if (page_bytes_ == 0 || page_bytes_ > kMostPageBytes || head.offset + 8 > page_bytes_ ||
      count.offset + 4 > page_bytes_)
    return absl::UnimplementedError("struct page is not as it should be");
  head_ = head.offset;
  count_ = count.offset;
  // All of them are in one array (CONFIG_SPARSEMEM_VMEMMAP, which x86-64 always has).
  GW_ASSIGN_OR_RETURN(const Own own, own_page(*memory_));
  first_ = own.page.value - own.frame * page_bytes_;
  return absl::OkStatus();
}

absl::StatusOr<PinnedPages> PinnedPages::open(const kernel::KernelMemory& memory) {
  PinnedPages pinned(memory);
  GW_RETURN_IF_ERROR(pinned.find_offsets());
  return pinned;
}

absl::Status PinnedPages::look(uint64_t first_frame, uint64_t address, uint64_t count,
                               PageSet& pinned) const {
  // With the one behind, which says of the last whether it is the first of a large one.
  std::vector<std::byte> bytes((count + 1) * page_bytes_);
  const uint64_t at = first_ + first_frame * page_bytes_;
  if (!memory_->read({at}, bytes).ok()) {
    bytes.assign(bytes.size(), std::byte{});  // there is none behind
    GW_RETURN_IF_ERROR(memory_->read({at}, std::span(bytes).first(count * page_bytes_)));
  }
  const auto head_of = [&](uint64_t i) {
    uint64_t head = 0;
    std::memcpy(&head, bytes.data() + i * page_bytes_ + head_, sizeof head);
    return head;
  };
  for (uint64_t i = 0; i < count; ++i) {
    const uint64_t self = at + i * page_bytes_;
    bool held = false;
    if (const bool behind = (head_of(i) & 1) != 0; behind || head_of(i + 1) == (self | 1)) {
      // All of a large one is taken for pinned if any of it is.
      const KernelAddress large{behind ? head_of(i) - 1 : self};
      GW_ASSIGN_OR_RETURN(const uint64_t pins,
                          memory_->number(large, "folio", "_pincount.counter"));
      held = pins != 0;
    } else {
      int32_t references = 0;
      std::memcpy(&references, bytes.data() + i * page_bytes_ + count_, sizeof references);
      held = references >= kPin;
    }
    if (held) pinned.add({address + i * kPageSize, address + (i + 1) * kPageSize});
  }
  return absl::OkStatus();
}

absl::StatusOr<PageSet> PinnedPages::among(HostPid pid, const PageSet& pages) const {
  PageSet pinned;
  if (pages.empty()) return pinned;
  GW_ASSIGN_OR_RETURN(const UniqueFd map, kernel::open(fmt::format("/proc/{}/pagemap", pid.value),
                                                       O_RDONLY | O_CLOEXEC));
  std::array<uint64_t, kAtOnce> entries{};
  for (const PageRange& range : pages) {
    for (uint64_t at = range.start; at < range.end; at += kAtOnce * kPageSize) {
      const uint64_t count = std::min(kAtOnce, (range.end - at) / kPageSize);
      const ssize_t got =
          ::pread(map.get(), entries.data(), count * 8, static_cast<off_t>(at / kPageSize * 8));
      if (got < 0) return errno_status(errno, fmt::format("pread(/proc/{}/pagemap)", pid.value));
      // Short at the end of what it may map, and empty when it has ended.
      const uint64_t known = static_cast<uint64_t>(got) / 8;
      for (uint64_t i = 0; i < known;) {
        if ((entries[i] & kPresent) == 0) {
          ++i;
          continue;
        }
        uint64_t run = 1;
        while (i + run < known && entries[i + run] == entries[i] + run) ++run;
        GW_RETURN_IF_ERROR(look(entries[i] & kFrame, at + i * kPageSize, run, pinned));
        i += run;
      }
    }
  }
  return pinned;
}

}  // namespace godwit::pages
