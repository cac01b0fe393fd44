#include "resource/signal_owner/signal_owner.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include <charconv>

#include "resource/file_description.h"
#include "resource/state_codec.h"

namespace godwit::resource {

// The last field of NSpid in its status.
absl::StatusOr<int> image_pid_of(int host_pid) {
  GW_ASSIGN_OR_RETURN(const std::string text,
                      kernel::read_file(fmt::format("/proc/{}/status", host_pid)));
  const size_t line = text.find("\nNSpid:");
  if (line == std::string::npos)
    return make_error(absl::StatusCode::kInternal, "/proc/{}/status has no NSpid", host_pid);
  const size_t end = text.find('\n', line + 1);
  const size_t last = text.find_last_of(" \t", end);
  int pid = 0;
  std::from_chars(text.data() + last + 1, text.data() + end, pid);
  return pid;
}

absl::StatusOr<std::optional<SignalOwner>> signal_owner_of(const OpenFile& file) {
  f_owner_ex owner{};
  if (::fcntl(file.fd, F_GETOWN_EX, &owner) != 0)
    return errno_status(errno, fmt::format("fcntl({}, F_GETOWN_EX)", file.fd));
  const int signal = ::fcntl(file.fd, F_GETSIG);
  if (signal < 0) return errno_status(errno, fmt::format("fcntl({}, F_GETSIG)", file.fd));
  if (owner.pid == 0 && signal == 0 && (file.status_flags & O_ASYNC) == 0) return std::nullopt;
  SignalOwner state;
  state.set_signal(signal);
  if (owner.pid == 0) return state;
  auto image = image_pid_of(owner.pid);
  if (!image.ok())
    return annotate(image.status(), fmt::format("signal owner {} of {}", owner.pid, file.link));
  state.set_type(owner.type + 1);
  state.set_id(*image);
  return state;
}

absl::Status refuse_signal_owner(const OpenFile& file, const CaptureContext& context,
                                 std::vector<Refusal>& refusals) {
  f_owner_ex owner{};
  if (::fcntl(file.fd, F_GETOWN_EX, &owner) != 0)
    return errno_status(errno, fmt::format("fcntl({}, F_GETOWN_EX)", file.fd));
  if (owner.pid == 0) return absl::OkStatus();
  // F_NOTIFY makes its caller the owner.
  if (S_ISDIR(file.stat.st_mode)) {
    refuse(file, "fd.async", "it sends signals, perhaps of changes in the folder (F_NOTIFY)",
           "let the program use inotify", refusals);
    return absl::OkStatus();
  }
  GW_ASSIGN_OR_RETURN(const bool inside, in_service(HostPid{owner.pid}, context));
  if (!inside)
    refuse(file, "fd.async",
           fmt::format("it sends signals (F_SETOWN) to process or group {}, which has ended or is "
                       "outside of the service",
                       owner.pid),
           "let the program choose another owner, or use poll or epoll", refusals);
  return absl::OkStatus();
}

FileKind::Check add_signal_owner_calls(const SignalOwner& owner, int remote_fd,
                                       uint32_t status_flags, tracee::Batch& batch) {
  std::vector<size_t> calls;
  if (owner.type() != 0) {
    const f_owner_ex value{.type = static_cast<__pid_type>(owner.type() - 1), .pid = owner.id()};
    calls.push_back(batch.call(SYS_fcntl, {remote_fd, F_SETOWN_EX, batch.data(bytes_of(value))}));
  }
  calls.push_back(batch.call(SYS_fcntl, {remote_fd, F_SETSIG, owner.signal()}));
  // Last, because a terminal has its foreground group as the owner where there is none
  // (tty_fasync()).
  calls.push_back(batch.call(SYS_fcntl, {remote_fd, F_SETFL, status_flags}));
  return [calls](const tracee::Batch& done) {
    for (const size_t call : calls) GW_RETURN_IF_ERROR(done.check(call));
    return absl::OkStatus();
  };
}

}  // namespace godwit::resource
