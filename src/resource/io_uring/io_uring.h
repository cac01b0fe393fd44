// Rings of io_uring(7).
//
// Facts (io_uring/io_uring.c, Linux 6.18). A ring is a struct io_ring_ctx behind a file of its own
// inode, and two pieces of memory that the program maps of it: both rings, and the entries. How
// many entries the kernel has taken and how many results it has given it keeps for itself as well,
// in numbers of 32 bits that only requests move: a new ring gets there by requests that do nothing
// (IORING_OP_NOP, some 70 ns each). A request under way is counted in the struct io_uring_task of
// the thread that made it.
#ifndef GODWIT_RESOURCE_IO_URING_IO_URING_H_
#define GODWIT_RESOURCE_IO_URING_IO_URING_H_

#include <span>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "resource/io_uring/io_uring.pb.h"
#include "resource/resource.h"
#include "tracee/batch.h"

namespace godwit::resource {

inline constexpr std::string_view kIoUringLink = "anon_inode:[io_uring]";

const FileKind& io_uring_kind();

// Requests under way of a thread, to all of its rings. Of those that a device has done with, the
// thread itself does the rest as soon as it runs.
absl::StatusOr<int64_t> io_uring_requests(HostPid tid, const kernel::KernelMemory& memory);

absl::StatusOr<IoUringState> parse_io_uring(std::string_view bytes);

// What follows is for the last epoch, when descriptors are at their places, in this order; `fd` is
// ours.
absl::Status register_with_io_uring(const IoUringState& state, int fd,
                                    const RestoreContext& context);
// A ring with an issuer is moved on by nobody but it (others have been, by update()): adds calls
// for its thread, which has the ring open as `number`, to be run and called again until it adds
// nothing.
absl::Status add_io_uring_progress(const IoUringState& state, int fd, int number, bool first,
                                   tracee::Batch& batch);
// Writes what is mapped.
absl::Status complete_io_uring(const IoUringState& state, int fd);

}  // namespace godwit::resource

#endif  // GODWIT_RESOURCE_IO_URING_IO_URING_H_
