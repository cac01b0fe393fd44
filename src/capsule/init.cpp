#include "capsule/init.h"

#include <fcntl.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string>

#include "base/status.h"
#include "capsule/messages.h"
#include "capsule/shim.pb.h"
#include "capsule/spawn.h"
#include "kernel/syscalls.h"

namespace godwit::capsule {
namespace {

constexpr int kForwarded[] = {SIGTERM, SIGINT,   SIGHUP,  SIGQUIT, SIGUSR1,
                              SIGUSR2, SIGWINCH, SIGALRM, SIGCONT, SIGPWR};

absl::Status raise_loopback() {
  const UniqueFd socket(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  if (!socket) return errno_status(errno, "socket(AF_INET)");
  ifreq request{};
  std::memcpy(request.ifr_name, "lo", 3);
  request.ifr_flags = IFF_UP | IFF_RUNNING;
  if (::ioctl(socket.get(), SIOCSIFFLAGS, &request) != 0) {
    return errno_status(errno, "ioctl(SIOCSIFFLAGS, lo)");
  }
  return absl::OkStatus();
}

class Init {
 public:
  explicit Init(InitPlan plan) : plan_(std::move(plan)), replica_(plan_.replica) {}

  absl::Status set_up();
  void loop();
  void report(const absl::Status& status) {
    InitReply reply;
    reply.set_ready(true);
    put_status(reply, status);
    send(reply);
  }

 private:
  void send(const InitReply& reply, const std::vector<int>& fds = {}) {
    // A shim that does not take it has gone, and we with it.
    if (!send_message(plan_.control.get(), reply, fds).ok()) ::_exit(1);
  }
  void serve(const InitRequest& request, const std::vector<UniqueFd>& fds);
  absl::Status spawn(const InitRequest& request, const std::vector<UniqueFd>& fds, InitReply& reply,
                     Spawned& spawned);
  void take_signal();
  void reap();
  bool only_execs_left() const;
  void end_if_done(bool no_children);

  InitPlan plan_;
  UniqueFd signals_;
  UniqueFd proc_;
  bool replica_;
  bool started_ = false;
  pid_t main_ = 0;
  std::vector<pid_t> execs_;
};

absl::Status Init::set_up() {
  // Written "0": the writer itself. First the cgroup namespace, while we are in the service's own
  // cgroup, which becomes its root: /proc/PID/cgroup then reads the same on every node.
  if (::unshare(CLONE_NEWCGROUP) != 0) return errno_status(errno, "unshare(CLONE_NEWCGROUP)");
  const UniqueFd procs(::openat(plan_.init_cgroup.get(), "cgroup.procs", O_WRONLY | O_CLOEXEC));
  if (!procs || ::write(procs.get(), "0", 1) != 1) {
    return errno_status(errno, "write(cgroup.procs, 0)");
  }
  GW_RETURN_IF_ERROR(enter_root(plan_.root));
  GW_RETURN_IF_ERROR(raise_loopback());
  GW_ASSIGN_OR_RETURN(const UniqueFd null, kernel::open("/dev/null", O_RDWR));
  for (int fd = 0; fd < 3; ++fd) {
    if (::dup2(null.get(), fd) < 0) return errno_status(errno, "dup2(/dev/null)");
  }
  // Kept: the capsule may unmount or cover its /proc.
  GW_ASSIGN_OR_RETURN(proc_, kernel::open("/proc", O_RDONLY | O_DIRECTORY));
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGCHLD);
  for (const int number : kForwarded) sigaddset(&set, number);
  // Blocked signals reach pid 1 even with the default action, from inside too (signal(7),
  // pid_namespaces(7): only unblocked ones without a handler are dropped).
  if (::sigprocmask(SIG_SETMASK, &set, nullptr) != 0) return errno_status(errno, "sigprocmask");
  signals_.reset(::signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK));
  if (!signals_) return errno_status(errno, "signalfd");
  return absl::OkStatus();
}

void Init::loop() {
  while (true) {
    pollfd fds[2] = {{plan_.control.get(), POLLIN, 0}, {signals_.get(), POLLIN, 0}};
    // The one wait without a deadline: waiting is what init is for.
    if (::poll(fds, 2, -1) < 0) continue;
    if (fds[1].revents != 0) take_signal();
    if (fds[0].revents == 0) continue;
    InitRequest request;
    auto received = receive_message(plan_.control.get(), request, Deadline::in(absl::Seconds(1)));
    if (!received.ok()) ::_exit(1);  // the shim has gone: never an unmanaged capsule
    serve(request, *received);
  }
}

void Init::serve(const InitRequest& request, const std::vector<UniqueFd>& fds) {
  InitReply reply;
  absl::Status status;
  Spawned spawned;
  switch (request.request_case()) {
    case InitRequest::kSpawn:
    case InitRequest::kHusk:
      reply.set_spawned(true);
      status = spawn(request, fds, reply, spawned);
      break;
    case InitRequest::kAdopt:
      reply.set_done(true);
      replica_ = false;
      started_ = true;
      break;
    case InitRequest::kSetMain:
      reply.set_done(true);
      main_ = request.set_main();
      break;
    default:
      status = absl::InvalidArgumentError("init: unknown request");
  }
  put_status(reply, status);
  std::vector<int> back;
  if (spawned.pidfd) back.push_back(spawned.pidfd.get());
  if (spawned.tty_master) back.push_back(spawned.tty_master.get());
  if (!status.ok()) back.clear();
  send(reply, back);
  reap();
}

absl::Status Init::spawn(const InitRequest& request, const std::vector<UniqueFd>& fds,
                         InitReply& reply, Spawned& spawned) {
  const int cgroup = plan_.work_cgroup.get();
  if (request.has_husk()) {
    if (fds.size() != 1) return absl::InvalidArgumentError("husk: one socket is needed");
    const ImagePid pid{request.husk().image_pid()};
    GW_ASSIGN_OR_RETURN(spawned, spawn_husk(pid, fds[0], request.husk().comm_fd(), cgroup));
    reply.set_image_pid(spawned.pid.value);
    return absl::OkStatus();
  }
  const InitRequest::Spawn& spawn = request.spawn();
  Stdio stdio;
  if (!spawn.program().tty()) {
    const size_t first = spawn.null_stdin() ? 1 : 0;
    if (fds.size() != 3 - first) return absl::InvalidArgumentError("spawn: stdio is needed");
    for (size_t i = first; i < 3; ++i) stdio.fd[i] = fds[i - first].get();
  }
  if (spawn.main()) started_ = true;
  int exit_code = 0;
  absl::StatusOr<Spawned> made = spawn_program(spawn.program(), stdio, cgroup, exit_code);
  if (!made.ok()) {
    reply.set_exit_code(exit_code);
    return made.status();
  }
  spawned = *std::move(made);
  reply.set_image_pid(spawned.pid.value);
  if (spawn.main()) {
    main_ = spawned.pid.value;
  } else {
    execs_.push_back(spawned.pid.value);
  }
  return absl::OkStatus();
}

void Init::take_signal() {
  signalfd_siginfo info{};
  bool children = false;
  while (::read(signals_.get(), &info, sizeof info) == sizeof info) {
    if (info.ssi_signo == SIGCHLD) {
      children = true;
    } else if (main_ != 0) {
      ::kill(main_, static_cast<int>(info.ssi_signo));
    }
  }
  if (children) reap();
}

void Init::reap() {
  // A replica's processes are not yet what they will be: a husk may become a zombie that belongs
  // to the image.
  if (replica_) return;
  bool some = false;
  while (true) {
    int status = 0;
    const pid_t pid = ::waitpid(-1, &status, WNOHANG | __WALL);
    if (pid == 0) break;
    if (pid < 0) {
      end_if_done(true);
      return;
    }
    some = true;
    const auto exec = std::find(execs_.begin(), execs_.end(), pid);
    if (pid != main_ && exec == execs_.end()) continue;
    if (exec != execs_.end()) execs_.erase(exec);
    InitReply reply;
    reply.mutable_exit()->set_image_pid(pid);
    reply.mutable_exit()->set_wait_status(status);
    send(reply);
    if (pid == main_) main_ = 0;
  }
  if (some) end_if_done(false);
}

void Init::end_if_done(bool no_children) {
  if (!started_) return;
  // Leaving ends what is left in the capsule.
  if (no_children || only_execs_left()) ::_exit(0);
}

// Are all living children of ours roots of exec? (/proc/PID/task/TID/children is not in every
// kernel.)
bool Init::only_execs_left() const {
  if (execs_.empty()) return false;
  auto names = kernel::list_folder(fmt::format("/proc/self/fd/{}", proc_.get()));
  if (!names.ok()) return false;
  for (const std::string& name : *names) {
    if (name.find_first_not_of("0123456789") != std::string::npos) continue;
    const pid_t pid = std::stoi(name);
    const UniqueFd fd(::openat(proc_.get(), (name + "/stat").c_str(), O_RDONLY | O_CLOEXEC));
    char text[512];
    const ssize_t n = fd ? ::read(fd.get(), text, sizeof text - 1) : -1;
    if (n <= 0) continue;
    text[n] = '\0';
    // proc(5): "pid (comm) state ppid"; comm may hold anything, so from its last bracket.
    const char* const bracket = std::strrchr(text, ')');
    char state = 0;
    int parent = 0;
    if (bracket == nullptr || std::sscanf(bracket + 1, " %c %d", &state, &parent) != 2) continue;
    if (parent != 1 || state == 'Z' || state == 'X') continue;
    if (std::find(execs_.begin(), execs_.end(), pid) == execs_.end()) return false;
  }
  return true;
}

}  // namespace

void run_init(InitPlan plan) {
  ::prctl(PR_SET_NAME, "godwit-init");
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  ::setsid();
  ::signal(SIGPIPE, SIG_IGN);
  Init init(std::move(plan));
  const absl::Status status = init.set_up();
  init.report(status);
  if (!status.ok()) ::_exit(1);
  init.loop();
  ::_exit(1);
}

}  // namespace godwit::capsule
