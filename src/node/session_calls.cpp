// Calls that join a user to a program: Exec and Attach.
#include <fcntl.h>
#include <grpcpp/client_context.h>
#include <grpcpp/server_context.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "api/rpc_status.h"
#include "base/clock.h"
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
// A session that ends at once, since its service has moved once more.
constexpr int64_t kInVain = 1'000'000'000;
constexpr int kMostInVain = 250;
// The service goes on on another node.
constexpr absl::StatusCode kMoved = absl::StatusCode::kAborted;

// Data that the program has not got: whoever has it next gets it first.
void give_back(std::string data, SessionInput& input) {
  if (data.empty()) return;
  api::ExecInput message;
  message.set_data(std::move(data));
  input.put_back(std::move(message));
}

// Passes a session on to the node that has the service. The message that is its end.
using PeerSession = grpc::ClientReaderWriter<api::ExecInput, api::ExecOutput>;
api::ExecOutput relay(ApiService::Session& session, const api::ExecStart& start,
                      SessionInput& input, PeerSession& there, const Peer& peer) {
  api::ExecInput first;
  *first.mutable_start() = start;
  there.Write(first);
  input.give_to([&there](api::ExecInput& next) { return there.Write(next); });
  api::ExecOutput output;
  bool told = false;
  while (!told && there.Read(&output)) {
    told = output.has_exit_code() || output.has_failure();
    if (!told) session.Write(output);
  }
  input.keep();
  there.WritesDone();
  std::string unused;
  for (api::ExecOutput more; there.Read(&more);) unused += more.unused();
  give_back(std::move(unused), input);
  const absl::Status end = api::from_grpc(there.Finish());
  if (told) return output;
  // The other node went away or refused at once.
  if (end.ok()) return session_end(absl::UnknownError("the session broke off"));
  return session_end(unreachable(end, peer));
}

// Tells the user the end, as the last message, and waits for the call's other half to end.
grpc::Status tell_end(ApiService::Session& session, SessionInput& input,
                      const api::ExecOutput& end) {
  session.Write(end);
  input.join();
  return grpc::Status::OK;
}

bool has_moved(const api::ExecOutput& end) {
  return end.has_failure() && end.failure().code() == static_cast<int>(kMoved);
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
  SessionInput input(*session, first.start());
  if (*peer == nullptr)
    return tell_end(*session, input,
                    session_end(exec_here(*context, first.start(), *session, input)));
  const auto call = pass_on(*context);
  const auto there = (*peer)->user->Exec(call.get());
  return tell_end(*session, input, relay(*session, first.start(), input, *there, **peer));
}

absl::StatusOr<int> ApiService::exec_here(grpc::ServerContext& context, const api::ExecStart& start,
                                          Session& session, SessionInput& input) {
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
  if (!started.ok()) return started.status();
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
      session, input, std::move(streams.ours),
      {[] {},
       [terminal](unsigned rows, unsigned columns) {
         if (terminal >= 0) resize_terminal(terminal, rows, columns);
       },
       [&capsule, &exec](int signal) { capsule.signal(signal, exec.image_pid()).IgnoreError(); }});
  GW_RETURN_IF_ERROR(pump.run(context));
  GW_ASSIGN_OR_RETURN(const capsule::ExitStatus end, exec.wait(Deadline::in(kEndWait)));
  return end.code;
}

grpc::Status ApiService::Attach(grpc::ServerContext* context, Session* session) {
  api::ExecInput first;
  if (!session->Read(&first) || !first.has_start())
    return {grpc::StatusCode::INVALID_ARGUMENT, "the first message must name the service"};
  api::ExecStart start = first.start();
  auto peer =
      start.has_run() ? other_node(start.run().node()) : locate(*context, start.name(), kAlsoVms);
  if (!peer.ok()) return api::to_grpc(peer.status());
  SessionInput input(*session, start);
  for (int in_vain = 0;;) {
    const int64_t begin = monotonic_ns();
    api::ExecOutput end;
    if (*peer == nullptr) {
      end = session_end(attach_here(*context, start, *session, input));
    } else {
      const auto call = pass_on(*context);
      const auto there = (*peer)->user->Attach(call.get());
      end = relay(*session, start, input, *there, **peer);
    }
    // The node that the user has called follows, nobody else.
    in_vain = monotonic_ns() - begin < kInVain ? in_vain + 1 : 0;
    if (!has_moved(end) || context->IsCancelled() || in_vain > kMostInVain)
      return tell_end(*session, input, end);
    if (was_passed_on(*context)) {
      const grpc::Status told = tell_end(*session, input, end);
      api::ExecOutput back;
      back.set_unused(input.take_kept());
      session->Write(back);
      return told;
    }
    if (input.ended()) {
      const std::string data = input.take_kept();
      api::ExecInput last;
      last.set_end_of_input(true);
      input.put_back(std::move(last));
      give_back(data, input);
    }
    if (start.has_run()) {
      start.set_name(start.run().name());
      start.clear_run();
    }
    *start.mutable_window() = input.window();
    if (in_vain > 0) ::usleep(20'000);
    peer = locate(*context, start.name(), kAlsoVms);
    if (!peer.ok()) return tell_end(*session, input, session_end(peer.status()));
  }
}

absl::StatusOr<int> ApiService::attach_here(grpc::ServerContext& context,
                                            const api::ExecStart& start, Session& session,
                                            SessionInput& input) {
  if (!start.has_run()) {
    GW_ASSIGN_OR_RETURN(const VersionedService found, node_.records().service(start.name()));
    if (found.record.has_vm()) return console_here(context, start.name(), session, input);
  }
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
    GW_RETURN_IF_ERROR(started);
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
  streams.returned = std::move(attached.returned);
  SessionPump pump(
      session, input, std::move(streams),
      {[&attached] { ::shutdown(attached.io.get(), SHUT_WR); },
       [&capsule](unsigned rows, unsigned columns) { capsule.resize(rows, columns).IgnoreError(); },
       [&capsule](int signal) { capsule.signal(signal).IgnoreError(); }});
  GW_RETURN_IF_ERROR(pump.run(context));
  // Of another node, or in place of this capsule's in another one here.
  const auto moved = [&](const absl::StatusOr<VersionedService>& now) {
    return now.ok() && (now->record.owner() != node_.config().name ||
                        node_.services().capsule_of(name) != joined);
  };
  absl::StatusOr<VersionedService> now = node_.records().service(name);
  absl::StatusOr<capsule::CapsuleInfo> end = capsule::CapsuleInfo();
  if (!moved(now)) {
    end = capsule.wait_exit(Deadline::in(kEndWait));
    if (end.ok()) {
      const absl::Status recorded = node_.wait_exit_recorded(name, joined, *end);
      if (!recorded.ok()) log_warning("the end of {}: {}", name, message_of(recorded));
    }
    now = node_.records().service(name);
  }
  if (moved(now))
    return make_error(kMoved, "service {} runs on, on {}; join it again with godwit attach {}",
                      name, now->record.owner(), name);
  GW_RETURN_IF_ERROR(end.status());
  return end->exit_code();
}

}  // namespace godwit::node
