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

void set_nonblocking(int fd) {
  if (fd >= 0) ::fcntl(fd, F_SETFL, ::fcntl(fd, F_GETFL) | O_NONBLOCK);
}

}  // namespace

SessionPump::SessionPump(Session& session, Streams streams, Actions actions)
    : session_(session), streams_(std::move(streams)), actions_(std::move(actions)) {
  set_nonblocking(streams_.in.get());
  set_nonblocking(streams_.out.get());
  set_nonblocking(streams_.err.get());
}

bool SessionPump::write_input(const std::string& data) {
  size_t done = 0;
  while (done < data.size()) {
    const ssize_t n = ::write(streams_.in.get(), data.data() + done, data.size() - done);
    if (n > 0) {
      done += static_cast<size_t>(n);
      continue;
    }
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && errno != EAGAIN) return false;  // it does not read any more
    pollfd polled[] = {{stop_.get(), POLLIN, 0}, {streams_.in.get(), POLLOUT, 0}};
    ::poll(polled, 2, -1);
    if (polled[0].revents != 0) return false;
  }
  return true;
}

void SessionPump::take_input() {
  api::ExecInput input;
  bool open = true;
  // Ends when the user half-closes the call or goes.
  while (session_.Read(&input)) {
    if (input.has_data() && open && streams_.in) open = write_input(input.data());
    if (input.end_of_input() && open) {
      open = false;
      actions_.end_of_input();
      streams_.in.reset();
    }
    if (input.has_window()) actions_.resize(input.window().rows(), input.window().columns());
    if (input.has_signal()) actions_.signal(input.signal());
  }
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
  input_ = std::thread([this] { take_input(); });
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
  return context.IsCancelled() ? absl::CancelledError("the user has gone") : absl::OkStatus();
}

void SessionPump::finish(const absl::StatusOr<int>& exit_code) {
  session_.Write(session_end(exit_code));
  if (input_.joinable()) input_.join();
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
