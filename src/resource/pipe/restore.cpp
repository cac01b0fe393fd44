// The first description of a pipe to be made makes the pipe and leaves the other end, if the tree
// has one, in the stash; every further one is taken from there or opened anew through /proc.
#include <fmt/format.h>

#include <algorithm>

#include "resource/file_description.h"
#include "resource/pipe/pipe.pb.h"
#include "resource/pipe/pipe_internal.h"
#include "resource/state_codec.h"

namespace godwit::resource {
namespace {

int access_of(const PipeState& state) { return static_cast<int>(state.flags()) & O_ACCMODE; }

std::string stash_name(const PipeState& state, int access) {
  return fmt::format("pipe:{}:{}", state.inode(), access == O_RDONLY ? "read" : "write");
}

// All ends are opened O_NONBLOCK, so that nothing here can wait for a reader or for room.
absl::StatusOr<UniqueFd> make_pipe(const PipeState& state, RestoreContext& context) {
  GW_ASSIGN_OR_RETURN(kernel::Pipe pipe, kernel::pipe2(O_NONBLOCK));
  const int access = access_of(state);
  if (access == O_RDWR) return reopen(pipe.read.get(), O_RDWR | O_NONBLOCK);
  const bool other_end = access == O_RDONLY ? state.has_writer() : state.has_reader();
  UniqueFd& own = access == O_RDONLY ? pipe.read : pipe.write;
  UniqueFd& other = access == O_RDONLY ? pipe.write : pipe.read;
  if (other_end && state.others_size() > 0) {
    context.stash(stash_name(state, access == O_RDONLY ? O_WRONLY : O_RDONLY), std::move(other));
  }
  return std::move(own);
}

absl::StatusOr<UniqueFd> open_by_name(const PipeState& state, int flags,
                                      const RestoreContext& context) {
  UniqueFd fd;
  GW_RETURN_IF_ERROR(context.in_capsule([&]() -> absl::Status {
    GW_ASSIGN_OR_RETURN(fd, kernel::open(state.path(), flags | O_NONBLOCK | O_CLOEXEC));
    return absl::OkStatus();
  }));
  struct stat st {};
  if (::fstat(fd.get(), &st) != 0) return errno_status(errno, fmt::format("fstat({})", fd.get()));
  if (!S_ISFIFO(st.st_mode))
    return make_error(absl::StatusCode::kFailedPrecondition, "{} is no FIFO here", state.path());
  return fd;
}

// One of ours for reading and writing holds what is inside, and lets the others be opened, until
// all of them are. A reader that has seen no writer must not see that one.
absl::StatusOr<UniqueFd> open_named(const PipeState& state, RestoreContext& context) {
  // Stays among the flags of a description.
  const int flags = access_of(state) | (static_cast<int>(state.flags()) & O_NOFOLLOW);
  if (state.quiet()) return open_by_name(state, flags, context);
  const std::string name = fmt::format("named_pipe:{}", state.inode());
  UniqueFd own = context.take(name);
  if (!own) {
    GW_ASSIGN_OR_RETURN(own, open_by_name(state, O_RDWR, context));
  }
  GW_ASSIGN_OR_RETURN(UniqueFd fd, open_by_name(state, flags, context));
  context.stash(name, std::move(own));
  return fd;
}

absl::StatusOr<UniqueFd> open_end(const PipeState& state, RestoreContext& context) {
  const int access = access_of(state);
  if (!state.path().empty()) return open_named(state, context);
  if (state.stdio() > 0) {
    const int stream = context.stdio(static_cast<int>(state.stdio()) - 1);
    if (stream < 0) {
      return make_error(absl::StatusCode::kFailedPrecondition,
                        "pipe: the shim here has no stream {}", state.stdio() - 1);
    }
    struct stat st {};
    if (::fstat(stream, &st) != 0) return errno_status(errno, fmt::format("fstat({})", stream));
    // A description of its own where that can be had: the program may have several, each with its
    // flags.
    if (S_ISFIFO(st.st_mode)) return reopen(stream, access | O_NONBLOCK);
    return kernel::duplicate(stream);
  }
  if (access != O_RDWR) {
    if (UniqueFd fd = context.take(stash_name(state, access))) return fd;
  }
  for (const uint64_t id : state.others()) {
    const int other = context.description(id);
    if (other >= 0) return reopen(other, access | O_NONBLOCK);
  }
  return make_pipe(state, context);
}

absl::Status fill(int fd, const PipeState& state) {
  if (state.content_size() == 0) return absl::OkStatus();
  // Packets are made by the writer's O_DIRECT, so a writer of ours.
  GW_ASSIGN_OR_RETURN(const UniqueFd writer, reopen(fd, O_WRONLY | O_NONBLOCK));
  // open(2) refuses O_DIRECT on a pipe, F_SETFL takes it.
  GW_RETURN_IF_ERROR(set_status_flags(writer.get(), O_NONBLOCK | (state.packets() ? O_DIRECT : 0)));
  for (const std::string& piece : state.content()) {
    for (size_t at = 0; at < piece.size();) {
      const ssize_t n = ::write(writer.get(), piece.data() + at, piece.size() - at);
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) {
        return errno_status(errno, fmt::format("write(pipe, {} bytes of content)", piece.size()));
      }
      if (state.packets() && static_cast<size_t>(n) != piece.size()) {
        return make_error(absl::StatusCode::kDataLoss, "pipe: a packet of {} bytes was split",
                          piece.size());
      }
      at += static_cast<size_t>(n);
    }
  }
  return absl::OkStatus();
}

absl::Status bring_to(int fd, const PipeState& state) {
  struct stat st {};
  if (::fstat(fd, &st) != 0) return errno_status(errno, fmt::format("fstat({})", fd));
  // The shim's stream may be something else here.
  if (!S_ISFIFO(st.st_mode)) return absl::OkStatus();
  GW_ASSIGN_OR_RETURN(const int capacity, kernel::fcntl_int(fd, F_GETPIPE_SZ));
  if (static_cast<uint32_t>(capacity) != state.capacity()) {
    // Above /proc/sys/fs/pipe-max-size this needs CAP_SYS_RESOURCE.
    GW_RETURN_IF_ERROR(
        kernel::fcntl_int(fd, F_SETPIPE_SZ, static_cast<int>(state.capacity())).status());
  }
  GW_RETURN_IF_ERROR(fill(fd, state));
  return set_status_flags(fd, static_cast<int>(state.flags()));
}

absl::StatusOr<PipeState> parse(std::string_view bytes) {
  GW_ASSIGN_OR_RETURN(auto state, parse_state<PipeState>(bytes, "pipe"));
  if (access_of(state) == O_ACCMODE || state.stdio() > 3 || state.capacity() > (1U << 31) - 1) {
    return make_error(absl::StatusCode::kDataLoss, "pipe: no such access, stream or capacity");
  }
  return state;
}

}  // namespace

absl::StatusOr<UniqueFd> PipeKind::create(uint64_t, std::string_view bytes,
                                          RestoreContext& context) const {
  GW_ASSIGN_OR_RETURN(const PipeState state, parse(bytes));
  GW_ASSIGN_OR_RETURN(UniqueFd fd, open_end(state, context));
  GW_RETURN_IF_ERROR(bring_to(fd.get(), state));
  return fd;
}

absl::StatusOr<bool> PipeKind::update(int fd, std::string_view before_bytes,
                                      std::string_view now_bytes, RestoreContext&) const {
  GW_ASSIGN_OR_RETURN(const PipeState before, parse(before_bytes));
  GW_ASSIGN_OR_RETURN(const PipeState now, parse(now_bytes));
  // Content comes once: what is inside already cannot be told from what should be.
  if (before.inode() != now.inode() || access_of(before) != access_of(now) ||
      before.stdio() != now.stdio() || before.content_size() > 0) {
    return false;
  }
  GW_RETURN_IF_ERROR(bring_to(fd, now));
  return true;
}

absl::StatusOr<FileKind::Check> PipeKind::finish(int, std::string_view, ImagePid, int,
                                                 tracee::Batch&, RestoreContext&) const {
  return Check();
}

std::string PipeKind::describe(std::string_view bytes) const {
  const auto state = parse_state<PipeState>(bytes, name());
  if (!state.ok()) return "pipe (unreadable)";
  constexpr std::string_view kAccess[] = {"read", "write", "read-write", "?"};
  size_t content = 0;
  for (const std::string& piece : state->content()) content += piece.size();
  std::string text =
      fmt::format("{} {} {} end, {} of {} B", state->path().empty() ? "pipe" : state->path(),
                  state->inode(), kAccess[access_of(*state)], content, state->capacity());
  if (state->stdio() > 0) text += fmt::format(", stdio {}", state->stdio() - 1);
  return text;
}

}  // namespace godwit::resource
