#include "capsule/shim_server.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "base/clock.h"
#include "base/log.h"
#include "base/status.h"
#include "capsule/messages.h"
#include "capsule/pids.h"
#include "capsule/small_file.h"
#include "kernel/syscalls.h"

namespace godwit::capsule {
namespace {

constexpr absl::Duration kInitTimeout = absl::Seconds(30);

void set_exit(int wait_status, int32_t& code, int32_t& number) {
  number = WIFSIGNALED(wait_status) ? WTERMSIG(wait_status) : 0;
  code = number != 0 ? 128 + number : WEXITSTATUS(wait_status);
}

absl::Status pidfd_send_signal(int pidfd, int number) {
  if (::syscall(SYS_pidfd_send_signal, pidfd, number, nullptr, 0) == 0) return absl::OkStatus();
  return errno_status(errno, fmt::format("pidfd_send_signal({}, {})", pidfd, number));
}

}  // namespace

ShimServer::ShimServer(ServerParts parts, StdioHub stdio)
    : parts_(std::move(parts)), stdio_(std::move(stdio)) {
  info_.set_state(parts_.replica ? CAPSULE_REPLICA : CAPSULE_CREATED);
  if (parts_.replica) stdio_.expect_followers();
  info_.set_shim_pid(::getpid());
  info_.set_init_pid(parts_.init_pid.value);
  info_.set_tty(parts_.spec.tty());
  for (int i = 0; i < 3; ++i) info_.add_stdio_inode(stdio_.inode(i));
  auto creator = std::make_unique<Client>();
  creator->fd = std::move(parts_.creator);
  creator->owner = parts_.replica;
  clients_.push_back(std::move(creator));
}

void ShimServer::run() {
  publish();
  ShimReply ready;
  *ready.mutable_info() = info_;
  send(*clients_.front(), ready);
  while (true) {
    std::vector<pollfd> polls;
    polls.push_back({parts_.listener.get(), POLLIN, 0});
    if (parts_.init_control) polls.push_back({parts_.init_control.get(), POLLIN, 0});
    if (parts_.init_pidfd) polls.push_back({parts_.init_pidfd.get(), POLLIN, 0});
    for (const auto& client : clients_) polls.push_back({client->fd.get(), POLLIN, 0});
    stdio_.add_polls(polls);
    // The shim waits for others for as long as the capsule is there.
    if (::poll(polls.data(), polls.size(), -1) < 0) continue;
    for (const pollfd& event : polls) {
      if (event.revents == 0) continue;
      if (event.fd == parts_.listener.get()) {
        accept();
      } else if (event.fd == parts_.init_control.get()) {
        take_events();
      } else if (event.fd == parts_.init_pidfd.get()) {
        on_init_exit();
      } else {
        for (size_t i = 0; i < clients_.size(); ++i) {
          if (clients_[i]->fd.get() == event.fd && !clients_[i]->gone) serve(*clients_[i]);
        }
        stdio_.handle(event);
      }
    }
    while (!exits_.empty()) {
      const InitReply::Exit exit = exits_.front();
      exits_.pop_front();
      on_exit(exit);
    }
    drop_gone();
  }
}

void ShimServer::accept() {
  const int fd = ::accept4(parts_.listener.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK);
  if (fd < 0) return;
  auto client = std::make_unique<Client>();
  client->fd.reset(fd);
  clients_.push_back(std::move(client));
}

void ShimServer::drop_gone() {
  const bool owner_gone = std::any_of(clients_.begin(), clients_.end(),
                                      [](const auto& c) { return c->gone && c->owner; });
  std::erase_if(clients_, [](const auto& c) { return c->gone; });
  if (owner_gone && info_.state() == CAPSULE_REPLICA) {
    kill_capsule("the migration ended before the replica was activated");
  }
}

void ShimServer::send(Client& client, const ShimReply& reply, const std::vector<UniqueFd>& fds) {
  std::vector<int> numbers;
  for (const UniqueFd& fd : fds) numbers.push_back(fd.get());
  if (!send_message(client.fd.get(), reply, numbers).ok()) client.gone = true;
}

void ShimServer::serve(Client& client) {
  ShimRequest request;
  auto fds = receive_message(client.fd.get(), request, Deadline::in(absl::ZeroDuration()));
  if (!fds.ok()) {
    client.gone = true;
    return;
  }
  ShimReply reply;
  std::vector<UniqueFd> back;
  bool answer_later = false;
  put_status(reply, dispatch(client, request, *std::move(fds), reply, back, answer_later));
  if (!answer_later) send(client, reply, back);
}

absl::Status ShimServer::dispatch(Client& client, const ShimRequest& request,
                                  std::vector<UniqueFd> fds, ShimReply& reply,
                                  std::vector<UniqueFd>& back, bool& answer_later) {
  switch (request.request_case()) {
    case ShimRequest::kInfo:
      *reply.mutable_info() = info_;
      describe_post_copy(*reply.mutable_info());
      return absl::OkStatus();
    case ShimRequest::kStart:
      return start(reply);
    case ShimRequest::kExec:
      return exec(client, request.exec(), fds, reply, back);
    case ShimRequest::kHusk:
      return husk(request.husk(), fds, reply);
    case ShimRequest::kSignal:
      return signal(request.signal());
    case ShimRequest::kAttach: {
      GW_ASSIGN_OR_RETURN(back, stdio_.attach());
      return absl::OkStatus();
    }
    case ShimRequest::kWaitExit:
      *reply.mutable_info() = info_;
      answer_later = info_.state() != CAPSULE_EXITED;
      client.waits_for_exit = answer_later;
      return absl::OkStatus();
    case ShimRequest::kStdio:
      return give_stdio(reply, back);
    case ShimRequest::kSetMain:
      return set_main(request.set_main());
    case ShimRequest::kAdopt:
      return adopt(client);
    case ShimRequest::kKeep:
      client.owner = false;
      return absl::OkStatus();
    case ShimRequest::kResize:
      return stdio_.resize(request.resize().rows(), request.resize().columns());
    case ShimRequest::kCloseStdin:
      stdio_.close_stdin();
      return absl::OkStatus();
    case ShimRequest::kHoldInput:
      stdio_.hold_input(request.hold_input());
      return absl::OkStatus();
    case ShimRequest::kSetTerminal:
      if (fds.size() != 1) return absl::InvalidArgumentError("set_terminal: one descriptor");
      return stdio_.set_terminal(std::move(fds[0]));
    case ShimRequest::kPostCopy:
      return post_copy(request.post_copy(), std::move(fds));
    case ShimRequest::kPageConnection:
      return connect_pages(request.page_connection(), std::move(fds));
    case ShimRequest::kExpectPages:
      tls::prepare_records();
      return absl::OkStatus();
    case ShimRequest::kSourceLost:
      if (!faults_) return absl::FailedPreconditionError("nothing of the service is missing");
      faults_->poison();
      return absl::OkStatus();
    case ShimRequest::REQUEST_NOT_SET:
      break;
  }
  return absl::InvalidArgumentError("shim: unknown request");
}

absl::Status ShimServer::start(ShimReply& reply) {
  if (info_.state() != CAPSULE_CREATED) {
    return absl::FailedPreconditionError("the service was started before");
  }
  const CapsuleSpec& spec = parts_.spec;
  InitRequest request;
  InitRequest::Spawn& spawn = *request.mutable_spawn();
  spawn.set_main(true);
  *spawn.mutable_program()->mutable_argv() = spec.argv();
  *spawn.mutable_program()->mutable_env() = spec.env();
  spawn.mutable_program()->set_workdir(spec.workdir());
  spawn.mutable_program()->set_user(spec.user());
  spawn.mutable_program()->set_tty(spec.tty());
  std::vector<int> fds;
  for (int i = 0; i < 3; ++i) {
    if (stdio_.capsule_end(i) >= 0) fds.push_back(stdio_.capsule_end(i));
  }
  spawn.set_null_stdin(!spec.tty() && stdio_.capsule_end(0) < 0);
  absl::StatusOr<Answer> answer = call_init(request, fds);
  info_.set_started_unix_ns(clock_ns(CLOCK_REALTIME));
  if (!answer.ok() || answer->reply.code() != 0) {
    // init ends by itself now; the exit code is what a shell would have given.
    info_.set_exit_known(true);
    info_.set_exit_code(answer.ok() ? answer->reply.exit_code() : 126);
    const absl::Status status = answer.ok() ? get_status(answer->reply) : answer.status();
    info_.set_exit_reason(std::string(message_of(status)));
    publish();
    return status;
  }
  main_pidfd_ = std::move(answer->fds[0]);
  // It may have ended already, and even been reaped: its exit follows.
  const HostPid pid = pid_of_pidfd(main_pidfd_.get()).value_or(HostPid{0});
  info_.set_main_pid(pid.value);
  info_.set_main_image_pid(answer->reply.image_pid());
  info_.set_state(CAPSULE_RUNNING);
  if (spec.tty()) GW_RETURN_IF_ERROR(stdio_.set_terminal(std::move(answer->fds[1])));
  publish();
  *reply.mutable_info() = info_;
  reply.set_host_pid(pid.value);
  reply.set_image_pid(answer->reply.image_pid());
  return absl::OkStatus();
}

absl::Status ShimServer::exec(Client& client, const ExecSpec& program,
                              const std::vector<UniqueFd>& fds, ShimReply& reply,
                              std::vector<UniqueFd>& back) {
  if (client.exec_pid != 0) return absl::FailedPreconditionError("exec: one a connection");
  if (info_.state() != CAPSULE_RUNNING) {
    return absl::FailedPreconditionError("the service does not run");
  }
  InitRequest request;
  *request.mutable_spawn()->mutable_program() = program;
  std::vector<int> numbers;
  for (const UniqueFd& fd : fds) numbers.push_back(fd.get());
  GW_ASSIGN_OR_RETURN(Answer answer, call_init(request, numbers));
  reply.set_exit_code(answer.reply.exit_code());
  GW_RETURN_IF_ERROR(get_status(answer.reply));
  const HostPid pid = pid_of_pidfd(answer.fds[0].get()).value_or(HostPid{0});
  client.exec_pid = answer.reply.image_pid();
  reply.set_image_pid(client.exec_pid);
  reply.set_host_pid(pid.value);
  for (size_t i = 1; i < answer.fds.size(); ++i) back.push_back(std::move(answer.fds[i]));
  return absl::OkStatus();
}

absl::Status ShimServer::husk(const Husk& husk, const std::vector<UniqueFd>& fds,
                              ShimReply& reply) {
  if (info_.state() != CAPSULE_REPLICA) {
    return absl::FailedPreconditionError("husks belong into a replica");
  }
  if (fds.size() != 1) return absl::InvalidArgumentError("husk: one socket is needed");
  InitRequest request;
  *request.mutable_husk() = husk;
  GW_ASSIGN_OR_RETURN(Answer answer, call_init(request, {fds[0].get()}));
  GW_RETURN_IF_ERROR(get_status(answer.reply));
  GW_ASSIGN_OR_RETURN(const HostPid pid, pid_of_pidfd(answer.fds[0].get()));
  reply.set_image_pid(answer.reply.image_pid());
  reply.set_host_pid(pid.value);
  return absl::OkStatus();
}

absl::Status ShimServer::signal(const ShimRequest::Signal& signal) {
  if (signal.image_pid() != 0) {
    GW_ASSIGN_OR_RETURN(const HostPid pid, host_pid(signal.image_pid()));
    GW_ASSIGN_OR_RETURN(const UniqueFd pidfd, kernel::pidfd_open(pid));
    return pidfd_send_signal(pidfd.get(), signal.number());
  }
  if (main_pidfd_) return pidfd_send_signal(main_pidfd_.get(), signal.number());
  if (info_.state() != CAPSULE_RUNNING) {
    return absl::FailedPreconditionError("the service does not run");
  }
  // A program that daemonised: its first process has ended, whoever lives is meant.
  GW_ASSIGN_OR_RETURN(const std::vector<HostPid> pids, parts_.cgroup.child("work").processes());
  for (const HostPid pid : pids) {
    auto pidfd = kernel::pidfd_open(pid);
    if (!pidfd.ok()) continue;  // ended meanwhile
    const absl::Status status = pidfd_send_signal(pidfd->get(), signal.number());
    if (!status.ok() && errno_of(status) != ESRCH) return status;
  }
  return absl::OkStatus();
}

absl::StatusOr<HostPid> ShimServer::host_pid(int32_t image_pid) const {
  GW_ASSIGN_OR_RETURN(const std::vector<HostPid> pids, parts_.cgroup.child("work").processes());
  return find_image_pid(pids, ImagePid{image_pid});
}

absl::Status ShimServer::set_main(int32_t image_pid) {
  // Adopted already, perhaps: which process is the main one shows late, at the end of a move.
  if (info_.state() != CAPSULE_REPLICA && info_.state() != CAPSULE_RUNNING) {
    return absl::FailedPreconditionError("set_main: no replica, and not running");
  }
  if (image_pid != 0) {
    GW_ASSIGN_OR_RETURN(const HostPid pid, host_pid(image_pid));
    GW_ASSIGN_OR_RETURN(main_pidfd_, kernel::pidfd_open(pid));
    info_.set_main_pid(pid.value);
  }
  InitRequest request;
  request.set_set_main(image_pid);
  GW_ASSIGN_OR_RETURN(const Answer answer, call_init(request, {}));
  info_.set_main_image_pid(image_pid);
  publish();
  return get_status(answer.reply);
}

absl::Status ShimServer::adopt(Client& client) {
  if (info_.state() == CAPSULE_RUNNING) return absl::OkStatus();
  if (info_.state() != CAPSULE_REPLICA) {
    return absl::FailedPreconditionError("adopt: not a replica");
  }
  InitRequest request;
  request.set_adopt(true);
  GW_ASSIGN_OR_RETURN(const Answer answer, call_init(request, {}));
  GW_RETURN_IF_ERROR(get_status(answer.reply));
  client.owner = false;
  stdio_.begin_running();
  info_.set_state(CAPSULE_RUNNING);
  info_.set_started_unix_ns(clock_ns(CLOCK_REALTIME));
  publish();
  return absl::OkStatus();
}

absl::Status ShimServer::post_copy(bool all, std::vector<UniqueFd> fds) {
  if (fds.empty()) return absl::InvalidArgumentError("post_copy: no list of what is missing");
  GW_ASSIGN_OR_RETURN(std::vector<pages::MissingSpace> spaces, pages::read_missing(fds[0].get()));
  if (spaces.size() + 1 != fds.size())
    return absl::InvalidArgumentError("post_copy: one userfaultfd a process");
  for (size_t i = 0; i < spaces.size(); ++i)
    lacking_.push_back({std::move(spaces[i]), std::move(fds[i + 1])});
  if (!all) return absl::OkStatus();
  GW_ASSIGN_OR_RETURN(faults_, pages::FaultService::start(std::exchange(lacking_, {})));
  return absl::OkStatus();
}

absl::Status ShimServer::connect_pages(const PageConnection& connection,
                                       std::vector<UniqueFd> fds) {
  if (fds.size() != 2) return absl::InvalidArgumentError("page_connection: two sockets");
  if (!faults_) return absl::FailedPreconditionError("nothing of the service is missing");
  pages::FaultService::Connection made;
  GW_ASSIGN_OR_RETURN(made.faults,
                      tls::Channel::take_over(std::move(fds[0]), connection.faults_session()));
  GW_ASSIGN_OR_RETURN(made.push,
                      tls::Channel::take_over(std::move(fds[1]), connection.push_session()));
  made.patience = absl::Nanoseconds(connection.patience_ns());
  faults_->connect(std::move(made));
  return absl::OkStatus();
}

void ShimServer::describe_post_copy(CapsuleInfo& info) const {
  if (!faults_) return;
  const pages::FaultService::State state = faults_->state();
  PostCopy& told = *info.mutable_post_copy();
  told.set_missing(state.missing);
  told.set_connected(state.connected);
  told.set_done(state.done);
  told.set_faults(state.faults);
  told.set_poisoned(state.poisoned);
  told.set_error(state.error);
}

absl::Status ShimServer::give_stdio(ShimReply& reply, std::vector<UniqueFd>& back) const {
  for (const int fd :
       {stdio_.capsule_end(0), stdio_.capsule_end(1), stdio_.capsule_end(2), stdio_.terminal()}) {
    reply.add_has_fd(fd >= 0);
    if (fd < 0) continue;
    GW_ASSIGN_OR_RETURN(UniqueFd copy, kernel::duplicate(fd));
    back.push_back(std::move(copy));
  }
  return absl::OkStatus();
}

absl::StatusOr<ShimServer::Answer> ShimServer::call_init(const InitRequest& request,
                                                         const std::vector<int>& fds) {
  if (!parts_.init_control) return absl::FailedPreconditionError("the capsule has ended");
  GW_RETURN_IF_ERROR(send_message(parts_.init_control.get(), request, fds));
  const Deadline deadline = Deadline::in(kInitTimeout);
  while (true) {
    Answer answer;
    auto received = receive_message(parts_.init_control.get(), answer.reply, deadline);
    if (!received.ok()) {
      // A late answer would be taken for the next request's: end it.
      kill_capsule("init did not answer");
      return annotate(received.status(), "init");
    }
    if (answer.reply.has_exit()) {
      exits_.push_back(answer.reply.exit());
      continue;
    }
    answer.fds = *std::move(received);
    if (answer.reply.spawned() && answer.reply.code() == 0 && answer.fds.empty()) {
      return absl::InternalError("init: answer without a pidfd");
    }
    return answer;
  }
}

void ShimServer::take_events() {
  InitReply reply;
  auto received =
      receive_message(parts_.init_control.get(), reply, Deadline::in(absl::ZeroDuration()));
  if (!received.ok()) {
    // Closed: init is dying, its pidfd tells when it is dead.
    parts_.init_control.reset();
  } else if (reply.has_exit()) {
    exits_.push_back(reply.exit());
  }
}

void ShimServer::on_exit(const InitReply::Exit& exit) {
  if (exit.image_pid() == info_.main_image_pid()) {
    int32_t code = 0;
    int32_t number = 0;
    set_exit(exit.wait_status(), code, number);
    info_.set_exit_known(true);
    info_.set_exit_code(code);
    info_.set_exit_signal(number);
    info_.set_main_pid(0);
    main_pidfd_.reset();
    publish();
    return;
  }
  for (auto& client : clients_) {
    if (client->exec_pid != exit.image_pid()) continue;
    ShimReply reply;
    reply.set_ended(true);
    int32_t code = 0;
    int32_t number = 0;
    set_exit(exit.wait_status(), code, number);
    reply.set_exit_code(code);
    reply.set_exit_signal(number);
    send(*client, reply);
    client->exec_pid = 0;
  }
}

void ShimServer::on_init_exit() {
  // What it said before it died is still in the socket.
  while (parts_.init_control) take_events();
  while (!exits_.empty()) {
    on_exit(exits_.front());
    exits_.pop_front();
  }
  int status = 0;
  while (::waitpid(parts_.init_pid.value, &status, __WALL) < 0 && errno == EINTR) {
  }
  parts_.init_pidfd.reset();
  main_pidfd_.reset();
  stdio_.finish();
  if (!info_.exit_known()) {
    info_.set_exit_code(128 + SIGKILL);
    info_.set_exit_signal(SIGKILL);
  }
  info_.set_state(CAPSULE_EXITED);
  info_.set_init_pid(0);
  info_.set_main_pid(0);
  info_.set_exited_unix_ns(clock_ns(CLOCK_REALTIME));
  publish();
  ShimReply ended;
  ended.set_ended(true);
  ended.set_exit_code(128 + SIGKILL);
  ended.set_exit_signal(SIGKILL);
  ShimReply exited;
  *exited.mutable_info() = info_;
  for (auto& client : clients_) {
    if (client->exec_pid != 0) send(*client, ended);
    if (client->waits_for_exit) send(*client, exited);
    client->exec_pid = 0;
    client->waits_for_exit = false;
  }
}

void ShimServer::kill_capsule(std::string reason) {
  log_warning("capsule killed: {}", reason);
  info_.set_exit_reason(std::move(reason));
  if (const absl::Status status = parts_.cgroup.child("work").kill(); !status.ok()) {
    log_error("{}", message_of(status));
  }
  if (parts_.init_pidfd) {
    const absl::Status status = pidfd_send_signal(parts_.init_pidfd.get(), SIGKILL);
    if (!status.ok()) log_error("{}", message_of(status));
  }
}

void ShimServer::publish() {
  const absl::Status status = write_small_file(parts_.paths.status(), info_.SerializeAsString());
  if (!status.ok()) log_error("{}", message_of(status));
}

}  // namespace godwit::capsule
