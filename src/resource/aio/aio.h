// Queues of asynchronous I/O: io_setup(2), io_submit(2), io_getevents(2).
//
// Facts (fs/aio.c, Linux 6.18). A queue is a struct kioctx in a table of the mm, and a ring of
// events that both the kernel and the program see: a shared mapping of "/[aio]", whose address is
// the program's aio_context_t. mremap(2) of the whole ring changes that address
// (aio_ring_mremap()). The ring's header has the queue's index in the table, by which the kernel
// finds it, and where its first and last events are; the latter the kernel keeps for itself too,
// and only a request that ends moves it. Each request under way holds a reference of
// kioctx.reqs, and the queue itself one. fork(2) copies
// the mapping, not the queue. A ring has room for twice max(max_requests, 4 * possible
// CPUs) and 2 more, rounded up to whole pages, with one header's room less.
#ifndef GODWIT_RESOURCE_AIO_AIO_H_
#define GODWIT_RESOURCE_AIO_AIO_H_

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/ids.h"
#include "kernel/kernel_memory.h"
#include "resource/aio/aio.pb.h"
#include "resource/resource.h"
#include "tracee/batch.h"

namespace godwit::resource {

// `rings`: what is mapped of "/[aio]". kUnavailable: requests are under way, which end by
// themselves or not; nothing new comes while the process stands still. kFailedPrecondition: what
// is mapped is not a whole ring.
absl::StatusOr<AioState> read_aio(HostPid pid, std::span<const AddressRange> rings,
                                  const kernel::KernelMemory& memory);
// Why it could not be read, but for requests under way.
void refuse_aio(const absl::Status& read, std::string_view process, std::vector<Refusal>& refusals);

absl::StatusOr<AioState> parse_aio(std::string_view bytes);
// kFailedPrecondition: this machine cannot make a ring of that many bytes, since it has more CPUs.
absl::Status check_aio_size(uint64_t ring_bytes);

// Makes the queues at their addresses, where nothing may be mapped, in a process that has none.
absl::Status add_aio_calls(const AioState& state, tracee::Batch& batch);
// Moves the kernel's place in each ring on by requests that end at once, as far as it is not where
// it has to be in process `pid`, which has an empty file (memfd) open as `file`: to be run and
// called again until it adds nothing.
absl::Status add_aio_progress(const AioState& state, HostPid pid, int file, tracee::Batch& batch);
// At the end: the rings as the program had them.
absl::Status write_aio_rings(const AioState& state, HostPid pid);

}  // namespace godwit::resource

#endif  // GODWIT_RESOURCE_AIO_AIO_H_
