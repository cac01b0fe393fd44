#include "capsule/spawn.h"

#include <fcntl.h>
#include <grp.h>
#include <linux/sched.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <string>

#include "base/clock.h"
#include "base/status.h"
#include "capsule/user.h"
#include "kernel/syscalls.h"

namespace godwit::capsule {
namespace {

constexpr char kDefaultPath[] = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
constexpr int kNotFound = 127;
constexpr int kNotRunnable = 126;
constexpr absl::Duration kSpawnTimeout = absl::Seconds(20);

// What a child that failed before exec tells its parent.
struct Failure {
  int error = 0;
  int exit_code = kNotRunnable;
  std::array<char, 240> what{};
};

// By system call: the C library keeps signals 32 and 33 to itself and would leave them as they
// were inherited, ignored perhaps.
void reset_signals() {
  struct KernelSigaction {
    void* handler = nullptr;  // SIG_DFL
    unsigned long flags = 0;
    void* restorer = nullptr;
    uint64_t mask = 0;
  } const standard;
  for (int number = 1; number < _NSIG; ++number) {
    ::syscall(SYS_rt_sigaction, number, &standard, nullptr, sizeof standard.mask);
  }
  const uint64_t none = 0;
  ::syscall(SYS_rt_sigprocmask, SIG_SETMASK, &none, nullptr, sizeof none);
}

class Child {
 public:
  Child(const ExecSpec& program, const Stdio& stdio, int tty_master, int report)
      : program_(program), stdio_(stdio), tty_master_(tty_master), report_(report) {}

  [[noreturn]] void run() {
    ::setsid();
    User user;
    if (const absl::Status status = find_user(user); !status.ok()) {
      fail(errno_of(status), std::string(message_of(status)));
    }
    set_stdio(user);
    reset_signals();
    ::umask(022);
    // initgroups before the ids: afterwards we may not.
    if (::setgroups(user.groups.size(), user.groups.data()) != 0) fail(errno, "setgroups");
    if (::setresgid(user.gid, user.gid, user.gid) != 0) fail(errno, "setresgid");
    if (::setresuid(user.uid, user.uid, user.uid) != 0) fail(errno, "setresuid");
    const std::string dir = program_.workdir().empty() ? "/" : program_.workdir();
    if (::chdir(dir.c_str()) != 0) fail(errno, fmt::format("working directory {}", dir));
    exec(user);
  }

 private:
  [[noreturn]] void fail(int error, const std::string& what, int code = kNotRunnable) {
    Failure failure;
    failure.error = error;
    failure.exit_code = code;
    what.copy(failure.what.data(), failure.what.size() - 1);
    // The pipe is empty and this fits in it: one write, or the parent has gone.
    [[maybe_unused]] const ssize_t n = ::write(report_, &failure, sizeof failure);
    ::_exit(code);
  }

  absl::Status find_user(User& user) {
    auto text = [](const char* path) {
      auto read = kernel::read_file(path);
      return read.ok() ? *std::move(read) : std::string();
    };
    GW_ASSIGN_OR_RETURN(user,
                        resolve_user(program_.user(), text("/etc/passwd"), text("/etc/group")));
    return absl::OkStatus();
  }

  void set_stdio(const User& user) {
    int fds[3];
    if (program_.tty()) {
      // TIOCGPTPEER (4.13): the other side of this very terminal, whatever is mounted.
      const int tty = ::ioctl(tty_master_, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC);
      if (tty < 0) fail(errno, "ioctl(TIOCGPTPEER)");
      if (::ioctl(tty, TIOCSCTTY, 0) != 0) fail(errno, "ioctl(TIOCSCTTY)");
      for (int& fd : fds) fd = tty;
    } else {
      for (int i = 0; i < 3; ++i) {
        fds[i] = stdio_.fd[i];
        if (fds[i] < 0) fds[i] = ::open("/dev/null", (i == 0 ? O_RDONLY : O_WRONLY) | O_CLOEXEC);
        if (fds[i] < 0) fail(errno, "open(\"/dev/null\")");
      }
    }
    // Away from 0..2 first: one of them may stand where another goes.
    for (int& fd : fds) {
      const int high = ::fcntl(fd, F_DUPFD_CLOEXEC, 3);
      if (high < 0) fail(errno, "fcntl(F_DUPFD_CLOEXEC)");
      fd = high;
    }
    for (int i = 0; i < 3; ++i) {
      if (::dup2(fds[i], i) < 0) fail(errno, "dup2");
      // So that /dev/stdout can be opened by name by the program's user, as at a login.
      struct stat info {};
      if (user.uid != 0 && ::fstat(i, &info) == 0 && (S_ISFIFO(info.st_mode) || program_.tty())) {
        if (::fchown(i, user.uid, static_cast<gid_t>(-1)) != 0) fail(errno, "fchown(stdio)");
      }
    }
    // Ours are all O_CLOEXEC; what was inherited by mistake goes too. CLOEXEC and not close: the
    // report must live until exec.
    if (::syscall(SYS_close_range, 3U, ~0U, 4U /* CLOSE_RANGE_CLOEXEC, 5.11 */) != 0) {
      fail(errno, "close_range");
    }
  }

  [[noreturn]] void exec(const User& user) {
    std::vector<std::string> texts;
    bool path = false;
    bool home = false;
    for (const std::string& entry : program_.env()) {
      path = path || entry.starts_with("PATH=");
      home = home || entry.starts_with("HOME=");
      texts.push_back(entry);
    }
    if (!path) texts.emplace_back(kDefaultPath);
    if (!home) texts.push_back("HOME=" + user.home);
    std::vector<char*> env;
    for (std::string& text : texts) env.push_back(text.data());
    env.push_back(nullptr);
    std::vector<std::string> words(program_.argv().begin(), program_.argv().end());
    std::vector<char*> argv;
    for (std::string& word : words) argv.push_back(word.data());
    argv.push_back(nullptr);
    // execvp searches the PATH of `environ`.
    environ = env.data();
    ::execvp(argv[0], argv.data());
    const int error = errno;
    fail(error, words[0], error == ENOENT ? kNotFound : kNotRunnable);
  }

  const ExecSpec& program_;
  const Stdio& stdio_;
  int tty_master_;
  int report_;
};

// fork-like clone3 into the cgroup; `set_tid` 0: any pid. Returns 0 in the child.
absl::StatusOr<pid_t> clone_into(int cgroup, pid_t set_tid, int& pidfd) {
  clone_args args{};
  args.flags = CLONE_PIDFD | CLONE_INTO_CGROUP;
  args.pidfd = reinterpret_cast<uint64_t>(&pidfd);
  args.exit_signal = SIGCHLD;
  args.cgroup = static_cast<uint64_t>(cgroup);
  if (set_tid != 0) {
    args.set_tid = reinterpret_cast<uint64_t>(&set_tid);
    args.set_tid_size = 1;
  }
  const long pid = ::syscall(SYS_clone3, &args, sizeof args);
  if (pid < 0) {
    return errno_status(errno, fmt::format("clone3(set_tid {}, CLONE_INTO_CGROUP)", set_tid));
  }
  return static_cast<pid_t>(pid);
}

// Waits until the child closes its end; what it wrote before is its failure.
absl::Status await_report(int fd, pid_t child, Failure& failure) {
  const Deadline deadline = Deadline::in(kSpawnTimeout);
  while (true) {
    pollfd poll_fd{fd, POLLIN, 0};
    const int n = ::poll(&poll_fd, 1, deadline.remaining_ms());
    if (n < 0 && errno == EINTR) continue;
    if (n > 0) break;
    ::kill(child, SIGKILL);
    return absl::DeadlineExceededError("the new process did not get to run in time");
  }
  const ssize_t n = ::read(fd, &failure, sizeof failure);
  if (n < 0) return errno_status(errno, "read(report)");
  if (n == sizeof failure) {
    failure.what.back() = '\0';
    int status = 0;
    // It has said its last and exits at once.
    while (::waitpid(child, &status, __WALL) < 0 && errno == EINTR) {
    }
  } else {
    failure.error = 0;
    failure.what[0] = '\0';
  }
  return absl::OkStatus();
}

absl::StatusOr<UniqueFd> open_terminal() {
  GW_ASSIGN_OR_RETURN(UniqueFd master, kernel::open("/dev/pts/ptmx", O_RDWR | O_NOCTTY));
  int unlock = 0;
  if (::ioctl(master.get(), TIOCSPTLCK, &unlock) != 0) {
    return errno_status(errno, "ioctl(TIOCSPTLCK)");
  }
  return master;
}

}  // namespace

absl::StatusOr<Spawned> spawn_program(const ExecSpec& program, const Stdio& stdio, int work_cgroup,
                                      int& exit_code) {
  exit_code = kNotRunnable;
  if (program.argv().empty()) return absl::InvalidArgumentError("no command was given");
  Spawned spawned;
  if (program.tty()) {
    GW_ASSIGN_OR_RETURN(spawned.tty_master, open_terminal());
  }
  GW_ASSIGN_OR_RETURN(kernel::Pipe report, kernel::pipe2(0));
  int pidfd = -1;
  GW_ASSIGN_OR_RETURN(const pid_t pid, clone_into(work_cgroup, 0, pidfd));
  if (pid == 0) {
    Child(program, stdio, spawned.tty_master.get(), report.write.get()).run();
  }
  spawned.pid = {pid};
  spawned.pidfd.reset(pidfd);
  report.write.reset();
  Failure failure;
  GW_RETURN_IF_ERROR(await_report(report.read.get(), pid, failure));
  if (failure.error == 0 && failure.what[0] == '\0') return spawned;
  exit_code = failure.exit_code;
  if (failure.error == 0) return absl::NotFoundError(failure.what.data());
  return errno_status(failure.error, failure.what.data());
}

absl::StatusOr<Spawned> spawn_husk(ImagePid pid, const UniqueFd& comm, int comm_fd,
                                   int work_cgroup) {
  GW_ASSIGN_OR_RETURN(kernel::Pipe report, kernel::pipe2(0));
  Spawned spawned;
  int pidfd = -1;
  GW_ASSIGN_OR_RETURN(const pid_t made, clone_into(work_cgroup, pid.value, pidfd));
  if (made == 0) {
    Failure failure;
    if (report.write.get() != comm_fd && ::dup2(comm.get(), comm_fd) == comm_fd) {
      // Before the report is closed: who waits for it relies on all of this.
      reset_signals();
      const auto at = static_cast<unsigned>(comm_fd);
      if (at > 0) ::syscall(SYS_close_range, 0U, at - 1, 0U);
      ::syscall(SYS_close_range, at + 1, ~0U, 0U);
      while (true) ::pause();
    }
    failure.error = errno;
    [[maybe_unused]] const ssize_t n = ::write(report.write.get(), &failure, sizeof failure);
    ::_exit(kNotRunnable);
  }
  spawned.pid = {made};
  spawned.pidfd.reset(pidfd);
  report.write.reset();
  Failure failure;
  GW_RETURN_IF_ERROR(await_report(report.read.get(), made, failure));
  if (failure.error == 0) return spawned;
  return errno_status(failure.error, fmt::format("dup2(husk's socket, {})", comm_fd));
}

}  // namespace godwit::capsule
