#include <fmt/format.h>

#include <cerrno>
#include <string>

#include "resource/file_content.h"
#include "resource/file_description.h"
#include "resource/file_locks/file_locks.h"
#include "resource/regular_file/regular_file.pb.h"
#include "resource/regular_file/regular_file_internal.h"
#include "resource/shared_object/shared_object.h"
#include "resource/state_codec.h"

namespace godwit::resource {
namespace {

// __O_TMPFILE without the O_DIRECTORY that O_TMPFILE brings: a file that was linked later keeps
// both, and could not be opened with them.
constexpr int kTmpfileBit = O_TMPFILE & ~O_DIRECTORY;
constexpr int kNever = O_CREAT | O_EXCL | O_TRUNC | O_ASYNC;

int open_flags(const RegularFileState& state) {
  int flags = static_cast<int>(state.flags()) & ~kNever;
  if ((flags & kTmpfileBit) != 0) flags &= ~O_TMPFILE;
  return flags;
}

absl::StatusOr<UniqueFd> open_named(const RegularFileState& state, RestoreContext& context) {
  UniqueFd fd;
  GW_RETURN_IF_ERROR(context.in_capsule([&]() -> absl::Status {
    // First what it is: opening a FIFO or a device would do things. The path has no symbolic link
    // in it but one that O_PATH itself names.
    struct stat st {};
    if (::lstat(state.path().c_str(), &st) != 0) {
      return errno_status(errno, fmt::format("lstat(\"{}\")", state.path()));
    }
    if ((st.st_mode & S_IFMT) != state.type()) {
      return make_error(absl::StatusCode::kFailedPrecondition,
                        "{}: file type {:#o} here, {:#o} at the source", state.path(),
                        st.st_mode & S_IFMT, state.type());
    }
    GW_ASSIGN_OR_RETURN(fd, kernel::open(state.path(), open_flags(state)));
    return absl::OkStatus();
  }));
  return fd;
}

absl::Status write_content(int fd, const RegularFileState& state) {
  GW_ASSIGN_OR_RETURN(const UniqueFd writer, reopen(fd, O_RDWR));
  return write_extents(writer.get(), state.size(), state.unnamed());
}

absl::StatusOr<UniqueFd> make_unnamed(const RegularFileState& state, RestoreContext& context) {
  const RegularFileState::Unnamed& u = state.unnamed();
  RemovedFile made;
  GW_RETURN_IF_ERROR(context.in_capsule([&]() -> absl::Status {
    GW_ASSIGN_OR_RETURN(made, make_removed_file(std::string(without_mark(state.path())), u.mode(),
                                                u.uid(), u.gid(), open_flags(state)));
    return absl::OkStatus();
  }));
  if (made.opened) return std::move(made.opened);
  return reopen(made.file.get(), open_flags(state));
}

absl::StatusOr<UniqueFd> open_unnamed(const RegularFileState& state, RestoreContext& context) {
  const RegularFileState::Unnamed& u = state.unnamed();
  UniqueFd fd;
  for (const uint64_t id : u.others()) {
    const int other = context.description(id);
    if (other < 0) continue;
    GW_ASSIGN_OR_RETURN(fd, reopen(other, open_flags(state)));
    break;
  }
  if (!fd) {
    GW_ASSIGN_OR_RETURN(fd, make_unnamed(state, context));
  }
  if (u.has_content()) GW_RETURN_IF_ERROR(write_content(fd.get(), state));
  return fd;
}

absl::Status bring_to(int fd, const RegularFileState& state) {
  if ((state.flags() & O_PATH) != 0) return absl::OkStatus();
  GW_RETURN_IF_ERROR(set_status_flags(fd, static_cast<int>(state.flags())));
  if (state.pos() >= 0 && ::lseek(fd, state.pos(), SEEK_SET) != state.pos()) {
    return errno_status(errno, fmt::format("lseek(\"{}\", {})", state.path(), state.pos()));
  }
  return absl::OkStatus();
}

absl::StatusOr<RegularFileState> parse(std::string_view bytes) {
  GW_ASSIGN_OR_RETURN(auto state, parse_state<RegularFileState>(bytes, "regular_file"));
  if (!state.path().starts_with('/') || state.path().find('\0') != std::string::npos) {
    return make_error(absl::StatusCode::kDataLoss, "regular_file: \"{}\" is no absolute path",
                      state.path());
  }
  return state;
}

// The file behind the path may have been replaced while the layer was carried over.
absl::StatusOr<bool> still_at_its_path(int fd, const RegularFileState& state,
                                       RestoreContext& context) {
  struct stat here {};
  if (::fstat(fd, &here) != 0) return errno_status(errno, fmt::format("fstat({})", fd));
  bool same = false;
  GW_RETURN_IF_ERROR(context.in_capsule([&]() -> absl::Status {
    struct stat st {};
    same = ::lstat(state.path().c_str(), &st) == 0 && st.st_dev == here.st_dev &&
           st.st_ino == here.st_ino;
    return absl::OkStatus();
  }));
  return same;
}

}  // namespace

absl::StatusOr<UniqueFd> RegularFileKind::create(uint64_t, std::string_view bytes,
                                                 RestoreContext& context) const {
  GW_ASSIGN_OR_RETURN(const RegularFileState state, parse(bytes));
  UniqueFd fd;
  if (state.has_unnamed()) {
    GW_ASSIGN_OR_RETURN(fd, open_unnamed(state, context));
  } else {
    GW_ASSIGN_OR_RETURN(fd, open_named(state, context));
  }
  GW_RETURN_IF_ERROR(bring_to(fd.get(), state));
  return fd;
}

absl::StatusOr<bool> RegularFileKind::update(int fd, std::string_view before_bytes,
                                             std::string_view now_bytes,
                                             RestoreContext& context) const {
  GW_ASSIGN_OR_RETURN(const RegularFileState before, parse(before_bytes));
  GW_ASSIGN_OR_RETURN(const RegularFileState now, parse(now_bytes));
  constexpr uint32_t kSettable = kSettableFlags;
  if (before.type() != now.type() || ((before.flags() ^ now.flags()) & ~kSettable) != 0 ||
      before.has_unnamed() != now.has_unnamed()) {
    return false;
  }
  if (now.has_unnamed()) {
    // Who the owner is and who has the content may change with who else holds it; only content and
    // size are brought up to date.
    if (before.unnamed().inode() != now.unnamed().inode() ||
        before.unnamed().mode() != now.unnamed().mode() ||
        before.unnamed().uid() != now.unnamed().uid() ||
        before.unnamed().gid() != now.unnamed().gid()) {
      return false;
    }
    if (now.unnamed().has_content()) GW_RETURN_IF_ERROR(write_content(fd, now));
  } else {
    if (before.path() != now.path()) return false;
    GW_ASSIGN_OR_RETURN(const bool same, still_at_its_path(fd, now, context));
    if (!same) return false;
  }
  GW_RETURN_IF_ERROR(bring_to(fd, now));
  return true;
}

bool RegularFileKind::finishes(std::string_view bytes) const {
  const auto state = parse(bytes);
  return state.ok() && (state->open_file_locks_size() > 0 || state->flocks_size() > 0);
}

absl::StatusOr<FileKind::Check> RegularFileKind::finish(int fd, std::string_view bytes, ImagePid,
                                                        int remote_fd, tracee::Batch& batch,
                                                        RestoreContext&) const {
  GW_ASSIGN_OR_RETURN(const RegularFileState state, parse(bytes));
  add_flock_calls(remote_fd, state.flocks(), batch);
  GW_RETURN_IF_ERROR(annotate(take_open_file_locks(fd, state.open_file_locks()),
                              fmt::format("\"{}\"", state.path())));
  return Check();
}

uint64_t RegularFileKind::shared_object(std::string_view bytes) const {
  const auto state = parse(bytes);
  return state.ok() ? state->unnamed().object() : 0;
}

std::string RegularFileKind::describe(std::string_view bytes) const {
  const auto state = parse_state<RegularFileState>(bytes, name());
  if (!state.ok()) return "file (unreadable)";
  const std::string_view what = (state->flags() & O_PATH) != 0 ? "path"
                                : S_ISDIR(state->type())       ? "folder"
                                : state->has_unnamed()         ? "unnamed file"
                                                               : "file";
  return fmt::format("{} {} at {} of {}", what, state->path(), state->pos(), state->size());
}

}  // namespace godwit::resource
