// Calls that join a user to a program: Exec and Attach.
#include <fcntl.h>
#include <grpcpp/client_context.h>
#include <grpcpp/server_context.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <thread>

#include "api/rpc_status.h"
#include "base/log.h"
#include "base/status.h"
#include "kernel/syscalls.h"
#include "node/api_service.h"
#include "node/launch.h"
#include "node/session_pump.h"

namespace godwit::node {
namespace {

constexpr absl::Duration kEndWait = absl::Seconds(10);
constexpr absl::Duration kBusyWait = absl::Seconds(10);

// Passes a session on to the node that has the service; `first` has been read already.
using PeerSession = grpc::ClientReaderWriter<api::ExecInput, api::ExecOutput>;
absl::Status relay(ApiService::Session& session, const api::ExecInput& first, PeerSession& there,
                   const Peer& peer) {
  there.Write(first);
  std::thread inwards([&] {
    api::ExecInput input;
    while (session.Read(&input)) there.Write(input);
    there.WritesDone();
  });
  api::ExecOutput output;
  bool told = false;
  while (there.Read(&output)) {
    session.Write(output);
    told = output.has_exit_code() || output.has_failure();
    if (told) break;
  }
  if (!told) {
    // The other node went away or refused at once: Finish() needs no end of our half.
    const absl::Status why = unreachable(api::from_grpc(there.Finish()), peer);
    session.Write(session_end(why.ok() ? absl::UnknownError("the session broke off") : why));
    inwards.join();
    return absl::OkStatus();
  }
  inwards.join();
  return api::from_grpc(there.Finish());
}

struct ExecStreams {
  SessionPump::Streams ours;
  UniqueFd in, out, err;  // the program's
};

absl::StatusOr<ExecStreams> make_pipes(bool interactive) {
  ExecStreams streams;
  GW_ASSIGN_OR_RETURN(kernel::Pipe out, kernel::pipe2(0));
  GW_ASSIGN_OR_RETURN(kernel::Pipe err, kernel::pipe2(0));
  streams.ours.out = std::move(out.read);
  streams.ours.err = std::move(err.read);
  streams.out = std::move(out.write);
  streams.err = std::move(err.write);
  if (interactive) {
    GW_ASSIGN_OR_RETURN(kernel::Pipe in, kernel::pipe2(0));
    streams.in = std::move(in.read);
    streams.ours.in = std::move(in.write);
  } else {
    GW_ASSIGN_OR_RETURN(streams.in, kernel::open("/dev/null", O_RDONLY | O_CLOEXEC));
  }
  return streams;
}

// The program could not be started: that is the session's end, told like any other.
absl::Status end_unstarted(ApiService::Session& session, const absl::Status& why) {
  session.Write(session_end(why));
  api::ExecInput input;
  while (session.Read(&input)) {
  }
  return absl::OkStatus();
}

void resize_terminal(int fd, unsigned rows, unsigned columns) {
  winsize size{};
  size.ws_row = static_cast<unsigned short>(rows);
  size.ws_col = static_cast<unsigned short>(columns);
  ::ioctl(fd, TIOCSWINSZ, &size);
}

}  // namespace

grpc::Status ApiService::Exec(grpc::ServerContext* context, Session* session) {
  api::ExecInput first;
  if (!session->Read(&first) || !first.has_start())
    return {grpc::StatusCode::INVALID_ARGUMENT, "the first message must say what to run"};
  const auto peer = locate(*context, first.start().name());
  if (!peer.ok()) return api::to_grpc(peer.status());
  if (*peer == nullptr) return api::to_grpc(exec_here(*context, first.start(), *session));
  const auto call = pass_on(*context);
  const auto there = (*peer)->user->Exec(call.get());
  return api::to_grpc(relay(*session, first, *there, **peer));
}

absl::Status ApiService::exec_here(grpc::ServerContext& context, const api::ExecStart& start,
                                   Session& session) {
  if (start.argv().empty())
    return make_error(absl::StatusCode::kInvalidArgument, "no program to run was named");
  GW_ASSIGN_OR_RETURN(
      Busy::Hold hold,
      node_.busy().hold(start.name(), "being given another program", Deadline::in(kBusyWait)));
  GW_ASSIGN_OR_RETURN(capsule::Capsule capsule, node_.services().open(start.name()));
  GW_ASSIGN_OR_RETURN(const capsule::CapsuleInfo info, capsule.info());
  if (info.state() != capsule::CAPSULE_RUNNING)
    return make_error(absl::StatusCode::kFailedPrecondition, "service {} does not run",
                      start.name());
  capsule::ExecSpec program;
  *program.mutable_argv() = start.argv();
  *program.mutable_env() = capsule.spec().env();
  if (start.tty()) program.add_env("TERM=xterm");
  program.mutable_env()->MergeFrom(start.env());
  program.set_workdir(start.workdir().empty() ? capsule.spec().workdir() : start.workdir());
  program.set_user(start.user().empty() ? capsule.spec().user() : start.user());
  program.set_tty(start.tty());

  ExecStreams streams;
  std::vector<int> given;
  if (!start.tty()) {
    GW_ASSIGN_OR_RETURN(streams, make_pipes(start.interactive()));
    given = {streams.in.get(), streams.out.get(), streams.err.get()};
  }
  auto started = capsule.exec(program, given);
  if (!started.ok()) {
    hold.release();
    return end_unstarted(session, started.status());
  }
  capsule::Exec& exec = *started;
  streams.in.reset();
  streams.out.reset();
  streams.err.reset();
  hold.release();
  if (start.tty()) {
    GW_ASSIGN_OR_RETURN(streams.ours.out, kernel::duplicate(exec.terminal().get()));
    if (start.interactive()) {
      GW_ASSIGN_OR_RETURN(streams.ours.in, kernel::duplicate(exec.terminal().get()));
    }
    resize_terminal(exec.terminal().get(), start.window().rows(), start.window().columns());
  }
  streams.ours.ended_fd = exec.event_fd();
  const int terminal = exec.terminal().get();
  SessionPump pump(
      session, std::move(streams.ours),
      {[] {},
       [terminal](unsigned rows, unsigned columns) {
         if (terminal >= 0) resize_terminal(terminal, rows, columns);
       },
       [&capsule, &exec](int signal) { capsule.signal(signal, exec.image_pid()).IgnoreError(); }});
  absl::StatusOr<int> exit_code = 0;
  const absl::Status pumped = pump.run(context);
  if (pumped.ok()) {
    const auto end = exec.wait(Deadline::in(kEndWait));
    exit_code = end.ok() ? absl::StatusOr<int>(end->code) : end.status();
  } else {
    exit_code = pumped;
  }
  pump.finish(exit_code);
  return absl::OkStatus();
}

grpc::Status ApiService::Attach(grpc::ServerContext* context, Session* session) {
  api::ExecInput first;
  if (!session->Read(&first) || !first.has_start())
    return {grpc::StatusCode::INVALID_ARGUMENT, "the first message must name the service"};
  const api::ExecStart& start = first.start();
  const auto peer =
      start.has_run() ? other_node(start.run().node()) : locate(*context, start.name());
  if (!peer.ok()) return api::to_grpc(peer.status());
  if (*peer == nullptr) return api::to_grpc(attach_here(*context, start, *session));
  const auto call = pass_on(*context);
  const auto there = (*peer)->user->Attach(call.get());
  return api::to_grpc(relay(*session, first, *there, **peer));
}

absl::Status ApiService::attach_here(grpc::ServerContext& context, const api::ExecStart& start,
                                     Session& session) {
  std::optional<Launch> launch;
  if (start.has_run()) {
    GW_ASSIGN_OR_RETURN(Launch prepared, Launch::prepare(node_, start.run()));
    launch.emplace(std::move(prepared));
  }
  const std::string name = start.has_run() ? start.run().name() : start.name();
  const std::string joined = node_.services().capsule_of(name);
  GW_ASSIGN_OR_RETURN(capsule::Capsule capsule, node_.services().open(name));
  GW_ASSIGN_OR_RETURN(capsule::Attached attached, capsule.attach());
  if (launch) {
    const absl::Status started = launch->start().status();
    launch.reset();
    if (!started.ok()) return end_unstarted(session, started);
  }
  // There is a terminal only once its program runs.
  if (start.tty() && start.window().rows() > 0)
    capsule.resize(start.window().rows(), start.window().columns()).IgnoreError();

  SessionPump::Streams streams;
  GW_ASSIGN_OR_RETURN(streams.out, kernel::duplicate(attached.io.get()));
  if (start.interactive()) {
    GW_ASSIGN_OR_RETURN(streams.in, kernel::duplicate(attached.io.get()));
  }
  streams.err = std::move(attached.err);
  SessionPump pump(
      session, std::move(streams),
      {[&attached] { ::shutdown(attached.io.get(), SHUT_WR); },
       [&capsule](unsigned rows, unsigned columns) { capsule.resize(rows, columns).IgnoreError(); },
       [&capsule](int signal) { capsule.signal(signal).IgnoreError(); }});
  absl::StatusOr<int> exit_code = 0;
  const absl::Status pumped = pump.run(context);
  if (!pumped.ok()) {
    exit_code = pumped;
  } else {
    const auto end = capsule.wait_exit(Deadline::in(kEndWait));
    if (end.ok()) {
      const absl::Status recorded = node_.wait_exit_recorded(name, joined, *end);
      if (!recorded.ok()) log_warning("the end of {}: {}", name, message_of(recorded));
    }
    const auto record = node_.records().service(name);
    if (record.ok() && (record->record.owner() != node_.config().name ||
                        node_.services().capsule_of(name) != joined))
      exit_code = make_error(absl::StatusCode::kAborted,
                             "service {} runs on, on {}; join it again with godwit attach {}", name,
                             record->record.owner(), name);
    else
      exit_code = end.ok() ? absl::StatusOr<int>(end->exit_code()) : end.status();
  }
  pump.finish(exit_code);
  return absl::OkStatus();
}

}  // namespace godwit::node
