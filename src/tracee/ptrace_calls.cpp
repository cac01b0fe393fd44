// Linux facts: ptrace(2); kernel/signal.c: any ptrace stop clears a pending JOBCTL_TRAP_STOP, so an
// interrupt that meets a signal-delivery stop is lost and is asked for again.
#include "tracee/ptrace_calls.h"

#include <dirent.h>
#include <elf.h>
#include <fcntl.h>
#include <sched.h>
#include <sys/ptrace.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <csignal>
#include <cstring>
#include <ctime>
#include <memory>

#include "base/status.h"
#include "base/unique_fd.h"

namespace godwit::tracee::internal {
namespace {

// A tracee on this CPU does not get it by our yielding where each session has its share
// (sched(7), autogroup), and one on another CPU takes 15 us at least: soon it is better to sleep.
constexpr int64_t kSpinNs = 4'000;
constexpr int64_t kFirstPauseNs = 200'000;
constexpr int64_t kLongestPauseNs = 1'000'000;

// wait(2) knows no deadline, but a tracee's stop also sends SIGCHLD to the tracer's process
// (do_notify_parent_cldstop, kernel/signal.c), also when its action is to ignore it, as long as it
// is blocked: that can be waited for with one. Another thread may take it: so with a short one.
class ChildNews {
 public:
  ChildNews() {
    ::sigemptyset(&set_);
    ::sigaddset(&set_, SIGCHLD);
    ::pthread_sigmask(SIG_BLOCK, &set_, &before_);
  }
  ~ChildNews() { ::pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
  ChildNews(const ChildNews&) = delete;
  ChildNews& operator=(const ChildNews&) = delete;

  void wait(int64_t limit_ns) const {
    const timespec limit{.tv_sec = 0, .tv_nsec = limit_ns};
    ::sigtimedwait(&set_, nullptr, &limit);
  }

 private:
  sigset_t set_;
  sigset_t before_;
};

// Some status of `tid` within `limit_ns`: true and *status, or false.
absl::StatusOr<bool> try_wait(HostPid tid, int* status) {
  const pid_t got = ::waitpid(tid.value, status, __WALL | WNOHANG);
  if (got == tid.value) return true;
  if (got == 0 || errno == EINTR) return false;
  // ECHILD: not our tracee any more (it ended and somebody reaped it).
  return errno_status(errno == ECHILD ? ESRCH : errno, fmt::format("waitpid({})", tid.value));
}

Stop decode(int status) {
  Stop stop;
  stop.signal = WSTOPSIG(status);
  stop.event = static_cast<int>(static_cast<unsigned>(status) >> 16);
  if (stop.event == 0 && stop.signal == (SIGTRAP | 0x80)) {
    stop.syscall = true;
    stop.signal = SIGTRAP;
  }
  return stop;
}

absl::StatusOr<Stop> stop_of(HostPid tid, int status) {
  if (WIFSTOPPED(status)) return decode(status);
  return errno_status(ESRCH,
                      fmt::format("wait for a stop of task {} (it {} {})", tid.value,
                                  WIFSIGNALED(status) ? "was ended by signal" : "exited with",
                                  WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status)));
}

}  // namespace

bool Stop::is_event_stop() const { return event == PTRACE_EVENT_STOP; }
bool Stop::is_group_stop() const { return is_event_stop() && signal != SIGTRAP; }

absl::StatusOr<Stop> wait_stop(HostPid tid, Deadline deadline) {
  int status = 0;
  const int64_t spin_end = monotonic_ns() + kSpinNs;
  do {
    GW_ASSIGN_OR_RETURN(const bool got, try_wait(tid, &status));
    if (got) return stop_of(tid, status);
    ::sched_yield();
  } while (monotonic_ns() < spin_end);

  const ChildNews news;
  int64_t pause = kFirstPauseNs;
  for (;;) {
    // Looked at before the wait: a task that stops between the two is still found.
    const bool late = deadline.passed();
    const char state = late || pause == kLongestPauseNs ? task_state(tid) : 'R';
    GW_ASSIGN_OR_RETURN(const bool got, try_wait(tid, &status));
    if (got) return stop_of(tid, status);
    // A leader that ended before its threads is reported only after the last of them.
    if (state == 'Z') {
      return errno_status(ESRCH, fmt::format("wait for a stop of task {} (a zombie)", tid.value));
    }
    if (late) {
      return make_error(absl::StatusCode::kDeadlineExceeded,
                        "wait for a stop of task {}: still in state {}", tid.value, state);
    }
    news.wait(pause);
    pause = std::min(pause + pause / 2, kLongestPauseNs);
  }
}

bool stops_until(HostPid tid, Deadline deadline) {
  siginfo_t news{};
  const int64_t spin_end = monotonic_ns() + kFirstPauseNs;
  for (;;) {
    const bool late = deadline.passed();
    const int done = ::waitid(P_PID, static_cast<id_t>(tid.value), &news,
                              WSTOPPED | WEXITED | WNOHANG | WNOWAIT | __WALL);
    // An error is for wait_stop() to tell.
    if ((done != 0 && errno != EINTR) || news.si_pid != 0) return true;
    if (late) return false;
    if (monotonic_ns() < spin_end) {
      ::sched_yield();
    } else {
      const timespec pause{0, kFirstPauseNs};
      ::nanosleep(&pause, nullptr);
    }
  }
}

absl::Status request(long request, std::string_view name, HostPid tid, uint64_t address,
                     uint64_t data) {
  if (::ptrace(static_cast<__ptrace_request>(request), tid.value, address, data) == 0) {
    return absl::OkStatus();
  }
  return errno_status(errno, fmt::format("ptrace({}, {})", name, tid.value));
}

absl::Status interrupt(HostPid tid) {
  return request(PTRACE_INTERRUPT, "PTRACE_INTERRUPT", tid, 0, 0);
}

absl::Status proceed(HostPid tid, long how, int signal) {
  return request(how, how == PTRACE_CONT ? "PTRACE_CONT" : "PTRACE_SYSCALL", tid, 0,
                 static_cast<uint64_t>(signal));
}

absl::Status get_registers(HostPid tid, Registers& registers) {
  iovec io{.iov_base = &registers, .iov_len = sizeof registers};
  return request(PTRACE_GETREGSET, "PTRACE_GETREGSET, NT_PRSTATUS", tid, NT_PRSTATUS,
                 reinterpret_cast<uint64_t>(&io));
}

absl::Status set_registers(HostPid tid, const Registers& registers) {
  iovec io{.iov_base = const_cast<Registers*>(&registers), .iov_len = sizeof registers};
  return request(PTRACE_SETREGSET, "PTRACE_SETREGSET, NT_PRSTATUS", tid, NT_PRSTATUS,
                 reinterpret_cast<uint64_t>(&io));
}

absl::Status get_signal_mask(HostPid tid, uint64_t& mask) {
  return request(PTRACE_GETSIGMASK, "PTRACE_GETSIGMASK", tid, sizeof mask,
                 reinterpret_cast<uint64_t>(&mask));
}

absl::Status set_signal_mask(HostPid tid, uint64_t mask) {
  return request(PTRACE_SETSIGMASK, "PTRACE_SETSIGMASK", tid, sizeof mask,
                 reinterpret_cast<uint64_t>(&mask));
}

absl::StatusOr<Stop> settle(HostPid tid, int signal, Deadline deadline) {
  for (;;) {
    GW_RETURN_IF_ERROR(interrupt(tid));
    GW_RETURN_IF_ERROR(proceed(tid, PTRACE_CONT, signal));
    GW_ASSIGN_OR_RETURN(const Stop stop, wait_stop(tid, deadline));
    if (stop.is_event_stop()) return stop;
    signal = stop.is_signal_delivery() ? stop.signal : 0;
  }
}

absl::StatusOr<std::string> read_proc_file(const std::string& path) {
  const UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd) return errno_status(errno, fmt::format("open(\"{}\")", path));
  std::string text;
  char buffer[16384];
  for (;;) {
    const ssize_t got = ::read(fd.get(), buffer, sizeof buffer);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return errno_status(errno, fmt::format("read(\"{}\")", path));
    if (got == 0) return text;
    text.append(buffer, static_cast<size_t>(got));
  }
}

namespace {

// Field `number` of /proc/PID/stat (proc_pid_stat(5)), which is behind the name.
absl::StatusOr<uint64_t> stat_field(std::string_view text, int number) {
  // The name in parentheses may itself hold any character: the last one ends it.
  size_t at = text.rfind(')');
  for (int field = 2; field < number && at != std::string_view::npos; ++field)
    at = text.find(' ', at + 1);
  uint64_t value = 0;
  if (at != std::string_view::npos &&
      std::from_chars(text.data() + at + 1, text.data() + text.size(), value).ec == std::errc())
    return value;
  return make_error(absl::StatusCode::kInternal, "/proc/.../stat has no field {}", number);
}

}  // namespace

absl::StatusOr<HostPid> parent_of(HostPid pid) {
  GW_ASSIGN_OR_RETURN(const std::string text,
                      read_proc_file(fmt::format("/proc/{}/stat", pid.value)));
  // Behind the name: the state's letter, then the parent.
  const size_t at = text.rfind(") ");
  HostPid parent;
  if (at == std::string::npos || at + 4 >= text.size() ||
      std::from_chars(text.data() + at + 4, text.data() + text.size(), parent.value).ec !=
          std::errc())
    return make_error(absl::StatusCode::kInternal, "/proc/{}/stat has no parent", pid.value);
  return parent;
}

// Of the thread, not the process, whose stat adds up the times of all its threads. Half of what
// status takes.
absl::StatusOr<SignalSets> signal_sets(HostPid tid) {
  GW_ASSIGN_OR_RETURN(const std::string text,
                      read_proc_file(fmt::format("/proc/{0}/task/{0}/stat", tid.value)));
  SignalSets sets;
  GW_ASSIGN_OR_RETURN(sets.ignored, stat_field(text, 33));
  GW_ASSIGN_OR_RETURN(sets.caught, stat_field(text, 34));
  return sets;
}

absl::StatusOr<ImagePid> innermost_tid(HostPid tid) {
  GW_ASSIGN_OR_RETURN(const std::string text,
                      read_proc_file(fmt::format("/proc/{}/status", tid.value)));
  const size_t line = text.find("\nNSpid:");
  const size_t end = line == std::string::npos ? line : text.find('\n', line + 1);
  const size_t tab = end == std::string::npos ? end : text.rfind('\t', end);
  ImagePid inner;
  if (tab == std::string::npos ||
      std::from_chars(text.data() + tab + 1, text.data() + end, inner.value).ec != std::errc()) {
    return make_error(absl::StatusCode::kInternal, "/proc/{}/status has no NSpid", tid.value);
  }
  return inner;
}

char task_state(HostPid tid) {
  const auto text = read_proc_file(fmt::format("/proc/{}/stat", tid.value));
  if (!text.ok()) return 0;
  // The name in parentheses may itself hold any character: the last one ends it.
  const size_t at = text->rfind(')');
  return at == std::string::npos || at + 2 >= text->size() ? '\0' : (*text)[at + 2];
}

absl::StatusOr<std::vector<HostPid>> tasks_of(HostPid pid) {
  const std::string path = fmt::format("/proc/{}/task", pid.value);
  const std::unique_ptr<DIR, int (*)(DIR*)> dir(::opendir(path.c_str()), ::closedir);
  std::vector<HostPid> tids;
  if (!dir) {
    if (errno == ENOENT || errno == ESRCH) return tids;
    return errno_status(errno, fmt::format("opendir(\"{}\")", path));
  }
  while (const dirent* entry = ::readdir(dir.get())) {
    HostPid tid;
    const char* end = entry->d_name + std::strlen(entry->d_name);
    if (std::from_chars(entry->d_name, end, tid.value).ptr == end) tids.push_back(tid);
  }
  return tids;
}

}  // namespace godwit::tracee::internal
