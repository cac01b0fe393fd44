#include "cli/lab_libvirt.h"

#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>

#include "base/status.h"
#include "cli/lab_daemon.h"
#include "cli/lab_file.h"
#include "kernel/syscalls.h"
#include "network/netns.h"
#include "node/node_config.h"

namespace godwit::cli {
namespace {

namespace fs = std::filesystem;

// Of QEMU, after SIGKILL, whatever libvirt has taken to end.
constexpr absl::Duration kMachinesEndWait = absl::Seconds(10);
constexpr char kLibvirtd[] = "/usr/sbin/libvirtd";

absl::Status make_folders(const std::string& path) {
  std::error_code error;
  fs::create_directories(path, error);
  return error ? errno_status(error.value(), fmt::format("mkdir({})", path)) : absl::OkStatus();
}

// libvirt refuses a migration between two hosts of one uuid.
absl::Status write_configuration(const LabLibvirt& place) {
  GW_RETURN_IF_ERROR(write_lab_file(
      place.folder() + "/etc/libvirtd.conf",
      fmt::format("host_uuid = \"6f6e6f64-0000-4000-8000-{:012d}\"\n"
                  "auth_unix_ro = \"none\"\nauth_unix_rw = \"none\"\nunix_sock_group = \"root\"\n",
                  place.number)));
  return write_lab_file(place.folder() + "/etc/qemu.conf",
                        "user = \"root\"\ngroup = \"root\"\nsecurity_driver = \"none\"\n"
                        "cgroup_controllers = []\nnamespaces = []\nstdio_handler = \"file\"\n");
}

struct Bind {
  std::string from;
  std::string to;
};

std::vector<Bind> binds_of(const LabLibvirt& place) {
  return {
      {place.folder() + "/etc", "/etc/libvirt"},      {place.folder() + "/log", "/var/log/libvirt"},
      {place.folder() + "/run", "/run/libvirt"},      {place.sockets(), node::kVmSockets},
      {place.state + "/libvirt", "/var/lib/libvirt"}, {place.cache, "/var/cache/libvirt"}};
}

// In the child; all that can fail for want of memory was done before.
[[noreturn]] void become_libvirtd(const LabLibvirt& place, const std::vector<Bind>& binds,
                                  int log) {
  ::setsid();
  if (::unshare(CLONE_NEWNS | CLONE_NEWUTS) != 0 ||
      ::mount(nullptr, "/", nullptr, MS_REC | MS_SLAVE, nullptr) != 0 ||
      ::sethostname(place.host_name.c_str(), place.host_name.size()) != 0)
    ::_exit(124);
  for (const Bind& each : binds)
    if (::mount(each.from.c_str(), each.to.c_str(), nullptr, MS_BIND, nullptr) != 0) ::_exit(125);
  const int null = ::open("/dev/null", O_RDONLY | O_CLOEXEC);
  if (null < 0 || ::dup2(null, 0) < 0 || ::dup2(log, 1) < 0 || ::dup2(log, 2) < 0) ::_exit(126);
  ::syscall(SYS_close_range, 3, ~0U, 0);
  sigset_t none;
  ::sigemptyset(&none);
  ::sigprocmask(SIG_SETMASK, &none, nullptr);
  ::execl(kLibvirtd, "libvirtd", "--pid-file", "/run/libvirt/libvirtd.pid", nullptr);
  ::_exit(127);
}

bool answers(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof address.sun_path) return false;
  std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
  const UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  return fd && ::connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) == 0;
}

void nap() {
  const timespec pause{0, 50'000'000};
  ::nanosleep(&pause, nullptr);
}

// QEMU's processes: a pid file each, which may be an old one's.
absl::Status end_machines(const LabLibvirt& place, Deadline deadline) {
  const std::string folder = place.folder() + "/run/qemu";
  const auto names = kernel::list_folder(folder);
  if (!names.ok()) return absl::OkStatus();
  for (const std::string& each : *names) {
    if (!each.ends_with(".pid")) continue;
    const auto text = kernel::read_file(folder + "/" + each, 64);
    const pid_t pid = text.ok() ? std::atoi(text->c_str()) : 0;
    if (pid <= 1) continue;
    const auto pidfd = kernel::pidfd_open(HostPid{pid});
    if (!pidfd.ok()) continue;
    const auto command = kernel::read_file(fmt::format("/proc/{}/cmdline", pid), 4096);
    const std::string guest = "guest=" + each.substr(0, each.size() - 4);
    if (!command.ok() || command->find(guest) == std::string::npos) continue;
    ::syscall(SYS_pidfd_send_signal, pidfd->get(), SIGKILL, nullptr, 0);
    while (::access(fmt::format("/proc/{}/cwd", pid).c_str(), F_OK) == 0) {
      if (deadline.passed())
        return make_error(absl::StatusCode::kDeadlineExceeded, "QEMU {} does not end", pid);
      nap();
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status start_libvirt(const LabLibvirt& place, Deadline deadline) {
  if (open_by_pid_file(place.folder() + "/pid")) return absl::OkStatus();
  if (::access(kLibvirtd, X_OK) != 0)
    return make_error(absl::StatusCode::kUnimplemented,
                      "{} is not there; install libvirt-daemon-system, libvirt-daemon-driver-qemu "
                      "and qemu-system-x86",
                      kLibvirtd);
  const std::vector<Bind> binds = binds_of(place);
  for (const Bind& each : binds) {
    GW_RETURN_IF_ERROR(make_folders(each.from));
    GW_RETURN_IF_ERROR(make_folders(each.to));
  }
  GW_RETURN_IF_ERROR(write_configuration(place));
  const std::string log = place.folder() + "/log/libvirtd.log";
  GW_ASSIGN_OR_RETURN(const UniqueFd log_fd,
                      kernel::open(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600));
  pid_t pid = -1;
  {
    GW_ASSIGN_OR_RETURN(const auto inside, network::NetnsScope::enter_named(place.netns));
    pid = ::fork();
    if (pid == 0) become_libvirtd(place, binds, log_fd.get());
  }
  if (pid < 0) return errno_status(errno, "fork()");
  GW_RETURN_IF_ERROR(write_pid_file(place.folder() + "/pid", pid));
  while (!answers(place.socket())) {
    int status = 0;
    if (::waitpid(pid, &status, WNOHANG) == pid)
      return make_error(absl::StatusCode::kUnavailable, "libvirtd ended with status {}; see {}",
                        WIFEXITED(status) ? WEXITSTATUS(status) : status, log);
    if (deadline.passed())
      return make_error(absl::StatusCode::kDeadlineExceeded, "libvirtd does not answer; see {}",
                        log);
    nap();
  }
  return absl::OkStatus();
}

absl::Status stop_libvirt(const LabLibvirt& place, Deadline deadline) {
  if (::access(place.folder().c_str(), F_OK) != 0) return absl::OkStatus();
  // libvirt first: it would look after machines that end.
  GW_RETURN_IF_ERROR(stop_daemon(place.folder() + "/pid", deadline));
  return end_machines(place, Deadline::in(kMachinesEndWait));
}

}  // namespace godwit::cli
