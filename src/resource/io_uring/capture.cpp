// What fdinfo shows of a ring is for people; all is read from the kernel's memory, which is at rest
// when nothing is under way.
#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/sysmacros.h>

#include <algorithm>
#include <cstring>

#include "base/clock.h"
#include "base/status.h"
#include "resource/file_description.h"
#include "resource/io_uring/io_uring.h"
#include "resource/io_uring/kind.h"
#include "resource/io_uring/ring.h"

namespace godwit::resource {
namespace {

using kernel::KernelAddress;
using kernel::KernelMemory;

// What is made anew as it was. R_DISABLED: not switched on yet.
constexpr uint32_t kCarried =
    IORING_SETUP_CQSIZE | IORING_SETUP_CLAMP | IORING_SETUP_R_DISABLED | IORING_SETUP_SUBMIT_ALL |
    IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG | IORING_SETUP_SQE128 |
    IORING_SETUP_CQE32 | IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | kSetupNoSqArray;
// Of these depends where things are.
constexpr uint32_t kLayout =
    IORING_SETUP_CQSIZE | IORING_SETUP_SQE128 | IORING_SETUP_CQE32 | kSetupNoSqArray;
// An issuer makes them in the freeze: 70 ms.
constexpr uint32_t kMostOfIssuer = uint32_t{1} << 20;
constexpr int kMostTasks = 1 << 16;
constexpr int kRingFds = 16;  // IO_RINGFD_REG_MAX
constexpr uint64_t kMostFiles = 1 << 15;
// What a worker of the kernel has begun ends without the program.
constexpr absl::Duration kUnderWay = absl::Milliseconds(5);
constexpr int64_t kNapNs = 100'000;

struct Ring {
  const KernelMemory& memory;
  KernelAddress at;

  absl::StatusOr<uint64_t> number(std::string_view path) const {
    return memory.number(at, "io_ring_ctx", path);
  }
};

absl::StatusOr<Ring> ring_of(const OpenFile& file, const CaptureContext& context) {
  GW_ASSIGN_OR_RETURN(const KernelMemory* memory, context.kernel_memory());
  GW_ASSIGN_OR_RETURN(const KernelAddress opened, memory->file(file.fd));
  GW_ASSIGN_OR_RETURN(const KernelAddress ring, memory->pointer(opened, "file", "private_data"));
  return Ring{*memory, ring};
}

// The struct io_uring_task of each thread that has used the ring.
absl::StatusOr<std::vector<KernelAddress>> users_of(const Ring& ring) {
  std::vector<KernelAddress> users;
  GW_ASSIGN_OR_RETURN(const KernelAddress head,
                      ring.memory.member(ring.at, "io_ring_ctx", "tctx_list"));
  GW_ASSIGN_OR_RETURN(const kernel::Btf::Field inside,
                      ring.memory.btf().field("io_tctx_node", "ctx_node"));
  KernelAddress at = head;
  for (int i = 0; i < kMostTasks; ++i) {
    GW_ASSIGN_OR_RETURN(at, ring.memory.pointer(at, "list_head", "next"));
    if (at == head || !at) return users;
    GW_ASSIGN_OR_RETURN(const KernelAddress task,
                        ring.memory.pointer({at.value - inside.offset}, "io_tctx_node", "task"));
    GW_ASSIGN_OR_RETURN(const KernelAddress user,
                        ring.memory.pointer(task, "task_struct", "io_uring"));
    if (user) users.push_back(user);
  }
  return absl::UnavailableError("a list of a ring's users has no end");
}

// struct percpu_counter: what the CPUs have not added yet is beside the sum.
absl::StatusOr<int64_t> requests_of(const KernelMemory& memory, KernelAddress user) {
  GW_ASSIGN_OR_RETURN(const KernelAddress counter,
                      memory.member(user, "io_uring_task", "inflight"));
  GW_ASSIGN_OR_RETURN(const uint64_t sum, memory.number(counter, "percpu_counter", "count"));
  GW_ASSIGN_OR_RETURN(const KernelAddress parts,
                      memory.pointer(counter, "percpu_counter", "counters"));
  GW_ASSIGN_OR_RETURN(const std::vector<KernelAddress> cpus, memory.of_cpus(parts));
  auto requests = static_cast<int64_t>(sum);
  for (const KernelAddress cpu : cpus) {
    int32_t part = 0;
    GW_RETURN_IF_ERROR(memory.read(cpu, std::as_writable_bytes(std::span(&part, 1))));
    requests += part;
  }
  // Taken in advance for requests to come.
  GW_ASSIGN_OR_RETURN(const uint64_t cached, memory.number(user, "io_uring_task", "cached_refs"));
  return requests - static_cast<int32_t>(cached);
}

// Of all rings of the threads that have used this one: what waits for another ring waits as well.
absl::StatusOr<int64_t> under_way(const Ring& ring) {
  GW_ASSIGN_OR_RETURN(const std::vector<KernelAddress> users, users_of(ring));
  int64_t sum = 0;
  for (const KernelAddress user : users) {
    GW_ASSIGN_OR_RETURN(const int64_t some, requests_of(ring.memory, user));
    sum += some;
  }
  return sum;
}

absl::StatusOr<bool> is_issuer(const Ring& ring, KernelAddress task, const OpenFile& file) {
  GW_ASSIGN_OR_RETURN(const KernelAddress leader, ring.memory.task(file.host_tgid));
  return leader == task;
}

// A description of the tree, by the kernel's struct file; 0: none.
absl::StatusOr<uint64_t> description_of(const KernelMemory& memory, KernelAddress file,
                                        std::span<const OpenFile* const> among) {
  for (const OpenFile* one : among) {
    if (one->fd < 0) continue;
    GW_ASSIGN_OR_RETURN(const KernelAddress opened, memory.file(one->fd));
    if (opened == file) return one->id;
  }
  return 0;
}

absl::StatusOr<std::vector<const OpenFile*>> with_inode_of(const KernelMemory& memory,
                                                           KernelAddress file,
                                                           const CaptureContext& context) {
  GW_ASSIGN_OR_RETURN(const KernelAddress inode, memory.pointer(file, "file", "f_inode"));
  GW_ASSIGN_OR_RETURN(const uint64_t number, memory.number(inode, "inode", "i_ino"));
  GW_ASSIGN_OR_RETURN(const KernelAddress file_system, memory.pointer(inode, "inode", "i_sb"));
  GW_ASSIGN_OR_RETURN(const uint64_t device, memory.number(file_system, "super_block", "s_dev"));
  constexpr unsigned kMinorBits = 20;  // of the kernel's own dev_t
  return context.with_inode(makedev(static_cast<unsigned>(device >> kMinorBits),
                                    static_cast<unsigned>(device & ((1U << kMinorBits) - 1))),
                            number);
}

absl::Status read_files(const Ring& ring, const CaptureContext& context, IoUringState& state) {
  GW_ASSIGN_OR_RETURN(const uint64_t count, ring.number("file_table.data.nr"));
  if (count == 0) return absl::OkStatus();
  if (count > kMostFiles)
    return make_error(absl::StatusCode::kFailedPrecondition, "{} registered files are too many",
                      count);
  GW_ASSIGN_OR_RETURN(const uint64_t list, ring.number("file_table.data.nodes"));
  std::vector<KernelAddress> nodes(count);
  GW_RETURN_IF_ERROR(ring.memory.read({list}, std::as_writable_bytes(std::span(nodes))));
  for (const KernelAddress node : nodes) {
    auto& file = *state.add_files();
    if (!node) continue;
    constexpr uint64_t kFlags = 7;  // FFS_MASK, io_uring/filetable.h
    GW_ASSIGN_OR_RETURN(const uint64_t tagged,
                        ring.memory.number(node, "io_rsrc_node", "file_ptr"));
    const KernelAddress opened{tagged & ~kFlags};
    GW_ASSIGN_OR_RETURN(const uint64_t tag, ring.memory.number(node, "io_rsrc_node", "tag"));
    GW_ASSIGN_OR_RETURN(const auto among, with_inode_of(ring.memory, opened, context));
    GW_ASSIGN_OR_RETURN(const uint64_t id, description_of(ring.memory, opened, among));
    if (id == 0)
      return absl::FailedPreconditionError(
          "a file is registered with it that no process has open any more, or one of an overlay");
    file.set_description(id);
    file.set_tag(tag);
  }
  return absl::OkStatus();
}

absl::Status read_eventfd(const Ring& ring, const CaptureContext& context, IoUringState& state) {
  GW_ASSIGN_OR_RETURN(const uint64_t at, ring.number("io_ev_fd"));
  if (at == 0) return absl::OkStatus();
  GW_ASSIGN_OR_RETURN(const KernelAddress wanted,
                      ring.memory.pointer({at}, "io_ev_fd", "cq_ev_fd"));
  GW_ASSIGN_OR_RETURN(const uint64_t async, ring.memory.number({at}, "io_ev_fd", "eventfd_async"));
  // All eventfds have one inode.
  const UniqueFd own(::eventfd(0, EFD_CLOEXEC));
  struct stat stat {};
  if (!own || ::fstat(own.get(), &stat) != 0) return errno_status(errno, "eventfd()");
  for (const OpenFile* one : context.with_inode(stat.st_dev, stat.st_ino)) {
    if (one->fd < 0 || one->link != "anon_inode:[eventfd]") continue;
    GW_ASSIGN_OR_RETURN(const KernelAddress file, ring.memory.file(one->fd));
    GW_ASSIGN_OR_RETURN(const KernelAddress event,
                        ring.memory.pointer(file, "file", "private_data"));
    if (event != wanted) continue;
    state.set_eventfd(one->id);
    state.set_eventfd_async(async != 0);
    return absl::OkStatus();
  }
  return absl::FailedPreconditionError(
      "an eventfd is registered with it that no process has open any more");
}

// What a ring can have that is not carried: where struct io_ring_ctx says so.
struct Extra {
  const char* member;
  const char* inside;  // of it, if it is a structure
  const char* code;
  const char* reason;
  const char* way_out;
};
constexpr Extra kExtras[] = {
    {.member = "buf_table",
     .inside = "nr",
     .code = "io_uring.buffers",
     .reason = "memory is registered with it (IORING_REGISTER_BUFFERS)",
     .way_out = "do without registered buffers"},
    {.member = "io_bl_xa",
     .inside = "xa_head",
     .code = "io_uring.provided_buffers",
     .reason = "buffers are provided to it (IORING_REGISTER_PBUF_RING, IORING_OP_PROVIDE_BUFFERS)",
     .way_out = "do without provided buffers"},
    {.member = "personalities",
     .inside = "xa_head",
     .code = "io_uring.personality",
     .reason = "credentials are registered with it (IORING_REGISTER_PERSONALITY)",
     .way_out = "do without"},
    {.member = "restrictions",
     .inside = "registered",
     .code = "io_uring.restrictions",
     .reason = "it is restricted (IORING_REGISTER_RESTRICTIONS)",
     .way_out = "do without restrictions"},
    {.member = "zcrx_ctxs",
     .inside = "xa_head",
     .code = "io_uring.feature",
     .reason = "it receives without copies",
     .way_out = "ordinary receives"},
    {.member = "param_region",
     .inside = "nr_pages",
     .code = "io_uring.feature",
     .reason = "a region of memory is registered with it",
     .way_out = "do without registered regions"},
    {.member = "iowq_limits",
     .inside = "",
     .code = "io_uring.feature",
     .reason = "the number of its workers is limited (IORING_REGISTER_IOWQ_MAX_WORKERS)",
     .way_out = "do without that limit"},
    {.member = "napi_busy_poll_dt",
     .inside = "",
     .code = "io_uring.feature",
     .reason = "it polls network devices (IORING_REGISTER_NAPI)",
     .way_out = "do without busy polling"},
};

absl::Status look_for_extras(const Ring& ring, const OpenFile& file,
                             std::vector<Refusal>& refusals) {
  GW_ASSIGN_OR_RETURN(const uint64_t setup, ring.number("flags"));
  if ((setup & IORING_SETUP_SQPOLL) != 0)
    refuse(file, "io_uring.sqpoll", "a thread of the kernel polls it (IORING_SETUP_SQPOLL)",
           "set the ring up without (libuv: UV_USE_IO_URING=0)", refusals);
  else if ((setup & ~uint64_t{kCarried}) != 0)
    refuse(file, "io_uring.setup",
           fmt::format("it was set up with flags {:#x}, which are not carried", setup & ~kCarried),
           "set it up without", refusals);
  for (const Extra& extra : kExtras) {
    const std::string path =
        fmt::format("{}{}{}", extra.member, *extra.inside != 0 ? "." : "", extra.inside);
    auto value = ring.number(path);
    // A kernel that does not have it.
    if (absl::IsNotFound(value.status())) continue;
    GW_RETURN_IF_ERROR(value.status());
    if (*value != 0) refuse(file, extra.code, extra.reason, extra.way_out, refusals);
  }
  GW_ASSIGN_OR_RETURN(const std::vector<KernelAddress> users, users_of(ring));
  for (const KernelAddress user : users) {
    GW_ASSIGN_OR_RETURN(const KernelAddress list,
                        ring.memory.member(user, "io_uring_task", "registered_rings"));
    KernelAddress rings[kRingFds];
    GW_RETURN_IF_ERROR(ring.memory.read(list, std::as_writable_bytes(std::span(rings))));
    for (const KernelAddress one : rings)
      if (one) {
        refuse(file, "io_uring.registered_ring",
               "a thread has registered a ring's descriptor (IORING_REGISTER_RING_FDS)",
               "do without io_uring_register_ring_fd()", refusals);
        return absl::OkStatus();
      }
  }
  return absl::OkStatus();
}

absl::Status look_at_issuer(const Ring& ring, const OpenFile& file,
                            std::vector<Refusal>& refusals) {
  GW_ASSIGN_OR_RETURN(const uint64_t issuer, ring.number("submitter_task"));
  GW_ASSIGN_OR_RETURN(const uint64_t taken, ring.number("cached_sq_head"));
  GW_ASSIGN_OR_RETURN(const uint64_t given, ring.number("cached_cq_tail"));
  const uint64_t requests = std::max(taken, given);
  if (issuer != 0) {
    GW_ASSIGN_OR_RETURN(const bool right, is_issuer(ring, {issuer}, file));
    if (!right)
      refuse(file, "io_uring.issuer",
             "only a thread may use it that is not the first of its process "
             "(IORING_SETUP_SINGLE_ISSUER)",
             "set it up without, or in the main thread", refusals);
    if (taken != given)
      refuse(file, "io_uring.results",
             "not every request gave one result, which a ring with a single issuer cannot be "
             "brought to",
             "set it up without IORING_SETUP_SINGLE_ISSUER", refusals);
  }
  if (requests > (issuer != 0 ? kMostOfIssuer : kMostRequests))
    refuse(file, "io_uring.requests",
           fmt::format("it has had {} requests, and as many would have to be made", requests),
           "restart the program, or let it set its ring up anew", refusals);
  return absl::OkStatus();
}

// Nothing of it moves: the program stands still.
absl::Status wait_for_requests(const Ring& ring, const OpenFile& file) {
  const Deadline deadline = Deadline::in(kUnderWay);
  for (;;) {
    GW_ASSIGN_OR_RETURN(const int64_t requests, under_way(ring));
    GW_ASSIGN_OR_RETURN(const uint64_t work, ring.number("work_llist.first"));
    GW_ASSIGN_OR_RETURN(const KernelAddress list,
                        ring.memory.member(ring.at, "io_ring_ctx", "cq_overflow_list"));
    GW_ASSIGN_OR_RETURN(const KernelAddress first, ring.memory.pointer(list, "list_head", "next"));
    if (first != list)
      return make_error(absl::StatusCode::kUnavailable,
                        "{}: results wait for room in the ring (IORING_SQ_CQ_OVERFLOW)",
                        object_of(file));
    if (requests == 0 && work == 0) return absl::OkStatus();
    if (deadline.passed())
      return make_error(absl::StatusCode::kUnavailable, "{}: {} requests are under way",
                        object_of(file), requests);
    const timespec nap{0, kNapNs};
    ::ppoll(nullptr, 0, &nap, nullptr);
  }
}

absl::StatusOr<std::string> copy_of(int fd, uint64_t offset, uint64_t bytes) {
  GW_ASSIGN_OR_RETURN(const RingMemory memory, RingMemory::map(fd, offset, bytes));
  return std::string(reinterpret_cast<const char*>(memory.bytes().data()), memory.bytes().size());
}

absl::Status read_memory_of(const OpenFile& file, const Ring& ring, IoUringState& state) {
  GW_ASSIGN_OR_RETURN(const uint64_t pages, ring.number("ring_region.nr_pages"));
  GW_ASSIGN_OR_RETURN(const uint64_t entry_pages, ring.number("sq_region.nr_pages"));
  if (pages * kIoUringPage != rings_bytes(state) ||
      entry_pages * kIoUringPage != entries_bytes(state))
    return make_error(absl::StatusCode::kFailedPrecondition,
                      "{}: its memory has {} and {} pages, which it should not", object_of(file),
                      pages, entry_pages);
  GW_ASSIGN_OR_RETURN(*state.mutable_rings(),
                      copy_of(file.fd, IORING_OFF_SQ_RING, rings_bytes(state)));
  GW_ASSIGN_OR_RETURN(*state.mutable_entries(),
                      copy_of(file.fd, IORING_OFF_SQES, entries_bytes(state)));
  return absl::OkStatus();
}

absl::StatusOr<IoUringState> read_ring(const OpenFile& file, const Ring& ring) {
  IoUringState state;
  state.set_inode(file.stat.st_ino);
  state.set_flags(static_cast<uint32_t>(file.status_flags & ~O_ASYNC));
  const auto take = [&](std::string_view path, void (IoUringState::*set)(uint32_t)) {
    const auto value = ring.number(path);
    if (value.ok()) (state.*set)(static_cast<uint32_t>(*value));
    return value.status();
  };
  GW_RETURN_IF_ERROR(take("flags", &IoUringState::set_setup));
  GW_RETURN_IF_ERROR(take("sq_entries", &IoUringState::set_sq_entries));
  GW_RETURN_IF_ERROR(take("cq_entries", &IoUringState::set_cq_entries));
  GW_RETURN_IF_ERROR(take("cached_sq_head", &IoUringState::set_sq_head));
  GW_RETURN_IF_ERROR(take("cached_cq_tail", &IoUringState::set_cq_tail));
  GW_RETURN_IF_ERROR(take("clockid", &IoUringState::set_clock));
  // Where things are only a ring that is being set up says: another one of the kind.
  io_uring_params params{};
  GW_RETURN_IF_ERROR(
      set_up_ring(state.sq_entries(), state.cq_entries(), state.setup() & kLayout, params)
          .status());
  state.set_features(params.features);
  state.set_offsets(offsets_of(params));
  if ((state.setup() & IORING_SETUP_SINGLE_ISSUER) != 0) {
    GW_ASSIGN_OR_RETURN(const uint64_t issuer, ring.number("submitter_task"));
    if (issuer != 0) state.set_issuer(file.tgid.value);
  }
  return state;
}

}  // namespace

absl::StatusOr<int64_t> io_uring_requests(HostPid tid, const KernelMemory& memory) {
  GW_ASSIGN_OR_RETURN(const KernelAddress task, memory.task(tid));
  GW_ASSIGN_OR_RETURN(const KernelAddress user, memory.pointer(task, "task_struct", "io_uring"));
  return user ? requests_of(memory, user) : 0;
}

bool IoUringKind::recognise(const OpenFile& file) const { return file.link == kIoUringLink; }

absl::Status IoUringKind::precheck(const OpenFile& file, const CaptureContext& context,
                                   std::vector<Refusal>& refusals) const {
  const size_t before = refusals.size();
  const auto look = [&]() -> absl::Status {
    GW_ASSIGN_OR_RETURN(const Ring ring, ring_of(file, context));
    GW_RETURN_IF_ERROR(look_for_extras(ring, file, refusals));
    if (refusals.size() != before) return absl::OkStatus();
    GW_RETURN_IF_ERROR(look_at_issuer(ring, file, refusals));
    GW_RETURN_IF_ERROR(under_way(ring).status());
    IoUringState state;
    const absl::Status files = read_files(ring, context, state);
    if (absl::IsFailedPrecondition(files))
      refuse(file, "io_uring.files", std::string(message_of(files)), "keep it open as well",
             refusals);
    else
      GW_RETURN_IF_ERROR(files);
    const absl::Status event = read_eventfd(ring, context, state);
    if (absl::IsFailedPrecondition(event))
      refuse(file, "io_uring.eventfd", std::string(message_of(event)), "keep it open as well",
             refusals);
    else
      GW_RETURN_IF_ERROR(event);
    return absl::OkStatus();
  };
  if (const absl::Status looked = look(); !looked.ok() && refusals.size() == before)
    refuse(file, "io_uring.kernel",
           "this kernel does not show what it holds: " + std::string(message_of(looked)),
           "Linux 6.14 or later with CONFIG_DEBUG_INFO_BTF; or the program without io_uring",
           refusals);
  return absl::OkStatus();
}

absl::StatusOr<std::string> IoUringKind::capture(const OpenFile& file,
                                                 const CaptureContext& context) const {
  GW_ASSIGN_OR_RETURN(const Ring ring, ring_of(file, context));
  if (context.final()) {
    GW_RETURN_IF_ERROR(wait_for_requests(ring, file));
    std::vector<Refusal> refusals;
    GW_RETURN_IF_ERROR(look_for_extras(ring, file, refusals));
    GW_RETURN_IF_ERROR(look_at_issuer(ring, file, refusals));
    GW_RETURN_IF_ERROR(refused_now(refusals));
  }
  GW_ASSIGN_OR_RETURN(IoUringState state, read_ring(file, ring));
  if (context.final()) {
    GW_RETURN_IF_ERROR(read_files(ring, context, state));
    GW_RETURN_IF_ERROR(read_eventfd(ring, context, state));
    GW_RETURN_IF_ERROR(read_memory_of(file, ring, state));
  } else {
    // So that the freeze does not look for CPUs first.
    GW_RETURN_IF_ERROR(under_way(ring).status());
  }
  return state.SerializeAsString();
}

const FileKind& io_uring_kind() {
  static const IoUringKind kind;
  return kind;
}

}  // namespace godwit::resource
