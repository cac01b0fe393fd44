#include "resource/io_uring/ring.h"

#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "base/status.h"

namespace godwit::resource {
namespace {

constexpr size_t kWords = 8;  // of the two structures, before their addresses

uint64_t whole_pages(uint64_t bytes) {
  return (bytes + kIoUringPage - 1) / kIoUringPage * kIoUringPage;
}

}  // namespace

std::string offsets_of(const io_uring_params& params) {
  RingOffsets offsets{};
  static_assert(offsetof(io_sqring_offsets, resv1) == 4 * (kWords - 1));
  static_assert(offsetof(io_cqring_offsets, resv1) == 4 * (kWords - 1));
  std::memcpy(offsets.sq, &params.sq_off, sizeof offsets.sq);
  std::memcpy(offsets.cq, &params.cq_off, sizeof offsets.cq);
  offsets.sq[kWords - 1] = offsets.cq[kWords - 1] = 0;
  return std::string(reinterpret_cast<const char*>(&offsets), sizeof offsets);
}

absl::StatusOr<RingOffsets> parse_offsets(std::string_view text, uint64_t bytes) {
  RingOffsets offsets{};
  if (text.size() != sizeof offsets) return absl::DataLossError("offsets of a ring are too few");
  std::memcpy(&offsets, text.data(), sizeof offsets);
  for (const auto* some : {offsets.sq, offsets.cq})
    for (size_t i = 0; i < kWords; ++i)
      if (some[i] % 4 != 0 || uint64_t{some[i]} + 4 > bytes)
        return absl::DataLossError("offsets of a ring lead out of it");
  return offsets;
}

absl::StatusOr<UniqueFd> set_up_ring(uint32_t entries, uint32_t results, uint32_t setup,
                                     io_uring_params& params) {
  params = {};
  params.flags = setup;
  if ((setup & IORING_SETUP_CQSIZE) != 0 || results != 2 * entries) {
    params.flags |= IORING_SETUP_CQSIZE;
    params.cq_entries = results;
  }
  UniqueFd fd(static_cast<int>(::syscall(SYS_io_uring_setup, entries, &params)));
  if (!fd)
    return errno_status(errno, fmt::format("io_uring_setup({}, flags {:#x})", entries, setup));
  if (params.sq_entries != entries || params.cq_entries != results)
    return make_error(absl::StatusCode::kFailedPrecondition,
                      "a ring of {} entries and {} results became one of {} and {}", entries,
                      results, params.sq_entries, params.cq_entries);
  return fd;
}

absl::StatusOr<RingMemory> RingMemory::map(int fd, uint64_t offset, uint64_t bytes) {
  void* at =
      ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, static_cast<off_t>(offset));
  if (at == MAP_FAILED)
    return errno_status(errno, fmt::format("mmap(io_uring, {} bytes at {:#x})", bytes, offset));
  return RingMemory({static_cast<std::byte*>(at), bytes});
}

RingMemory::~RingMemory() {
  if (!memory_.empty()) ::munmap(memory_.data(), memory_.size());
}

uint64_t entries_bytes(const IoUringState& state) {
  const uint64_t one = (state.setup() & IORING_SETUP_SQE128) != 0 ? 128 : 64;
  return whole_pages(state.sq_entries() * one);
}

uint64_t rings_bytes(const IoUringState& state) {
  RingOffsets offsets{};
  if (state.offsets().size() != sizeof offsets) return 0;
  std::memcpy(&offsets, state.offsets().data(), sizeof offsets);
  const uint64_t one = (state.setup() & IORING_SETUP_CQE32) != 0 ? 32 : 16;
  uint64_t end = offsets.cq[5] + state.cq_entries() * one;
  if ((state.setup() & kSetupNoSqArray) == 0)
    end = std::max(end, offsets.sq[6] + state.sq_entries() * uint64_t{4});
  return whole_pages(end);
}

}  // namespace godwit::resource
