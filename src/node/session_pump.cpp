#include "node/session_pump.h"

#include <fcntl.h>
#include <grpcpp/server_context.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <cerrno>
#include <thread>

#include "base/status.h"

namespace godwit::node {
namespace {

constexpr size_t kChunk = 32 * 1024;
// How often the user's disappearance is looked for while the program is silent.
constexpr int kCancelSliceMs = 500;
// Between the end of its input and that of its output, when a program has gone.
constexpr int kEndMs = 200;

void set_nonblocking(int fd) {
  if (fd >= 0) ::fcntl(fd, F_SETFL, ::fcntl(fd, F_GETFL) | O_NONBLOCK);
}

}  // namespace

SessionPump::SessionPump(Session& session, SessionInput& input, Streams streams, Actions actions)
    : session_(session), given_(input), streams_(std::move(streams)), actions_(std::move(actions)) {
  set_nonblocking(streams_.in.get());
  set_nonblocking(streams_.out.get());
  set_nonblocking(streams_.err.get());
}

// `data` becomes what is left.
bool SessionPump::write_input(std::string& data) {
  size_t done = 0;
  bool taken = true;
  while (done < data.size()) {
    const ssize_t n = ::write(streams_.in.get(), data.data() + done, data.size() - done);
    if (n > 0) {
      done += static_cast<size_t>(n);
      continue;
    }
    if (n < 0 && errno == EINTR) continue;
    pollfd polled[] = {{stop_.get(), POLLIN, 0}, {streams_.in.get(), POLLOUT, 0}};
    if (n < 0 && errno != EAGAIN) {
      // It does not read any more, because it has closed its end or because it has moved: the
      // session's end tells which.
      ::poll(polled, 1, kEndMs);
      taken = polled[0].revents == 0;
      open_ = false;
      break;
    }
    ::poll(polled, 2, -1);
    if (polled[0].revents == 0) continue;
    taken = false;
    break;
  }
  data.erase(0, done);
  return taken;
}

bool SessionPump::take_input(api::ExecInput& input) {
  pollfd stopped{stop_.get(), POLLIN, 0};
  if (::poll(&stopped, 1, 0) == 1) return false;
  if (input.has_data() && open_ && streams_.in && !write_input(*input.mutable_data())) return false;
  if (input.end_of_input() && open_) {
    open_ = false;
    actions_.end_of_input();
    streams_.in.reset();
  }
  if (input.has_window()) actions_.resize(input.window().rows(), input.window().columns());
  if (input.has_signal()) actions_.signal(input.signal());
  return true;
}

// Whoever has the program next gets it before everything else.
void SessionPump::take_back() {
  if (!streams_.returned) return;
  set_nonblocking(streams_.returned.get());
  api::ExecInput back;
  std::string bytes(kChunk, '\0');
  pollfd polled{streams_.returned.get(), POLLIN, 0};
  while (::poll(&polled, 1, kEndMs) == 1) {
    const ssize_t n = ::read(streams_.returned.get(), bytes.data(), bytes.size());
    if (n <= 0) break;
    back.mutable_data()->append(bytes, 0, static_cast<size_t>(n));
  }
  if (back.has_data()) given_.put_back(std::move(back));
}

bool SessionPump::pass_output(int fd, bool error) {
  std::string bytes(kChunk, '\0');
  ssize_t n = 0;
  do {
    n = ::read(fd, bytes.data(), bytes.size());
  } while (n < 0 && errno == EINTR);
  if (n < 0 && errno == EAGAIN) return true;
  if (n <= 0) return false;  // EIO: the last user of a terminal has gone
  bytes.resize(static_cast<size_t>(n));
  api::ExecOutput output;
  if (error)
    output.set_err(std::move(bytes));
  else
    output.set_out(std::move(bytes));
  return session_.Write(output);
}

absl::Status SessionPump::run(grpc::ServerContext& context) {
  stop_.reset(::eventfd(0, EFD_CLOEXEC));
  if (!stop_) return errno_status(errno, "eventfd()");
  std::thread giving(
      [this] { given_.give_to([this](api::ExecInput& input) { return take_input(input); }); });
  bool out_open = static_cast<bool>(streams_.out), err_open = static_cast<bool>(streams_.err);
  bool ended = false;
  while (!ended || out_open || err_open) {
    pollfd polled[] = {{ended ? -1 : streams_.ended_fd, POLLIN, 0},
                       {out_open ? streams_.out.get() : -1, POLLIN, 0},
                       {err_open ? streams_.err.get() : -1, POLLIN, 0}};
    // After the end only what is there already: a daemon that it started may keep the pipe open.
    const int ready = ::poll(polled, 3, ended ? 0 : kCancelSliceMs);
    if (context.IsCancelled()) break;
    if (ready == 0 && ended) break;
    if (polled[1].revents != 0) out_open = pass_output(streams_.out.get(), false);
    if (polled[2].revents != 0) err_open = pass_output(streams_.err.get(), true);
    if (polled[0].revents != 0) ended = true;
    if (streams_.ended_fd < 0 && !out_open && !err_open) ended = true;
  }
  const uint64_t one = 1;
  if (::write(stop_.get(), &one, sizeof one) != sizeof one) ::abort();  // cannot fail: eventfd(2)
  giving.join();
  given_.keep();
  take_back();
  return context.IsCancelled() ? absl::CancelledError("the user has gone") : absl::OkStatus();
}

api::SessionFailure failure_of(const absl::Status& status) {
  api::SessionFailure failure;
  failure.set_code(static_cast<int32_t>(status.code()));
  failure.set_message(std::string(message_of(status)));
  failure.set_exit_code(not_started_code(status));
  return failure;
}

int not_started_code(const absl::Status& status) {
  switch (errno_of(status)) {
    case ENOENT:
      return 127;
    case EACCES:
    case ENOEXEC:
    case EISDIR:
      return 126;
    default:
      return 0;
  }
}

api::ExecOutput session_end(const absl::StatusOr<int>& exit_code) {
  api::ExecOutput last;
  if (exit_code.ok()) {
    last.set_exit_code(*exit_code);
  } else {
    *last.mutable_failure() = failure_of(exit_code.status());
  }
  return last;
}

}  // namespace godwit::node
