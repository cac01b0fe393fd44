#include <fmt/format.h>
#include <linux/aio_abi.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "base/status.h"
#include "kernel/syscalls.h"
#include "resource/aio/aio.h"
#include "resource/aio/ring.h"
#include "resource/state_codec.h"
#include "tracee/memory.h"

namespace godwit::resource {
namespace {

using tracee::Batch;

constexpr uint32_t kAtOnce = 512;

// num_possible_cpus(); sysconf(3) counts those that are configured, which is the same.
uint64_t possible_cpus() {
  const long count = ::sysconf(_SC_NPROCESSORS_CONF);
  return count > 0 ? static_cast<uint64_t>(count) : 1;
}

// What io_setup(2) has to be asked for here to give a ring of as many bytes. The kernel counts
// what it is asked for (/proc/sys/fs/aio-nr): the same as at the source, if that does.
absl::StatusOr<uint64_t> requests_for(const AioRingState& ring) {
  const uint64_t bytes = ring.memory().size();
  const uint64_t cpus = possible_cpus();
  if (ring_bytes(ring.max_requests(), cpus) == bytes) return ring.max_requests();
  GW_RETURN_IF_ERROR(check_aio_size(bytes));
  // The most that fits: made where there are more CPUs than here.
  const uint64_t most = most_requests(bytes);
  if (ring_bytes(most, cpus) != bytes)
    return make_error(absl::StatusCode::kDataLoss, "a queue of {} requests has no ring of {} bytes",
                      ring.max_requests(), bytes);
  return most;
}

absl::StatusOr<AioRingHeader> header_of(HostPid pid, const AioRingState& ring) {
  AioRingHeader header{};
  GW_RETURN_IF_ERROR(
      tracee::read_memory(pid, {ring.address()}, std::as_writable_bytes(std::span(&header, 1))));
  if (header.id != ring.index() || header.events != events_in(ring.memory().size()))
    return make_error(absl::StatusCode::kInternal, "queue {} became number {} with {} events",
                      ring.index(), header.id, header.events);
  return header;
}

}  // namespace

absl::StatusOr<AioState> parse_aio(std::string_view bytes) {
  GW_ASSIGN_OR_RETURN(auto state, parse_state<AioState>(bytes, "aio"));
  int64_t before = -1;
  for (const AioRingState& ring : state.rings()) {
    const uint64_t size = ring.memory().size();
    if (ring.index() >= kMostQueues || int64_t{ring.index()} <= before ||
        ring.max_requests() == 0 || size == 0 || size % kRingPage != 0 || size > kMostRingBytes ||
        ring.tail() >= events_in(size) || ring.address() % kRingPage != 0)
      return absl::DataLossError("state of aio: a queue cannot be right");
    before = ring.index();
  }
  return state;
}

absl::Status check_aio_size(uint64_t bytes) {
  const uint64_t least = ring_bytes(1, possible_cpus());
  if (bytes >= least) return absl::OkStatus();
  return make_error(absl::StatusCode::kFailedPrecondition,
                    "a queue of asynchronous I/O has a ring of {} bytes, and this machine makes "
                    "none of less than {}, since it may have {} CPUs",
                    bytes, least, possible_cpus());
}

absl::Status add_aio_calls(const AioState& state, Batch& batch) {
  // io_setup(2) writes the address into its user's first argument.
  const auto used_by = [&](size_t made, size_t user) {
    batch.set_argument(made, 1, Batch::PlaceOf{user, 0});
  };
  // Their places are taken first, so that the kernel puts none over an edge of one.
  for (const AioRingState& ring : state.rings())
    batch.call(SYS_mmap,
               {ring.address(), ring.memory().size(), PROT_NONE,
                MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0},
               true);
  std::vector<size_t> fillers;
  uint32_t next = 0;
  for (const AioRingState& ring : state.rings()) {
    const uint64_t bytes = ring.memory().size();
    GW_ASSIGN_OR_RETURN(const uint64_t requests, requests_for(ring));
    // The kernel gives the lowest index that is free.
    for (; next < ring.index(); ++next) fillers.push_back(batch.call(SYS_io_setup, {1, 0}, true));
    next = ring.index() + 1;
    const size_t made = batch.call(SYS_io_setup, {requests, 0}, true);
    used_by(made,
            batch.call(SYS_mremap, {0, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, ring.address()},
                       true));
  }
  for (const size_t filler : fillers) used_by(filler, batch.call(SYS_io_destroy, {0}, true));
  return absl::OkStatus();
}

// Reads of nothing, which end before io_submit(2) returns.
absl::Status add_aio_progress(const AioState& state, HostPid pid, int file, Batch& batch) {
  for (const AioRingState& ring : state.rings()) {
    GW_ASSIGN_OR_RETURN(const AioRingHeader header, header_of(pid, ring));
    if (header.tail > ring.tail())
      return make_error(absl::StatusCode::kInternal, "queue {} is at event {}, not {}",
                        ring.index(), header.tail, ring.tail());
    uint32_t left = ring.tail() - header.tail;
    if (left == 0) continue;
    // What a CPU keeps of a queue's room for itself is at most a half (kioctx.req_batch).
    const uint32_t at_once = std::clamp<uint32_t>(header.events / 4, 1, kAtOnce);
    iocb request{};
    request.aio_lio_opcode = IOCB_CMD_PREAD;
    request.aio_fildes = static_cast<uint32_t>(file);
    const Batch::Data data = batch.data(bytes_of(request));
    const Batch::Data list = batch.reserve(at_once * sizeof(uint64_t));
    for (uint32_t i = 0; i < at_once; ++i) batch.patch_pointer(list, i * sizeof(uint64_t), data);
    const Batch::Data events = batch.reserve(at_once * sizeof(io_event));
    const Batch::Data no_time = batch.reserve(sizeof(timespec));
    while (left > 0) {
      const uint32_t some = std::min(left, at_once);
      batch.call(SYS_io_submit, {ring.address(), some, list}, true);
      batch.call(SYS_io_getevents, {ring.address(), some, some, events, no_time}, true);
      left -= some;
    }
  }
  return absl::OkStatus();
}

absl::Status write_aio_rings(const AioState& state, HostPid pid) {
  for (const AioRingState& ring : state.rings()) {
    GW_ASSIGN_OR_RETURN(const AioRingHeader header, header_of(pid, ring));
    if (header.tail != ring.tail())
      return make_error(absl::StatusCode::kInternal, "queue {} is at event {}, not {}",
                        ring.index(), header.tail, ring.tail());
    GW_RETURN_IF_ERROR(
        tracee::write_memory(pid, {ring.address()},
                             std::as_bytes(std::span(ring.memory().data(), ring.memory().size()))));
  }
  return absl::OkStatus();
}

}  // namespace godwit::resource
