// Linux facts: fdinfo has the process as the reader's /proc numbers it and, in NSpid, as it numbers
// itself; -1 when it was waited for (pidfd_show_fdinfo(), fs/pidfs.c). pidfd_open(2) of a process
// that has ended works until it is waited for. PIDFD_THREAD (6.9) is O_EXCL.
#include "resource/pidfd/pidfd.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sched.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <charconv>
#include <thread>

#include "kernel/proc/status.h"
#include "resource/file_description.h"
#include "resource/pidfd/pidfd.pb.h"
#include "resource/state_codec.h"

namespace godwit::resource {
namespace {

constexpr int kFlags = O_NONBLOCK | O_EXCL;

struct Referred {
  HostPid here;     // 0: it was waited for
  ImagePid inside;  // in its own namespace
};

absl::StatusOr<Referred> referred_by(const OpenFile& file) {
  GW_ASSIGN_OR_RETURN(const kernel::FdInfo info, fdinfo_of(file));
  const auto here = info.find("Pid");
  const auto inside = info.find("NSpid");
  const auto number = [](std::string_view text) {
    int value = 0;
    const auto end = text.data() + text.size();
    return std::from_chars(text.data(), end, value).ptr == end ? value : 0;
  };
  const int pid = here ? number(*here) : 0;
  if (pid == -1) return Referred{};
  if (pid <= 0 || !inside)
    return make_error(absl::StatusCode::kFailedPrecondition, "{}: no valid Pid in its fdinfo",
                      object_of(file));
  return Referred{{pid}, {number(inside->substr(inside->rfind('\t') + 1))}};
}

// Of a process that ended in this moment: refers to nothing. In the pid namespace that the caller
// has for its children.
absl::StatusOr<UniqueFd> open_ended(unsigned flags) {
  // A child without a copy of our memory.
  alignas(16) std::array<std::byte, 16384> stack;
  const int child = ::clone([](void*) { return 0; }, stack.data() + stack.size(),
                            CLONE_VM | CLONE_VFORK, nullptr);
  if (child < 0) return errno_status(errno, "clone(CLONE_VM | CLONE_VFORK)");
  const auto fd = static_cast<int>(::syscall(SYS_pidfd_open, child, flags));
  const int error = errno;
  while (::waitpid(child, nullptr, __WALL) < 0 && errno == EINTR) {
  }
  if (fd < 0) return errno_status(error, fmt::format("pidfd_open({}, {:#x})", child, flags));
  return UniqueFd(fd);
}

// One of the service's namespace: another's is not for a process to use (pidfd_send_signal(2) says
// EINVAL then).
absl::StatusOr<UniqueFd> open_ended_inside(HostPid init, unsigned flags) {
  GW_ASSIGN_OR_RETURN(const UniqueFd inside,
                      kernel::open(fmt::format("/proc/{}/ns/pid", init.value), O_RDONLY));
  absl::StatusOr<UniqueFd> opened = absl::InternalError("not run");
  std::thread([&] {  // the namespace is the thread's
    if (::setns(inside.get(), CLONE_NEWPID) == 0)
      opened = open_ended(flags);
    else
      opened = errno_status(errno, fmt::format("setns(pid namespace of {})", init.value));
  })
      .join();
  return opened;
}

class PidfdKind final : public FileKind {
 public:
  std::string_view name() const override { return "pidfd"; }
  bool recognise(const OpenFile& file) const override { return file.link == "anon_inode:[pidfd]"; }
  bool needs_fdinfo() const override { return true; }
  bool finishes(std::string_view) const override { return false; }
  bool early() const override { return false; }  // processes come and go

  absl::Status precheck(const OpenFile& file, const CaptureContext& context,
                        std::vector<Refusal>& refusals) const override {
    GW_ASSIGN_OR_RETURN(const Referred referred, referred_by(file));
    if (referred.here.value == 0) return absl::OkStatus();
    GW_ASSIGN_OR_RETURN(const bool inside, in_service(referred.here, context));
    if (!inside)
      refuse(file, "pidfd.outside", "it refers to a process outside of the service",
             "close it, or run both in one service", refusals);
    if ((file.status_flags & O_EXCL) == 0) return absl::OkStatus();
    const auto status = kernel::read_task_status(referred.here);
    if (status.ok() && status->tgid != referred.here)
      refuse(file, "pidfd.thread", "it refers to one thread (PIDFD_THREAD)",
             "let the program use one for the process", refusals);
    return absl::OkStatus();
  }

  absl::StatusOr<std::string> capture(const OpenFile& file,
                                      const CaptureContext& context) const override {
    std::vector<Refusal> refusals;
    GW_RETURN_IF_ERROR(precheck(file, context, refusals));
    GW_RETURN_IF_ERROR(refused_now(refusals));
    GW_ASSIGN_OR_RETURN(const Referred referred, referred_by(file));
    PidfdState state;
    state.set_pid(referred.inside.value);
    state.set_flags(static_cast<uint32_t>(file.status_flags & kFlags));
    return state.SerializeAsString();
  }

  absl::StatusOr<UniqueFd> create(uint64_t, std::string_view bytes,
                                  RestoreContext& context) const override {
    GW_ASSIGN_OR_RETURN(const auto state, parse_state<PidfdState>(bytes, name()));
    const uint32_t flags = state.flags();
    if ((flags & ~uint32_t{kFlags}) != 0 || state.pid() < 0)
      return make_error(absl::StatusCode::kDataLoss, "pidfd: pid {}, flags {:#x}", state.pid(),
                        flags);
    if (state.pid() == 0) return open_ended_inside(context.init_pid(), flags);
    HostPid pid = context.init_pid();
    if (state.pid() != 1) {
      GW_ASSIGN_OR_RETURN(pid, context.host_pid({state.pid()}));
    }
    UniqueFd fd(static_cast<int>(::syscall(SYS_pidfd_open, pid.value, flags)));
    if (!fd) return errno_status(errno, fmt::format("pidfd_open({}, {:#x})", pid.value, flags));
    return fd;
  }

  absl::StatusOr<bool> update(int, std::string_view before, std::string_view now,
                              RestoreContext&) const override {
    return before == now;
  }
  absl::StatusOr<Check> finish(int, std::string_view, ImagePid, int, tracee::Batch&,
                               RestoreContext&) const override {
    return Check();
  }
  std::string describe(std::string_view bytes) const override {
    const auto state = parse_state<PidfdState>(bytes, name());
    if (!state.ok()) return "pidfd (unreadable)";
    return state->pid() == 0 ? std::string("pidfd of a process that has ended")
                             : fmt::format("pidfd of process {}", state->pid());
  }
};

}  // namespace

const FileKind& pidfd_kind() {
  static const PidfdKind kind;
  return kind;
}

}  // namespace godwit::resource
