#include "cli/session.h"

#include <fmt/core.h>
#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <atomic>
#include <optional>
#include <thread>

#include "base/unique_fd.h"
#include "cli/client.h"
#include "cli/command.h"
#include "cli/terminal.h"

namespace godwit::cli {
namespace {

constexpr size_t kChunk = 32 * 1024;

sigset_t signals_of(const SessionOptions& options) {
  sigset_t set;
  ::sigemptyset(&set);
  if (options.tty) ::sigaddset(&set, SIGWINCH);
  if (options.pass_signals)
    for (const int each : {SIGINT, SIGTERM, SIGHUP, SIGQUIT}) ::sigaddset(&set, each);
  return set;
}

// Everything that goes towards the program, in a thread of its own, until `stop`.
class Sender {
 public:
  Sender(SessionStream& stream, const SessionOptions& options, int signals, int stop)
      : stream_(stream),
        signals_(signals),
        stop_(stop),
        reading_(options.interactive),
        leave_key_(options.leave_key) {}
  bool left() const { return left_; }

  void run() {
    while (true) {
      pollfd polled[] = {
          {stop_, POLLIN, 0}, {signals_, POLLIN, 0}, {reading_ ? STDIN_FILENO : -1, POLLIN, 0}};
      if (::poll(polled, 3, -1) < 0) continue;
      if (polled[0].revents != 0) return;
      if (polled[1].revents != 0 && !pass_signal()) return;
      if (polled[2].revents != 0 && !pass_input()) return;
    }
  }

 private:
  bool pass_signal() {
    signalfd_siginfo info{};
    if (::read(signals_, &info, sizeof info) != sizeof info) return true;
    api::ExecInput input;
    if (info.ssi_signo == SIGWINCH)
      *input.mutable_window() = window_size(STDIN_FILENO);
    else
      input.set_signal(static_cast<int32_t>(info.ssi_signo));
    return stream_.Write(input);
  }

  bool pass_input() {
    std::string bytes(kChunk, '\0');
    const ssize_t n = ::read(STDIN_FILENO, bytes.data(), bytes.size());
    if (n < 0 && errno == EINTR) return true;
    api::ExecInput input;
    if (n <= 0) {
      reading_ = false;
      input.set_end_of_input(true);
    } else {
      bytes.resize(static_cast<size_t>(n));
      left_ = leave_key_ != 0 && bytes.find(leave_key_) != std::string::npos;
      if (left_) return false;
      input.set_data(std::move(bytes));
    }
    return stream_.Write(input);
  }

  SessionStream& stream_;
  int signals_;
  int stop_;
  bool reading_;
  char leave_key_;
  std::atomic<bool> left_ = false;
};

}  // namespace

int run_session(const std::string& socket, const SessionOptions& options,
                const api::ExecStart& start,
                const std::function<std::unique_ptr<SessionStream>(api::Godwit::Stub&,
                                                                   grpc::ClientContext*)>& open) {
  const sigset_t set = signals_of(options);
  // Before gRPC's threads exist: they inherit the mask, so only the descriptor sees the signals.
  ::pthread_sigmask(SIG_BLOCK, &set, nullptr);
  UniqueFd signals(::signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK));
  UniqueFd stop(::eventfd(0, EFD_CLOEXEC));

  auto client = Client::connect(socket);
  if (!client.ok()) return complain(client.status(), kOwnError);
  grpc::ClientContext context;
  const auto stream = open(client->stub(), &context);
  api::ExecInput first;
  *first.mutable_start() = start;
  if (options.tty) *first.mutable_start()->mutable_window() = window_size(STDIN_FILENO);
  // When the call has failed already, Finish() says why.
  stream->Write(first);

  std::optional<RawTerminal> raw;
  if (options.tty && options.interactive) raw.emplace(STDIN_FILENO);
  Sender sender(*stream, options, signals.get(), stop.get());
  std::thread sending([&] {
    sender.run();
    if (sender.left()) context.TryCancel();
  });

  std::optional<int> exit_code;
  std::optional<api::SessionFailure> failure;
  api::ExecOutput output;
  while (!exit_code && !failure && stream->Read(&output)) {
    bool written = true;
    if (output.has_out()) written = write_all(STDOUT_FILENO, output.out());
    if (output.has_err()) written = write_all(STDERR_FILENO, output.err());
    if (!written) context.TryCancel();
    if (output.has_exit_code()) exit_code = output.exit_code();
    if (output.has_failure()) failure = output.failure();
  }
  const uint64_t one = 1;
  if (::write(stop.get(), &one, sizeof one) != sizeof one) ::abort();  // cannot fail: eventfd(2)
  sending.join();
  raw.reset();
  stream->WritesDone();
  const grpc::Status status = stream->Finish();
  if (sender.left()) return 0;
  if (exit_code) return *exit_code;
  if (failure) return complain(*failure);
  if (status.ok())
    return complain(absl::UnknownError("the program's end was not reported"), kOwnError);
  return complain(api::from_grpc(status), kOwnError);
}

}  // namespace godwit::cli
