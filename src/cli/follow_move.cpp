#include <fmt/core.h>
#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <optional>
#include <thread>

#include "base/status.h"
#include "base/unique_fd.h"
#include "cli/client.h"
#include "cli/command.h"
#include "cli/render.h"
#include "cli/terminal.h"

namespace godwit::cli {
namespace {

// One line that is written over while the move lasts; whole lines where there is no terminal would
// only fill logs.
class ProgressLine {
 public:
  explicit ProgressLine(bool shown) : shown_(shown && is_terminal(STDERR_FILENO)) {}
  ~ProgressLine() { clear(); }
  ProgressLine(const ProgressLine&) = delete;
  ProgressLine& operator=(const ProgressLine&) = delete;

  void show(const std::string& text) {
    if (!shown_) return;
    // Erases to the end of the line (ECMA-48 EL).
    write_all(STDERR_FILENO, "\r" + text + "\x1b[K");
    dirty_ = true;
  }
  void clear() {
    if (dirty_) write_all(STDERR_FILENO, "\r\x1b[K");
    dirty_ = false;
  }

 private:
  bool shown_;
  bool dirty_ = false;
};

// Waits for Ctrl-C: the first asks the daemon to cancel, the second gives up waiting.
void watch_interrupts(int signals, int stop, api::Godwit::Stub& stub, grpc::ClientContext& call,
                      const std::string& service) {
  for (int seen = 0;;) {
    pollfd polled[] = {{stop, POLLIN, 0}, {signals, POLLIN, 0}};
    if (::poll(polled, 2, -1) < 0) continue;
    if (polled[0].revents != 0) return;
    signalfd_siginfo info{};
    if (::read(signals, &info, sizeof info) != sizeof info) continue;
    if (++seen > 1) {
      call.TryCancel();
      continue;
    }
    fmt::print(stderr, "\rcancelling the move of {}\x1b[K\n", service);
    grpc::ClientContext context;
    api::InspectRequest request;
    request.set_name(service);
    api::Empty reply;
    // Handed over already: the call goes on and says how it ended.
    if (!stub.CancelMigration(&context, request, &reply).ok())
      fmt::print(stderr, "\rtoo late to cancel; waiting for the end\x1b[K\n");
  }
}

int exit_code_of(const api::MigrateResult& result) {
  const std::string& outcome = result.outcome();
  if (outcome == "refused") return kRefused;
  if (outcome == "rolled_back") return kRolledBack;
  return outcome == "moved" || outcome == "movable" || outcome == "saved" ||
                 outcome == "restored" || outcome == "cloned"
             ? 0
             : kError;
}

}  // namespace

int follow_move(const std::string& socket, const MoveOutput& output,
                const std::function<MoveStream(api::Godwit::Stub&, grpc::ClientContext&)>& start) {
  sigset_t set;
  ::sigemptyset(&set);
  ::sigaddset(&set, SIGINT);
  ::sigaddset(&set, SIGTERM);
  // Before gRPC's threads exist, so that they inherit the mask.
  ::pthread_sigmask(SIG_BLOCK, &set, nullptr);
  UniqueFd signals(::signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK));
  UniqueFd stop(::eventfd(0, EFD_CLOEXEC));

  auto client = Client::connect(socket);
  if (!client.ok()) return complain(client.status());
  grpc::ClientContext context;
  const MoveStream stream = start(client->stub(), context);
  std::thread watching([&] {
    watch_interrupts(signals.get(), stop.get(), client->stub(), context, output.service);
  });

  std::optional<api::MigrateResult> result;
  {
    ProgressLine line(!output.quiet);
    api::MigrateEvent event;
    while (stream->Read(&event)) {
      if (event.has_progress()) line.show(progress_text(event.progress()));
      if (event.has_result()) result = event.result();
    }
  }
  const uint64_t one = 1;
  if (::write(stop.get(), &one, sizeof one) != sizeof one) ::abort();  // cannot fail: eventfd(2)
  watching.join();
  const grpc::Status status = stream->Finish();
  if (!result) {
    if (status.ok()) return complain(absl::UnknownError("the daemon did not say how it ended"));
    const absl::Status why = api::from_grpc(status);
    if (!absl::IsUnavailable(why)) return complain(why);
    return complain(make_error(absl::StatusCode::kUnavailable,
                               "the daemon went away ({}); its successor settles this: see godwit "
                               "inspect {}",
                               message_of(why), output.service));
  }
  if (output.json) {
    Json json;
    move_json(json, *result);
    fmt::print("{}", json.str());
  } else {
    const int code = exit_code_of(*result);
    fmt::print(code == 0 ? stdout : stderr, "{}", move_text(*result, output.verbose));
  }
  return exit_code_of(*result);
}

}  // namespace godwit::cli
