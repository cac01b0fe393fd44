// Descriptors. They are opened by the queue's name, since another way would add O_LARGEFILE; one
// that was removed has a name until the last of them is open.
#include "resource/posix_mqueue/posix_mqueue.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "resource/file_description.h"
#include "resource/shared_object/shared_object.h"
#include "resource/state_codec.h"

namespace godwit::resource {
namespace {

constexpr long kQueueFileSystem = 0x19800202;  // MQUEUE_MAGIC, ipc/mqueue.c

std::string name_of(const OpenFile& file) {
  const std::string_view name = without_mark(file.link);
  return std::string(name.substr(name.empty() ? 0 : 1));
}

// Of a removed one whose name another one has by now.
std::string passing_name(uint64_t id) { return fmt::format("godwit-removed-{}", id); }

absl::StatusOr<std::string> name_now(int fd) {
  GW_ASSIGN_OR_RETURN(const std::string link,
                      kernel::readlinkat(AT_FDCWD, fmt::format("/proc/self/fd/{}", fd)));
  return link.substr(link.empty() ? 0 : 1);
}

// Its name until finish().
absl::StatusOr<std::string> make_removed(const PosixMqueueState& state) {
  GW_ASSIGN_OR_RETURN(PosixQueueState queue,
                      parse_posix_queue(state.removed().SerializeAsString()));
  absl::Status made = make_posix_queue(queue);
  if (errno_of(made) == EEXIST) {
    queue.set_name(passing_name(state.queue()));
    made = make_posix_queue(queue);
  }
  GW_RETURN_IF_ERROR(made);
  return queue.name();
}

class PosixMqueueKind final : public FileKind {
 public:
  std::string_view name() const override { return "posix_mqueue"; }
  // Its link is its name in that file system, "/name".
  bool recognise(const OpenFile& file) const override {
    if (!S_ISREG(file.stat.st_mode) || file.link.rfind('/') != 0) return false;
    struct statfs of {};
    return ::fstatfs(file.fd, &of) == 0 && of.f_type == kQueueFileSystem;
  }
  bool needs_fdinfo() const override { return false; }
  bool early() const override { return false; }

  absl::Status precheck(const OpenFile& file, const CaptureContext& context,
                        std::vector<Refusal>& refusals) const override {
    return refuse_posix_queue(
        file.fd, object_of(file), [&] { return context.kernel_memory(); }, refusals);
  }

  absl::StatusOr<std::string> capture(const OpenFile& file,
                                      const CaptureContext& context) const override {
    PosixMqueueState state;
    state.set_queue(file.stat.st_ino);
    state.set_name(name_of(file));
    state.set_flags(static_cast<uint32_t>(file.status_flags & ~O_ASYNC));
    if (file.stat.st_nlink == 0) {
      GW_ASSIGN_OR_RETURN(*state.mutable_removed(), read_posix_queue(file.fd, name_of(file), [&] {
        return context.kernel_memory();
      }));
    }
    return state.SerializeAsString();
  }

  absl::StatusOr<UniqueFd> create(uint64_t, std::string_view bytes,
                                  RestoreContext& context) const override {
    GW_ASSIGN_OR_RETURN(const auto state, parse_state<PosixMqueueState>(bytes, name()));
    UniqueFd fd;
    UniqueFd removed = context.take(passing_name(state.queue()));
    std::string at = state.name();
    if (removed) {
      GW_ASSIGN_OR_RETURN(at, name_now(removed.get()));
    }
    GW_RETURN_IF_ERROR(context.in_capsule([&]() -> absl::Status {
      if (state.has_removed() && !removed) {
        GW_ASSIGN_OR_RETURN(at, make_removed(state));
      }
      // O_CLOEXEC stays among the flags of a description (do_mq_open(), ipc/mqueue.c).
      const int flags = static_cast<int>(state.flags()) & (O_ACCMODE | O_NONBLOCK | O_CLOEXEC);
      fd.reset(static_cast<int>(::syscall(SYS_mq_open, at.c_str(), flags, 0, nullptr)));
      if (!fd) return errno_status(errno, fmt::format("mq_open(\"{}\", {:#x})", at, flags));
      if (::fcntl(fd.get(), F_SETFD, FD_CLOEXEC) != 0)
        return errno_status(errno, fmt::format("fcntl({}, F_SETFD)", fd.get()));
      return absl::OkStatus();
    }));
    if (state.has_removed()) {
      if (!removed) {
        GW_ASSIGN_OR_RETURN(removed, kernel::duplicate(fd.get()));
      }
      context.stash(passing_name(state.queue()), std::move(removed));
    }
    return fd;
  }

  absl::StatusOr<bool> update(int, std::string_view before, std::string_view now,
                              RestoreContext&) const override {
    return before == now;
  }

  bool finishes(std::string_view bytes) const override {
    const auto state = parse_state<PosixMqueueState>(bytes, name());
    return state.ok() && state->has_removed();
  }
  // All descriptions are there.
  absl::StatusOr<Check> finish(int fd, std::string_view, ImagePid, int, tracee::Batch&,
                               RestoreContext& context) const override {
    GW_ASSIGN_OR_RETURN(const std::string name, name_now(fd));
    if (name.ends_with(kDeletedMark)) return Check();  // by another one of them
    GW_RETURN_IF_ERROR(context.in_capsule([&]() -> absl::Status {
      if (::syscall(SYS_mq_unlink, name.c_str()) != 0)
        return errno_status(errno, fmt::format("mq_unlink(\"{}\")", name));
      return absl::OkStatus();
    }));
    return Check();
  }

  std::string describe(std::string_view bytes) const override {
    const auto state = parse_state<PosixMqueueState>(bytes, name());
    if (!state.ok()) return "POSIX message queue (unreadable)";
    return fmt::format("POSIX message queue /{}{}", state->name(),
                       state->has_removed() ? ", removed" : "");
  }
};

}  // namespace

const FileKind& posix_mqueue_kind() {
  static const PosixMqueueKind kind;
  return kind;
}

}  // namespace godwit::resource
