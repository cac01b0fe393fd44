#include "capsule/shim.h"

#include <fcntl.h>
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "base/clock.h"
#include "base/log.h"
#include "base/status.h"
#include "capsule/init.h"
#include "capsule/messages.h"
#include "capsule/paths.h"
#include "capsule/shim_server.h"
#include "kernel/syscalls.h"

namespace godwit::capsule {
namespace {

constexpr int kCreatorFd = 3;
constexpr absl::Duration kReadyTimeout = absl::Seconds(30);

struct Arguments {
  NodePaths node;
  std::string name;
  bool replica = false;
  std::vector<std::string> masked;
};

absl::StatusOr<Arguments> parse(const std::vector<std::string>& args) {
  Arguments parsed;
  for (size_t i = 0; i < args.size(); ++i) {
    if (args[i] == "--replica") {
      parsed.replica = true;
      continue;
    }
    if (i + 1 == args.size()) break;
    const std::string& value = args[i + 1];
    if (args[i] == "--state-dir") {
      parsed.node.state_dir = value;
    } else if (args[i] == "--node") {
      parsed.node.node = value;
    } else if (args[i] == "--name") {
      parsed.name = value;
    } else if (args[i] == "--mask") {
      parsed.masked.push_back(value);
    } else {
      return make_error(absl::StatusCode::kInvalidArgument, "shim: unknown argument {}", args[i]);
    }
    ++i;
  }
  if (!parsed.node.state_dir.starts_with('/')) {
    return absl::InvalidArgumentError("shim: --state-dir must be absolute");
  }
  GW_RETURN_IF_ERROR(check_name(parsed.node.node));
  GW_RETURN_IF_ERROR(check_capsule_name(parsed.name));
  parsed.masked.push_back(parsed.node.state_dir);
  return parsed;
}

// Children of ours will be in a new time namespace (time_namespaces(7)); offsets can be written
// only while it is empty. We ourselves stay where we are.
absl::Status make_time_namespace(const CapsuleSpec& spec) {
  if (::unshare(CLONE_NEWTIME) != 0) return errno_status(errno, "unshare(CLONE_NEWTIME)");
  constexpr int64_t kSecond = 1'000'000'000;
  std::string text;
  for (const auto& [clock, ns] : {std::pair{"monotonic", spec.monotonic_offset_ns()},
                                  std::pair{"boottime", spec.boottime_offset_ns()}}) {
    // Nanoseconds must be 0..999999999: round the seconds down.
    const int64_t rest = (ns % kSecond + kSecond) % kSecond;
    text += fmt::format("{} {} {}\n", clock, (ns - rest) / kSecond, rest);
  }
  return kernel::write_file("/proc/self/timens_offsets", text);
}

absl::StatusOr<UniqueFd> listen_at(const ServicePaths& paths) {
  UniqueFd socket(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!socket) return errno_status(errno, "socket(AF_UNIX)");
  // sun_path holds 107 bytes; a folder's descriptor makes any path short enough.
  GW_ASSIGN_OR_RETURN(const UniqueFd dir, kernel::open(paths.dir, O_PATH | O_DIRECTORY));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  const std::string path = fmt::format("/proc/self/fd/{}/shim.sock", dir.get());
  path.copy(address.sun_path, sizeof address.sun_path - 1);
  ::unlink(path.c_str());
  if (::bind(socket.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) {
    return errno_status(errno, fmt::format("bind(\"{}\")", paths.socket()));
  }
  if (::chmod(path.c_str(), 0600) != 0) return errno_status(errno, "chmod(shim.sock)");
  if (::listen(socket.get(), 64) != 0) return errno_status(errno, "listen(shim.sock)");
  return socket;
}

// In the child: everything of the shim's but what init needs.
void close_all_but(std::vector<int> kept) {
  std::sort(kept.begin(), kept.end());
  unsigned from = 3;
  for (const int fd : kept) {
    const auto at = static_cast<unsigned>(fd);
    if (at > from) ::syscall(SYS_close_range, from, at - 1, 0U);
    from = at + 1;
  }
  ::syscall(SYS_close_range, from, ~0U, 0U);
}

absl::Status start_init(const Arguments& args, ServerParts& parts) {
  const Cgroup& cgroup = parts.cgroup;
  GW_ASSIGN_OR_RETURN(SocketPair control, socket_pair(SOCK_SEQPACKET));
  InitPlan plan;
  plan.root = {&parts.spec, parts.paths, args.masked, !args.replica};
  plan.replica = args.replica;
  plan.control = std::move(control.second);
  GW_ASSIGN_OR_RETURN(const UniqueFd own, cgroup.open());
  GW_ASSIGN_OR_RETURN(plan.init_cgroup, cgroup.child("init").open());
  GW_ASSIGN_OR_RETURN(plan.work_cgroup, cgroup.child("work").open());
  int pidfd = -1;
  clone_args clone{};
  // Into the service's own cgroup, not yet `init`: see Init::set_up().
  clone.flags = CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS |
                CLONE_PIDFD | CLONE_INTO_CGROUP;
  clone.pidfd = reinterpret_cast<uint64_t>(&pidfd);
  clone.exit_signal = SIGCHLD;
  clone.cgroup = static_cast<uint64_t>(own.get());
  const long pid = ::syscall(SYS_clone3, &clone, sizeof clone);
  if (pid < 0) return errno_status(errno, "clone3(CLONE_NEWPID | CLONE_NEWNS | ...)");
  if (pid == 0) {
    close_all_but({plan.control.get(), plan.init_cgroup.get(), plan.work_cgroup.get()});
    run_init(std::move(plan));
  }
  parts.init_pid = {static_cast<pid_t>(pid)};
  parts.init_pidfd.reset(pidfd);
  parts.init_control = std::move(control.first);
  plan.control.reset();
  InitReply ready;
  const auto received =
      receive_message(parts.init_control.get(), ready, Deadline::in(kReadyTimeout));
  if (!received.ok()) return annotate(received.status(), "init of the capsule");
  return get_status(ready);
}

absl::Status set_up(const Arguments& args, ServerParts& parts) {
  parts.paths = args.node.service(args.name);
  parts.replica = args.replica;
  GW_ASSIGN_OR_RETURN(const std::string spec, kernel::read_file(parts.paths.spec()));
  if (!parts.spec.ParseFromString(spec)) {
    return make_error(absl::StatusCode::kDataLoss, "{}: cannot be read", parts.paths.spec());
  }
  GW_ASSIGN_OR_RETURN(parts.cgroup, service_cgroup(args.node.node, args.name));
  for (const char* part : {"shim", "init", "work"}) {
    GW_RETURN_IF_ERROR(parts.cgroup.child(part).create());
  }
  GW_RETURN_IF_ERROR(parts.cgroup.child("shim").add(HostPid{::getpid()}));
  GW_RETURN_IF_ERROR(make_time_namespace(parts.spec));
  GW_RETURN_IF_ERROR(start_init(args, parts));
  GW_ASSIGN_OR_RETURN(parts.listener, listen_at(parts.paths));
  return absl::OkStatus();
}

int serve(const Arguments& args) {
  init_logging(fmt::format("shim {}", args.name));
  ServerParts parts;
  parts.creator.reset(kCreatorFd);
  absl::Status status = set_up(args, parts);
  absl::StatusOr<StdioHub> stdio = absl::UnknownError("");
  if (status.ok()) {
    stdio = StdioHub::make(parts.paths.log(), parts.spec.tty(), parts.spec.interactive());
    status = stdio.status();
  }
  if (!status.ok()) {
    ShimReply reply;
    put_status(reply, status);
    log_error("{}", message_of(status));
    // Our end ends init too.
    return send_message(parts.creator.get(), reply).ok() ? 1 : 2;
  }
  ShimServer(std::move(parts), *std::move(stdio)).run();
  return 0;
}

// Standard streams: nothing in, messages to shim.log.
absl::Status redirect(const ServicePaths& paths) {
  GW_ASSIGN_OR_RETURN(const UniqueFd null, kernel::open("/dev/null", O_RDWR));
  GW_ASSIGN_OR_RETURN(const UniqueFd log,
                      kernel::open(paths.shim_log(), O_WRONLY | O_CREAT | O_APPEND, 0600));
  if (::dup2(null.get(), 0) < 0 || ::dup2(log.get(), 1) < 0 || ::dup2(log.get(), 2) < 0) {
    return errno_status(errno, "dup2(stdio)");
  }
  return absl::OkStatus();
}

}  // namespace

int shim_main(const std::vector<std::string>& args) {
  const absl::StatusOr<Arguments> parsed = parse(args);
  absl::Status status = parsed.status();
  if (status.ok()) status = redirect(parsed->node.service(parsed->name));
  if (!status.ok()) {
    ShimReply reply;
    put_status(reply, status);
    return send_message(kCreatorFd, reply).ok() ? 1 : 2;
  }
  ::signal(SIGPIPE, SIG_IGN);
  ::signal(SIGHUP, SIG_IGN);
  ::setsid();
  const pid_t pid = ::fork();
  if (pid < 0) return 1;
  if (pid > 0) ::_exit(0);  // the creator reaps us; the shim is nobody's child
  ::prctl(PR_SET_NAME, "godwit-shim");
  ::fcntl(kCreatorFd, F_SETFD, FD_CLOEXEC);
  if (::chdir("/") != 0) return 1;
  return serve(*parsed);
}

}  // namespace godwit::capsule
