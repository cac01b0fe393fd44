#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "base/status.h"
#include "resource/file_description.h"
#include "resource/io_uring/io_uring.h"
#include "resource/io_uring/kind.h"
#include "resource/io_uring/ring.h"
#include "resource/state_codec.h"

namespace godwit::resource {
namespace {

constexpr uint32_t kMostEntries = 1 << 15;  // IORING_MAX_ENTRIES; of results twice as many
constexpr uint32_t kMostFiles = 1 << 15;

// A ring that gets where another one was.
struct Moving {
  RingMemory rings;
  RingMemory entries;
  RingOffsets offsets;

  static absl::StatusOr<Moving> of(int fd, const IoUringState& state) {
    GW_ASSIGN_OR_RETURN(RingMemory rings,
                        RingMemory::map(fd, IORING_OFF_SQ_RING, rings_bytes(state)));
    GW_ASSIGN_OR_RETURN(RingMemory entries,
                        RingMemory::map(fd, IORING_OFF_SQES, entries_bytes(state)));
    GW_ASSIGN_OR_RETURN(const RingOffsets offsets,
                        parse_offsets(state.offsets(), rings.bytes().size()));
    return Moving{std::move(rings), std::move(entries), offsets};
  }
  volatile uint32_t& sq_head() { return rings.at(offsets.sq[0]); }
  volatile uint32_t& sq_tail() { return rings.at(offsets.sq[1]); }
  volatile uint32_t& cq_head() { return rings.at(offsets.cq[0]); }
  volatile uint32_t& cq_tail() { return rings.at(offsets.cq[1]); }

  // Every entry a request that does nothing.
  void fill(const IoUringState& state, uint8_t flags) {
    const size_t one = (state.setup() & IORING_SETUP_SQE128) != 0 ? 128 : 64;
    std::memset(entries.bytes().data(), 0, entries.bytes().size());
    for (uint32_t i = 0; i < state.sq_entries(); ++i) {
      auto* entry = reinterpret_cast<io_uring_sqe*>(entries.bytes().data() + i * one);
      entry->opcode = IORING_OP_NOP;
      entry->flags = flags;
      if ((state.setup() & kSetupNoSqArray) == 0) rings.at(offsets.sq[6] + 4 * i) = i;
    }
  }
};

absl::Status enter(int fd, uint32_t count) {
  const long taken = ::syscall(SYS_io_uring_enter, fd, count, 0, 0, nullptr, 0);
  if (taken == static_cast<long>(count)) return absl::OkStatus();
  if (taken < 0) return errno_status(errno, fmt::format("io_uring_enter({}, {})", fd, count));
  return make_error(absl::StatusCode::kInternal, "io_uring_enter({}, {}) took {}", fd, count,
                    taken);
}

absl::Status make_requests(int fd, const IoUringState& state, uint32_t count, uint8_t flags) {
  if (count == 0) return absl::OkStatus();
  GW_ASSIGN_OR_RETURN(Moving moving, Moving::of(fd, state));
  moving.fill(state, flags);
  while (count > 0) {
    const uint32_t some = std::min(count, state.sq_entries());
    moving.sq_tail() = moving.sq_tail() + some;
    GW_RETURN_IF_ERROR(enter(fd, some));
    moving.cq_head() = moving.cq_tail();
    count -= some;
  }
  return absl::OkStatus();
}

// Results without requests of its own: messages of another ring (IORING_OP_MSG_RING, Linux 5.18).
absl::Status send_results(int fd, const IoUringState& state, uint32_t count) {
  if (count == 0) return absl::OkStatus();
  constexpr uint32_t kEntries = 256;
  IoUringState other;
  io_uring_params params{};
  GW_ASSIGN_OR_RETURN(const UniqueFd sender, set_up_ring(kEntries, 2 * kEntries, 0, params));
  other.set_sq_entries(kEntries);
  other.set_cq_entries(2 * kEntries);
  other.set_offsets(offsets_of(params));
  GW_ASSIGN_OR_RETURN(Moving from, Moving::of(sender.get(), other));
  GW_ASSIGN_OR_RETURN(Moving to, Moving::of(fd, state));
  from.fill(other, 0);
  for (uint32_t i = 0; i < kEntries; ++i) {
    auto* entry = reinterpret_cast<io_uring_sqe*>(from.entries.bytes().data() + i * 64);
    entry->opcode = IORING_OP_MSG_RING;
    entry->fd = fd;
  }
  while (count > 0) {
    const uint32_t some = std::min({count, kEntries, state.cq_entries()});
    const uint32_t before = to.cq_tail();
    from.sq_tail() = from.sq_tail() + some;
    GW_RETURN_IF_ERROR(enter(sender.get(), some));
    from.cq_head() = from.cq_tail();
    if (to.cq_tail() - before != some)
      return make_error(absl::StatusCode::kInternal, "{} messages gave {} results", some,
                        to.cq_tail() - before);
    to.cq_head() = to.cq_tail();
    count -= some;
  }
  return absl::OkStatus();
}

// Of a ring that anybody may use. Numbers of 32 bits that go round.
absl::Status move_on(int fd, const IoUringState& state, uint32_t sq_head, uint32_t cq_tail) {
  const uint32_t taken = state.sq_head() - sq_head;
  const uint32_t given = state.cq_tail() - cq_tail;
  const uint32_t both = std::min(taken, given);
  GW_RETURN_IF_ERROR(make_requests(fd, state, both, 0));
  GW_RETURN_IF_ERROR(make_requests(fd, state, taken - both, IOSQE_CQE_SKIP_SUCCESS));
  return send_results(fd, state, given - both);
}

absl::Status register_with(int fd, uint32_t what, const void* argument, uint32_t count) {
  if (::syscall(SYS_io_uring_register, fd, what, argument, count) >= 0) return absl::OkStatus();
  return errno_status(errno, fmt::format("io_uring_register({}, {})", fd, what));
}

absl::Status register_files(const IoUringState& state, int fd, const RestoreContext& context) {
  if (state.files_size() == 0) return absl::OkStatus();
  std::vector<int32_t> files;
  std::vector<uint64_t> tags;
  for (const auto& file : state.files()) {
    files.push_back(file.description() == 0 ? -1 : context.description(file.description()));
    tags.push_back(file.tag());
    if (file.description() != 0 && files.back() < 0)
      return make_error(absl::StatusCode::kDataLoss, "registered file {} has no section",
                        file.description());
  }
  io_uring_rsrc_register all{};
  all.nr = static_cast<uint32_t>(files.size());
  all.data = reinterpret_cast<uint64_t>(files.data());
  all.tags = reinterpret_cast<uint64_t>(tags.data());
  return register_with(fd, IORING_REGISTER_FILES2, &all, sizeof all);
}

absl::Status register_eventfd(const IoUringState& state, int fd, const RestoreContext& context) {
  if (state.eventfd() == 0) return absl::OkStatus();
  const int event = context.description(state.eventfd());
  if (event < 0) return absl::DataLossError("its eventfd has no section");
  return register_with(
      fd, state.eventfd_async() ? IORING_REGISTER_EVENTFD_ASYNC : IORING_REGISTER_EVENTFD, &event,
      1);
}

// `b` of the same ring, later.
bool same_ring(const IoUringState& a, const IoUringState& b) {
  return a.inode() == b.inode() && a.setup() == b.setup() && a.features() == b.features() &&
         a.sq_entries() == b.sq_entries() && a.cq_entries() == b.cq_entries() &&
         a.sq_head() <= b.sq_head() && a.cq_tail() <= b.cq_tail() && a.offsets() == b.offsets() &&
         a.clock() == b.clock() && a.issuer() == b.issuer();
}

}  // namespace

absl::StatusOr<IoUringState> parse_io_uring(std::string_view bytes) {
  GW_ASSIGN_OR_RETURN(auto state, parse_state<IoUringState>(bytes, "io_uring"));
  const auto good = [](uint32_t count, uint32_t most) {
    return count > 0 && count <= most && (count & (count - 1)) == 0;
  };
  if (!good(state.sq_entries(), kMostEntries) || !good(state.cq_entries(), 2 * kMostEntries) ||
      state.files_size() > static_cast<int>(kMostFiles))
    return absl::DataLossError("state of io_uring: its size cannot be right");
  if (state.sq_head() > kMostRequests || state.cq_tail() > kMostRequests)
    return absl::DataLossError("state of io_uring: it is too far away");
  constexpr uint64_t kMostBytes = uint64_t{64} << 20;
  const uint64_t bytes_of_rings = rings_bytes(state);
  if (bytes_of_rings > kMostBytes)
    return absl::DataLossError("state of io_uring: its offsets cannot be right");
  GW_RETURN_IF_ERROR(parse_offsets(state.offsets(), bytes_of_rings).status());
  if ((!state.rings().empty() && state.rings().size() != bytes_of_rings) ||
      (!state.entries().empty() && state.entries().size() != entries_bytes(state)))
    return absl::DataLossError("state of io_uring: its memory cannot be right");
  return state;
}

absl::StatusOr<UniqueFd> IoUringKind::create(uint64_t, std::string_view bytes,
                                             RestoreContext&) const {
  GW_ASSIGN_OR_RETURN(const IoUringState state, parse_io_uring(bytes));
  io_uring_params params{};
  // Its issuer switches it on, and is its issuer by that.
  const uint32_t off = state.issuer() != 0 ? IORING_SETUP_R_DISABLED : 0;
  GW_ASSIGN_OR_RETURN(UniqueFd fd, set_up_ring(state.sq_entries(), state.cq_entries(),
                                               state.setup() | off, params));
  if ((state.features() & ~params.features) != 0)
    return make_error(absl::StatusCode::kFailedPrecondition,
                      "this kernel's io_uring lacks features {:#x} that the program may rely on",
                      state.features() & ~params.features);
  if (offsets_of(params) != state.offsets())
    return absl::FailedPreconditionError(
        "this kernel's rings are laid out in another way: the same kernel is needed");
  if (state.clock() != CLOCK_MONOTONIC) {
    const RegisteredClock clock{.clock = state.clock(), .unused = {}};
    GW_RETURN_IF_ERROR(register_with(fd.get(), kRegisterClock, &clock, 0));
  }
  if (state.issuer() == 0 && (state.setup() & IORING_SETUP_R_DISABLED) == 0)
    GW_RETURN_IF_ERROR(move_on(fd.get(), state, 0, 0));
  GW_RETURN_IF_ERROR(set_status_flags(fd.get(), static_cast<int>(state.flags())));
  return fd;
}

absl::StatusOr<bool> IoUringKind::update(int fd, std::string_view before_bytes,
                                         std::string_view now_bytes, RestoreContext&) const {
  GW_ASSIGN_OR_RETURN(const IoUringState before, parse_io_uring(before_bytes));
  GW_ASSIGN_OR_RETURN(const IoUringState now, parse_io_uring(now_bytes));
  if (!same_ring(before, now)) return false;
  if (now.issuer() == 0 && (now.setup() & IORING_SETUP_R_DISABLED) == 0)
    GW_RETURN_IF_ERROR(move_on(fd, now, before.sq_head(), before.cq_tail()));
  GW_RETURN_IF_ERROR(set_status_flags(fd, static_cast<int>(now.flags())));
  return true;
}

absl::StatusOr<FileKind::Check> IoUringKind::finish(int, std::string_view, ImagePid, int,
                                                    tracee::Batch&, RestoreContext&) const {
  return Check();
}

absl::Status register_with_io_uring(const IoUringState& state, int fd,
                                    const RestoreContext& context) {
  {
    // What is done until the end is none of the program's business.
    GW_ASSIGN_OR_RETURN(Moving moving, Moving::of(fd, state));
    volatile uint32_t& flags = moving.rings.at(moving.offsets.cq[6]);
    flags = flags | IORING_CQ_EVENTFD_DISABLED;
  }
  GW_RETURN_IF_ERROR(register_files(state, fd, context));
  return register_eventfd(state, fd, context);
}

absl::Status add_io_uring_progress(const IoUringState& state, int fd, int number, bool first,
                                   tracee::Batch& batch) {
  if (state.issuer() == 0) return absl::OkStatus();
  GW_ASSIGN_OR_RETURN(Moving moving, Moving::of(fd, state));
  if (first) {
    batch.call(SYS_io_uring_register, {number, IORING_REGISTER_ENABLE_RINGS, 0, 0}, true);
    moving.fill(state, 0);
    moving.sq_tail() = state.sq_head();
  }
  // Of what was asked for before.
  moving.cq_head() = moving.cq_tail();
  uint32_t left = state.sq_head() - moving.sq_head();
  for (uint32_t room = state.cq_entries(); room > 0 && left > 0;) {
    const uint32_t some = std::min({left, state.sq_entries(), room});
    batch.call(SYS_io_uring_enter, {number, some, 0, 0, 0, 0}, true);
    left -= some;
    room -= some;
  }
  return absl::OkStatus();
}

absl::Status complete_io_uring(const IoUringState& state, int fd) {
  GW_ASSIGN_OR_RETURN(Moving moving, Moving::of(fd, state));
  if (moving.sq_head() != state.sq_head() || moving.cq_tail() != state.cq_tail())
    return make_error(absl::StatusCode::kInternal,
                      "a ring has taken {} entries and given {} results, not {} and {}",
                      moving.sq_head(), moving.cq_tail(), state.sq_head(), state.cq_tail());
  if (state.rings().size() != moving.rings.bytes().size() ||
      state.entries().size() != moving.entries.bytes().size())
    return absl::DataLossError("a ring's memory is missing");
  std::memcpy(moving.rings.bytes().data(), state.rings().data(), state.rings().size());
  std::memcpy(moving.entries.bytes().data(), state.entries().data(), state.entries().size());
  return absl::OkStatus();
}

std::string IoUringKind::describe(std::string_view bytes) const {
  const auto state = parse_io_uring(bytes);
  if (!state.ok()) return "io_uring (unreadable)";
  return fmt::format("io_uring of {} entries, {} taken", state->sq_entries(), state->sq_head());
}

}  // namespace godwit::resource
