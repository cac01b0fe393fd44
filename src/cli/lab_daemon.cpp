#include "cli/lab_daemon.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdio>

#include "base/status.h"
#include "kernel/syscalls.h"
#include "network/netns.h"

namespace godwit::cli {
namespace {

// Field 22 of /proc/PID/stat (proc(5)).
uint64_t start_ticks(pid_t pid) {
  const auto stat = kernel::read_file(fmt::format("/proc/{}/stat", pid), 4096);
  if (!stat.ok()) return 0;
  size_t at = stat->rfind(')');
  for (int field = 2; field < 22 && at != std::string::npos; ++field) at = stat->find(' ', at + 1);
  return at == std::string::npos ? 0 : std::strtoull(stat->c_str() + at, nullptr, 10);
}

bool wait_for_end(int pidfd, Deadline deadline) {
  pollfd polled{pidfd, POLLIN, 0};
  while (::poll(&polled, 1, deadline.remaining_ms()) < 0 && errno == EINTR) {
  }
  return polled.revents != 0;
}

// Last lines of a log, for an error message.
std::string tail_of(const std::string& path) {
  const auto text = kernel::read_file(path);
  if (!text.ok()) return {};
  return text->size() > 1500 ? text->substr(text->size() - 1500) : *text;
}

[[noreturn]] void become(const std::vector<std::string>& arguments, int log, int ready) {
  ::setsid();
  // A daemon of the lab outlives this command and its terminal. Descriptor 3 is its --ready-fd.
  const int null = ::open("/dev/null", O_RDONLY | O_CLOEXEC);
  if (null < 0 || ::dup2(null, 0) < 0 || ::dup2(log, 1) < 0 || ::dup2(log, 2) < 0) ::_exit(126);
  if (ready == 3) {
    if (::fcntl(ready, F_SETFD, 0) != 0) ::_exit(126);
  } else if (::dup2(ready, 3) < 0) {
    ::_exit(126);
  }
  ::syscall(SYS_close_range, 4, ~0U, 0);
  std::vector<char*> argv;
  std::string name = "godwit";
  argv.push_back(name.data());
  for (const std::string& each : arguments) argv.push_back(const_cast<char*>(each.c_str()));
  argv.push_back(nullptr);
  ::execv("/proc/self/exe", argv.data());
  ::_exit(127);
}

}  // namespace

absl::Status write_pid_file(const std::string& path, pid_t pid) {
  GW_ASSIGN_OR_RETURN(const UniqueFd fd,
                      kernel::open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
  const std::string text = fmt::format("{} {}\n", pid, start_ticks(pid));
  if (::write(fd.get(), text.data(), text.size()) != static_cast<ssize_t>(text.size()))
    return errno_status(errno, fmt::format("write({})", path));
  return absl::OkStatus();
}

UniqueFd open_by_pid_file(const std::string& path) {
  const auto text = kernel::read_file(path, 128);
  if (!text.ok()) return UniqueFd();
  long pid = 0;
  unsigned long long ticks = 0;
  if (std::sscanf(text->c_str(), "%ld %llu", &pid, &ticks) != 2 || pid <= 0) return UniqueFd();
  auto pidfd = kernel::pidfd_open(HostPid{static_cast<pid_t>(pid)});
  if (!pidfd.ok() || start_ticks(static_cast<pid_t>(pid)) != ticks) return UniqueFd();
  // Ended, but not yet reaped by whoever inherited it.
  if (wait_for_end(pidfd->get(), Deadline::in(absl::ZeroDuration()))) return UniqueFd();
  return std::move(*pidfd);
}

absl::Status start_daemon(const std::string& netns, const std::vector<std::string>& arguments,
                          const std::string& log, const std::string& pid_file, Deadline deadline) {
  GW_ASSIGN_OR_RETURN(const UniqueFd log_fd,
                      kernel::open(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600));
  GW_ASSIGN_OR_RETURN(kernel::Pipe ready, kernel::pipe2(0));
  std::vector<std::string> all = arguments;
  all.insert(all.end(), {"--ready-fd", "3"});
  pid_t pid = -1;
  {
    GW_ASSIGN_OR_RETURN(const network::NetnsScope inside, network::NetnsScope::enter_named(netns));
    pid = ::fork();
    if (pid == 0) become(all, log_fd.get(), ready.write.get());
  }
  if (pid < 0) return errno_status(errno, "fork()");
  GW_RETURN_IF_ERROR(write_pid_file(pid_file, pid));
  ready.write.reset();
  pollfd polled{ready.read.get(), POLLIN, 0};
  char byte = 0;
  while (::poll(&polled, 1, deadline.remaining_ms()) < 0 && errno == EINTR) {
  }
  if (polled.revents != 0 && ::read(ready.read.get(), &byte, 1) == 1) return absl::OkStatus();
  return make_error(absl::StatusCode::kUnavailable,
                    "the daemon in {} did not become ready; the end of {}:\n{}", netns, log,
                    tail_of(log));
}

absl::Status stop_daemon(const std::string& pid_file, Deadline deadline) {
  const UniqueFd pidfd = open_by_pid_file(pid_file);
  if (!pidfd) return absl::OkStatus();
  ::syscall(SYS_pidfd_send_signal, pidfd.get(), SIGTERM, nullptr, 0);
  if (wait_for_end(pidfd.get(), deadline)) return absl::OkStatus();
  ::syscall(SYS_pidfd_send_signal, pidfd.get(), SIGKILL, nullptr, 0);
  if (wait_for_end(pidfd.get(), Deadline::in(absl::Seconds(10)))) return absl::OkStatus();
  return make_error(absl::StatusCode::kDeadlineExceeded, "the daemon of {} does not end", pid_file);
}

}  // namespace godwit::cli
