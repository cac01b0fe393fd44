// What a move would have to carry, before anything is tracked: by the kernel's counters, and by a
// sample of pages for how many of them are zero.
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <random>

#include "base/status.h"
#include "kernel/proc/memory.h"
#include "kernel/syscalls.h"
#include "pages/tracker.h"
#include "process/source.h"
#include "tracee/memory.h"

namespace godwit::process {
namespace {

constexpr size_t kTries = 1024;                       // pages looked for, over all processes
constexpr size_t kTriesAtLeast = 8;                   // of one process
constexpr uint64_t kPagePresent = uint64_t{1} << 63;  // Documentation/admin-guide/mm/pagemap.rst

struct Sample {
  uint64_t pages = 0;
  uint64_t zero = 0;
};

// Only pages that are there: reading others would populate them.
absl::StatusOr<Sample> sample_of(HostPid pid, size_t tries, std::mt19937_64& random) {
  GW_ASSIGN_OR_RETURN(const auto maps, kernel::read_maps(pid));
  std::vector<pages::TrackedMapping> mappings = pages::private_mappings(maps);
  std::erase_if(mappings, [](const pages::TrackedMapping& each) {
    return each.kind != pages::MappingKind::kPrivateAnonymous;
  });
  uint64_t all = 0;
  for (const auto& each : mappings) all += each.mapping.end - each.mapping.start;
  Sample sample;
  if (all == 0) return sample;
  GW_ASSIGN_OR_RETURN(const UniqueFd pagemap,
                      kernel::open(fmt::format("/proc/{}/pagemap", pid.value), O_RDONLY));
  std::array<std::byte, pages::kPageSize> page{};
  for (size_t i = 0; i < tries; ++i) {
    uint64_t at = random() % (all / pages::kPageSize) * pages::kPageSize;
    for (const auto& each : mappings) {
      const uint64_t size = each.mapping.end - each.mapping.start;
      if (at >= size) {
        at -= size;
        continue;
      }
      at += each.mapping.start;
      break;
    }
    uint64_t entry = 0;
    const auto where = static_cast<off_t>(at / pages::kPageSize * sizeof entry);
    if (::pread(pagemap.get(), &entry, sizeof entry, where) != sizeof entry ||
        (entry & kPagePresent) == 0 || !tracee::read_memory(pid, RemoteAddress{at}, page).ok())
      continue;
    ++sample.pages;
    if (std::all_of(page.begin(), page.end(), [](std::byte b) { return b == std::byte{0}; }))
      ++sample.zero;
  }
  return sample;
}

}  // namespace

absl::StatusOr<MemoryEstimate> Source::estimate() const {
  GW_ASSIGN_OR_RETURN(const std::vector<HostPid> members, host_.members());
  MemoryEstimate estimate;
  Sample seen;
  std::mt19937_64 random(1);  // any pages will do, and the same program gives the same answer
  const size_t tries = std::max(kTries / std::max<size_t>(1, members.size()), kTriesAtLeast);
  uint64_t shared = 0;
  for (const HostPid pid : members) {
    const auto memory = kernel::read_process_memory(pid);
    if (errno_of(memory.status()) == ENOENT || errno_of(memory.status()) == ESRCH) continue;
    GW_RETURN_IF_ERROR(memory.status());
    estimate.resident_pages += (memory->anonymous + memory->swapped) / pages::kPageSize;
    // Mostly one object that all of them map, and never more than all of them together.
    shared = std::max(shared, (memory->shared + memory->huge) / pages::kPageSize);
    const auto sample = sample_of(pid, tries, random);
    if (!sample.ok()) continue;  // it ends, or has no memory
    seen.pages += sample->pages;
    seen.zero += sample->zero;
  }
  if (seen.pages > 0)
    estimate.zero_pages =
        static_cast<uint64_t>(static_cast<double>(estimate.resident_pages) *
                              static_cast<double>(seen.zero) / static_cast<double>(seen.pages));
  estimate.resident_pages += shared;
  return estimate;
}

}  // namespace godwit::process
