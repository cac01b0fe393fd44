#include "capsule/capsule.h"

#include <fcntl.h>
#include <poll.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <span>

#include "base/status.h"
#include "capsule/messages.h"
#include "capsule/root_fs.h"
#include "capsule/small_file.h"
#include "kernel/syscalls.h"

namespace godwit::capsule {
namespace {

// An exec or start waits for a program's exec(2), which may read from a slow disk.
constexpr absl::Duration kCallTimeout = absl::Seconds(40);

// kNotFound: no shim listens.
absl::StatusOr<UniqueFd> connect_to(const ServicePaths& paths) {
  GW_ASSIGN_OR_RETURN(const UniqueFd dir, kernel::open(paths.dir, O_PATH | O_DIRECTORY));
  UniqueFd socket(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  if (!socket) return errno_status(errno, "socket(AF_UNIX)");
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  // sun_path holds 107 bytes; a folder's descriptor makes any path short enough.
  const std::string path = fmt::format("/proc/self/fd/{}/shim.sock", dir.get());
  path.copy(address.sun_path, sizeof address.sun_path - 1);
  while (::connect(socket.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) {
    if (errno == EINTR) continue;
    if (errno == ECONNREFUSED || errno == ENOENT) {
      return make_error(absl::StatusCode::kNotFound, "{}: no shim listens", paths.socket());
    }
    return errno_status(errno, fmt::format("connect(\"{}\")", paths.socket()));
  }
  return socket;
}

bool closed(const absl::Status& status) {
  return status.code() == absl::StatusCode::kOutOfRange || errno_of(status) == EPIPE ||
         errno_of(status) == ECONNRESET;
}

absl::Status remove_tree(const std::string& dir) {
  std::error_code error;
  // Something may be written there while it is removed: a log that comes from another node.
  for (int attempt = 0; attempt < 3; ++attempt) {
    std::filesystem::remove_all(dir, error);
    if (!error) return absl::OkStatus();
    if (error.value() != ENOTEMPTY) break;
  }
  return errno_status(error.value(), fmt::format("remove \"{}\"", dir));
}

}  // namespace

absl::StatusOr<ExitStatus> Exec::wait(Deadline deadline) {
  ShimReply reply;
  const auto received = receive_message(socket_.get(), reply, deadline);
  if (!received.ok()) {
    // The shim has gone and all of the capsule with it.
    if (closed(received.status())) return ExitStatus{128 + SIGKILL, SIGKILL};
    return received.status();
  }
  if (!reply.ended()) return absl::InternalError("exec: unexpected message");
  return ExitStatus{reply.exit_code(), reply.exit_signal()};
}

absl::StatusOr<Capsule> Capsule::create(const NodePaths& node, const CapsuleSpec& spec,
                                        const CreateOptions& options) {
  GW_RETURN_IF_ERROR(check_name(node.node));
  GW_RETURN_IF_ERROR(check_capsule_name(spec.name()));
  GW_RETURN_IF_ERROR(check_root(spec));
  GW_ASSIGN_OR_RETURN(Cgroup cgroup, service_cgroup(node.node, spec.name()));
  Capsule capsule(node, spec.name(), std::move(cgroup));
  capsule.spec_ = spec;
  if (::access(capsule.paths_.spec().c_str(), F_OK) == 0) {
    if (!options.replace_exited) {
      return make_error(absl::StatusCode::kAlreadyExists, "service \"{}\" exists on node {}",
                        spec.name(), node.node);
    }
    GW_ASSIGN_OR_RETURN(Capsule old, open(node, spec.name()));
    GW_ASSIGN_OR_RETURN(const CapsuleInfo info, old.info());
    if (info.state() != CAPSULE_EXITED) {
      return make_error(absl::StatusCode::kFailedPrecondition, "service \"{}\" still runs",
                        spec.name());
    }
    if (old.cgroup_.exists()) GW_RETURN_IF_ERROR(old.cgroup_.kill());
    GW_RETURN_IF_ERROR(old.cgroup_.remove(Deadline::in(absl::Seconds(10))));
  }
  absl::Status status = make_service_dirs(capsule.paths_);
  if (status.ok()) status = write_small_file(capsule.paths_.spec(), spec.SerializeAsString());
  if (status.ok()) status = capsule.launch(node, options);
  if (status.ok()) return capsule;
  if (options.replace_exited) return status;  // its layer is the user's
  const absl::Status undone = destroy(node, spec.name(), Deadline::in(absl::Seconds(10)));
  if (!undone.ok()) return annotate(undone, fmt::format("{}; undoing it", message_of(status)));
  return status;
}

// posix_spawn: a plain fork() in the daemon, which has threads, could run nothing but exec.
absl::Status Capsule::launch(const NodePaths& node, const CreateOptions& options) {
  GW_ASSIGN_OR_RETURN(SocketPair control, socket_pair(SOCK_SEQPACKET));
  std::vector<std::string> words = options.shim_command;
  for (const char* word : {"--state-dir", node.state_dir.c_str(), "--node", node.node.c_str(),
                           "--name", spec_.name().c_str()}) {
    words.emplace_back(word);
  }
  if (options.replica) words.emplace_back("--replica");
  for (const std::string& path : options.masked) {
    words.emplace_back("--mask");
    words.push_back(path);
  }
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  posix_spawn_file_actions_t actions;
  ::posix_spawn_file_actions_init(&actions);
  // dup2 onto itself clears O_CLOEXEC here (posix_spawn_file_actions_adddup2(3)).
  ::posix_spawn_file_actions_adddup2(&actions, control.second.get(), 3);
  ::posix_spawn_file_actions_addclosefrom_np(&actions, 4);
  posix_spawnattr_t attributes;
  ::posix_spawnattr_init(&attributes);
  sigset_t set;
  sigemptyset(&set);
  ::posix_spawnattr_setsigmask(&attributes, &set);
  sigfillset(&set);
  ::posix_spawnattr_setsigdefault(&attributes, &set);
  ::posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
  pid_t pid = 0;
  const int error = ::posix_spawn(&pid, argv[0], &actions, &attributes, argv.data(), environ);
  ::posix_spawn_file_actions_destroy(&actions);
  ::posix_spawnattr_destroy(&attributes);
  if (error != 0) return errno_status(error, fmt::format("posix_spawn(\"{}\")", words[0]));
  // Forks and ends at once: the shim proper is a grandchild.
  while (::waitpid(pid, nullptr, 0) < 0 && errno == EINTR) {
  }
  control.second.reset();
  ShimReply ready;
  const auto received = receive_message(control.first.get(), ready, Deadline::in(kCallTimeout));
  if (!received.ok()) {
    return annotate(received.status(), fmt::format("shim (see {})", paths_.shim_log()));
  }
  GW_RETURN_IF_ERROR(get_status(ready));
  socket_ = std::move(control.first);
  return absl::OkStatus();
}

absl::StatusOr<Capsule> Capsule::open(const NodePaths& node, std::string_view name) {
  GW_RETURN_IF_ERROR(check_capsule_name(name));
  GW_ASSIGN_OR_RETURN(Cgroup cgroup, service_cgroup(node.node, name));
  Capsule capsule(node, name, std::move(cgroup));
  auto text = kernel::read_file(capsule.paths_.spec());
  if (errno_of(text.status()) == ENOENT) {
    return make_error(absl::StatusCode::kNotFound, "no service \"{}\" on node {}", name, node.node);
  }
  GW_RETURN_IF_ERROR(text.status());
  if (!capsule.spec_.ParseFromString(*text)) {
    return make_error(absl::StatusCode::kDataLoss, "{}: cannot be read", capsule.paths_.spec());
  }
  auto socket = connect_to(capsule.paths_);
  if (socket.ok()) {
    capsule.socket_ = *std::move(socket);
  } else if (socket.status().code() != absl::StatusCode::kNotFound) {
    return socket.status();
  }
  return capsule;
}

absl::Status Capsule::destroy(const NodePaths& node, std::string_view name, Deadline deadline) {
  GW_RETURN_IF_ERROR(check_capsule_name(name));
  const auto found = service_cgroup(node.node, name);
  // Without a hierarchy nothing was ever made there: a start that failed for that is to be undone.
  if (!found.ok() && ::access(node.service(name).dir.c_str(), F_OK) != 0) return absl::OkStatus();
  GW_RETURN_IF_ERROR(found.status());
  const Cgroup& cgroup = *found;
  if (cgroup.exists()) {
    // Shim, init and work in one stroke: the mounts go with the last process of the namespace.
    GW_RETURN_IF_ERROR(cgroup.kill());
    GW_RETURN_IF_ERROR(cgroup.remove(deadline));
  }
  return remove_tree(node.service(name).dir);
}

absl::StatusOr<Capsule::Answer> Capsule::call_on(int socket, const ShimRequest& request,
                                                 const std::vector<int>& fds) {
  GW_RETURN_IF_ERROR(send_message(socket, request, fds));
  Answer answer;
  GW_ASSIGN_OR_RETURN(answer.fds,
                      receive_message(socket, answer.reply, Deadline::in(kCallTimeout)));
  return answer;
}

absl::StatusOr<Capsule::Answer> Capsule::call(const ShimRequest& request,
                                              const std::vector<int>& fds) {
  if (!socket_) {
    return make_error(absl::StatusCode::kFailedPrecondition,
                      "service \"{}\": its shim has ended, and the service with it", spec_.name());
  }
  auto answer = call_on(socket_.get(), request, fds);
  if (!answer.ok()) {
    // A late answer must not be taken for the next one.
    socket_.reset();
    return annotate(answer.status(), fmt::format("service \"{}\"", spec_.name()));
  }
  GW_RETURN_IF_ERROR(get_status(answer->reply));
  return answer;
}

absl::StatusOr<CapsuleInfo> Capsule::last_info() const {
  CapsuleInfo info;
  const auto text = kernel::read_file(paths_.status());
  if (text.ok() && !info.ParseFromString(*text)) info.Clear();
  info.set_shim_pid(0);
  info.set_init_pid(0);
  info.set_main_pid(0);
  if (info.state() != CAPSULE_EXITED) {
    info.set_state(CAPSULE_EXITED);
    if (!info.exit_known()) {
      info.set_exit_code(128 + SIGKILL);
      info.set_exit_signal(SIGKILL);
    }
    info.set_exit_reason("the shim died, or the machine was restarted");
  }
  return info;
}

absl::StatusOr<CapsuleInfo> Capsule::info() {
  ShimRequest request;
  request.set_info(true);
  if (!socket_) return last_info();
  auto answer = call(request);
  if (answer.ok()) return answer->reply.info();
  if (closed(answer.status())) return last_info();
  return answer.status();
}

absl::StatusOr<CapsuleInfo> Capsule::start() {
  ShimRequest request;
  request.set_start(true);
  GW_ASSIGN_OR_RETURN(const Answer answer, call(request));
  return answer.reply.info();
}

absl::StatusOr<Exec> Capsule::exec(const ExecSpec& program, const std::vector<int>& stdio) {
  Exec exec;
  GW_ASSIGN_OR_RETURN(exec.socket_, connect_to(paths_));
  ShimRequest request;
  *request.mutable_exec() = program;
  GW_ASSIGN_OR_RETURN(Answer answer, call_on(exec.socket_.get(), request,
                                             program.tty() ? std::vector<int>{} : stdio));
  GW_RETURN_IF_ERROR(get_status(answer.reply));
  exec.image_pid_ = {answer.reply.image_pid()};
  exec.host_pid_ = {answer.reply.host_pid()};
  if (!answer.fds.empty()) exec.terminal_ = std::move(answer.fds[0]);
  return exec;
}

absl::Status Capsule::signal(int number, ImagePid pid) {
  ShimRequest request;
  request.mutable_signal()->set_number(number);
  request.mutable_signal()->set_image_pid(pid.value);
  return call(request).status();
}

absl::StatusOr<Attached> Capsule::attach() {
  ShimRequest request;
  request.set_attach(true);
  GW_ASSIGN_OR_RETURN(Answer answer, call(request));
  if (answer.fds.size() < 2) return absl::InternalError("attach: too few descriptors");
  Attached attached;
  attached.io = std::move(answer.fds.front());
  attached.returned = std::move(answer.fds.back());
  if (answer.fds.size() > 2) attached.err = std::move(answer.fds[1]);
  return attached;
}

absl::Status Capsule::hold_input(bool hold) {
  ShimRequest request;
  request.set_hold_input(hold);
  return call(request).status();
}

absl::Status Capsule::close_stdin() {
  ShimRequest request;
  request.set_close_stdin(true);
  return call(request).status();
}

absl::Status Capsule::resize(unsigned rows, unsigned columns) {
  ShimRequest request;
  request.mutable_resize()->set_rows(rows);
  request.mutable_resize()->set_columns(columns);
  return call(request).status();
}

absl::StatusOr<CapsuleInfo> Capsule::wait_exit(Deadline deadline) {
  const auto socket = connect_to(paths_);
  if (socket.status().code() == absl::StatusCode::kNotFound) return last_info();
  GW_RETURN_IF_ERROR(socket.status());
  ShimRequest request;
  request.set_wait_exit(true);
  GW_RETURN_IF_ERROR(send_message(socket->get(), request));
  ShimReply reply;
  const auto received = receive_message(socket->get(), reply, deadline);
  if (received.ok()) return reply.info();
  if (closed(received.status())) return last_info();
  return received.status();
}

absl::StatusOr<HostPid> Capsule::spawn_husk(ImagePid pid, int comm, int comm_fd) {
  ShimRequest request;
  request.mutable_husk()->set_image_pid(pid.value);
  request.mutable_husk()->set_comm_fd(comm_fd);
  GW_RETURN_IF_ERROR(freeze_files().status());  // long before they are needed
  GW_ASSIGN_OR_RETURN(const Answer answer, call(request, {comm}));
  return HostPid{answer.reply.host_pid()};
}

absl::StatusOr<const FreezeFiles*> Capsule::freeze_files() {
  if (!freeze_files_) {
    GW_ASSIGN_OR_RETURN(FreezeFiles opened, FreezeFiles::open(work()));
    freeze_files_ = std::move(opened);
  }
  return &*freeze_files_;
}

absl::Status Capsule::request_freeze() {
  GW_ASSIGN_OR_RETURN(const FreezeFiles* files, freeze_files());
  return files->request_freeze();
}

absl::Status Capsule::thaw() {
  GW_ASSIGN_OR_RETURN(const FreezeFiles* files, freeze_files());
  return files->thaw();
}

absl::StatusOr<std::vector<HostPid>> Capsule::work_pids() {
  GW_ASSIGN_OR_RETURN(const FreezeFiles* files, freeze_files());
  return files->processes();
}

absl::StatusOr<StdioEnds> Capsule::stdio() {
  ShimRequest request;
  request.set_stdio(true);
  GW_ASSIGN_OR_RETURN(Answer answer, call(request));
  StdioEnds ends;
  size_t next = 0;
  for (int i = 0; i < answer.reply.has_fd_size() && i < 4; ++i) {
    if (!answer.reply.has_fd(i)) continue;
    if (next == answer.fds.size()) return absl::InternalError("stdio: a descriptor is missing");
    UniqueFd& to = i == 3 ? ends.terminal : ends.pipe[static_cast<size_t>(i)];
    to = std::move(answer.fds[next++]);
  }
  return ends;
}

absl::Status Capsule::set_terminal(int master) {
  ShimRequest request;
  request.set_set_terminal(true);
  return call(request, {master}).status();
}

absl::Status Capsule::set_main_pid(ImagePid pid) {
  ShimRequest request;
  request.set_set_main(pid.value);
  return call(request).status();
}

absl::Status Capsule::post_copy(std::vector<pages::FaultService::Space> spaces) {
  // Beside the list, of the 253 that a message can carry.
  constexpr size_t kMost = 200;
  std::span<pages::FaultService::Space> left(spaces);
  do {
    const auto some = left.first(std::min(left.size(), kMost));
    left = left.subspan(some.size());
    std::vector<pages::MissingSpace> lists;
    std::vector<int> fds = {-1};
    for (pages::FaultService::Space& space : some) {
      lists.push_back(std::move(space.pages));
      fds.push_back(space.uffd.get());
    }
    GW_ASSIGN_OR_RETURN(const UniqueFd file, pages::write_missing(lists));
    fds.front() = file.get();
    ShimRequest request;
    request.set_post_copy(left.empty());
    GW_RETURN_IF_ERROR(call(request, fds).status());
  } while (!left.empty());
  return absl::OkStatus();
}

absl::Status Capsule::connect_pages(std::unique_ptr<tls::Channel> faults,
                                    std::unique_ptr<tls::Channel> push, absl::Duration patience) {
  GW_ASSIGN_OR_RETURN(const tls::Channel::Handed for_faults, std::move(*faults).hand_over());
  GW_ASSIGN_OR_RETURN(const tls::Channel::Handed for_push, std::move(*push).hand_over());
  ShimRequest request;
  PageConnection& connection = *request.mutable_page_connection();
  connection.set_faults_session(for_faults.session);
  connection.set_push_session(for_push.session);
  connection.set_patience_ns(absl::ToInt64Nanoseconds(patience));
  return call(request, {for_faults.fd.get(), for_push.fd.get()}).status();
}

absl::Status Capsule::expect_pages() {
  ShimRequest request;
  request.set_expect_pages(true);
  return call(request).status();
}

absl::Status Capsule::lose_source() {
  ShimRequest request;
  request.set_source_lost(true);
  return call(request).status();
}

absl::Status Capsule::keep() {
  ShimRequest request;
  request.set_keep(true);
  return call(request).status();
}

absl::Status Capsule::adopt() {
  ShimRequest request;
  request.set_adopt(true);
  return call(request).status();
}

absl::Status Capsule::kill() {
  for (const char* part : {"work", "init"}) {
    const Cgroup cgroup = cgroup_.child(part);
    if (cgroup.exists()) GW_RETURN_IF_ERROR(cgroup.kill());
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<std::string>> list_services(const NodePaths& node) {
  auto names = kernel::list_folder(node.services());
  if (errno_of(names.status()) == ENOENT) return std::vector<std::string>{};
  GW_RETURN_IF_ERROR(names.status());
  std::vector<std::string> services;
  for (std::string& name : *names) {
    if (check_capsule_name(name).ok()) services.push_back(std::move(name));
  }
  return services;
}

}  // namespace godwit::capsule
