#include "capsule/stdio_hub.h"

#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <ctime>
#include <utility>

#include "base/clock.h"
#include "base/log.h"
#include "base/status.h"
#include "capsule/messages.h"
#include "kernel/syscalls.h"

namespace godwit::capsule {
namespace {

// A client that reads slowly slows the service down, as a terminal does; one that does not read at
// all for kStuck is let go.
constexpr size_t kHoldBack = size_t{256} << 10;
constexpr int64_t kStuck = 10'000'000'000;
// Followers come when they have seen that the source has none for them any more.
constexpr int64_t kFollow = 10'000'000'000;
constexpr size_t kMostForFollowers = size_t{1} << 20;

int64_t unix_ns() { return clock_ns(CLOCK_REALTIME); }

// Only this side's description: the service's end stays as it expects it.
absl::Status set_nonblocking(int fd) {
  GW_ASSIGN_OR_RETURN(const int flags, kernel::fcntl_int(fd, F_GETFL));
  return kernel::fcntl_int(fd, F_SETFL, flags | O_NONBLOCK).status();
}

}  // namespace

absl::StatusOr<StdioHub> StdioHub::make(const std::string& log_path, bool tty, bool interactive) {
  GW_ASSIGN_OR_RETURN(LogWriter log, LogWriter::open(log_path));
  StdioHub hub(std::move(log));
  if (tty) return hub;
  auto make_out = [](UniqueFd& ours, UniqueFd& theirs) -> absl::Status {
    GW_ASSIGN_OR_RETURN(kernel::Pipe pipe, kernel::pipe2(0));
    ours = std::move(pipe.read);
    theirs = std::move(pipe.write);
    return set_nonblocking(ours.get());
  };
  GW_RETURN_IF_ERROR(make_out(hub.out_, hub.capsule_out_));
  GW_RETURN_IF_ERROR(make_out(hub.err_, hub.capsule_err_));
  if (interactive) {
    GW_ASSIGN_OR_RETURN(kernel::Pipe pipe, kernel::pipe2(0));
    hub.in_ = std::move(pipe.write);
    hub.capsule_in_ = std::move(pipe.read);
    GW_RETURN_IF_ERROR(set_nonblocking(hub.in_.get()));
  }
  return hub;
}

int StdioHub::capsule_end(int stream) const {
  switch (stream) {
    case 0:
      return capsule_in_.get();
    case 1:
      return capsule_out_.get();
    default:
      return capsule_err_.get();
  }
}

uint64_t StdioHub::inode(int stream) const {
  struct stat info {};
  const int fd = capsule_end(stream);
  return fd >= 0 && ::fstat(fd, &info) == 0 ? info.st_ino : 0;
}

absl::Status StdioHub::set_terminal(UniqueFd master) {
  GW_RETURN_IF_ERROR(set_nonblocking(master.get()));
  terminal_ = std::move(master);
  return absl::OkStatus();
}

absl::Status StdioHub::resize(unsigned rows, unsigned columns) {
  if (!terminal_) return absl::FailedPreconditionError("the service has no terminal");
  winsize size{};
  size.ws_row = static_cast<unsigned short>(rows);
  size.ws_col = static_cast<unsigned short>(columns);
  if (::ioctl(terminal_.get(), TIOCSWINSZ, &size) != 0) {
    return errno_status(errno, "ioctl(TIOCSWINSZ)");
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<UniqueFd>> StdioHub::attach() {
  auto attachment = std::make_unique<Attachment>();
  std::vector<UniqueFd> client;
  GW_ASSIGN_OR_RETURN(SocketPair io, socket_pair(SOCK_STREAM));
  GW_RETURN_IF_ERROR(set_nonblocking(io.first.get()));
  attachment->io = std::move(io.first);
  client.push_back(std::move(io.second));
  if (out_) {
    GW_ASSIGN_OR_RETURN(SocketPair err, socket_pair(SOCK_STREAM));
    GW_RETURN_IF_ERROR(set_nonblocking(err.first.get()));
    attachment->err = std::move(err.first);
    client.push_back(std::move(err.second));
  }
  GW_ASSIGN_OR_RETURN(SocketPair returned, socket_pair(SOCK_STREAM));
  GW_RETURN_IF_ERROR(set_nonblocking(returned.first.get()));
  const int room = 1 << 20;  // for what `io` can hold, and what was taken from it already
  if (::setsockopt(returned.first.get(), SOL_SOCKET, SO_SNDBUFFORCE, &room, sizeof room) != 0)
    return errno_status(errno, "setsockopt(SO_SNDBUFFORCE)");
  attachment->returned = std::move(returned.first);
  client.push_back(std::move(returned.second));
  if (keeps_for_followers()) {
    attachment->pending_io = out_for_followers_;
    if (attachment->err) attachment->pending_err = err_for_followers_;
    push(*attachment);
  }
  attachments_.push_back(std::move(attachment));
  return client;
}

void StdioHub::begin_running() {
  if (followed_) followed_until_ns_ = monotonic_ns() + kFollow;
}

bool StdioHub::keeps_for_followers() {
  if (followed_ && followed_until_ns_ != 0 && monotonic_ns() > followed_until_ns_) {
    followed_ = false;
    out_for_followers_ = {};
    err_for_followers_ = {};
  }
  return followed_;
}

bool StdioHub::held_back() const {
  return std::any_of(attachments_.begin(), attachments_.end(), [](const auto& a) {
    return a->pending_io.size() > kHoldBack || a->pending_err.size() > kHoldBack;
  });
}

void StdioHub::add_polls(std::vector<pollfd>& polls) const {
  if (!held_back()) {
    for (const UniqueFd* fd : {&out_, &err_}) {
      if (*fd) polls.push_back({fd->get(), POLLIN, 0});
    }
  }
  short terminal_events = held_back() ? 0 : POLLIN;
  if (!pending_input_.empty() && !held_) {
    terminal_events |= POLLOUT;
    if (in_) polls.push_back({in_.get(), POLLOUT, 0});
  }
  if (terminal_ && terminal_events != 0) polls.push_back({terminal_.get(), terminal_events, 0});
  for (const auto& a : attachments_) {
    if (held_ && a->pending_io.empty() && a->pending_err.empty()) continue;
    short events = held_ ? 0 : POLLRDHUP;
    if (a->input_open && pending_input_.empty() && !held_) events |= POLLIN;
    if (!a->pending_io.empty()) events |= POLLOUT;
    polls.push_back({a->io.get(), events, 0});
    if (a->err) {
      polls.push_back({a->err.get(), static_cast<short>(a->pending_err.empty() ? 0 : POLLOUT), 0});
    }
  }
}

void StdioHub::handle(const pollfd& event) {
  if (event.fd == out_.get()) {
    drain(event.fd, 1);
  } else if (event.fd == err_.get()) {
    drain(event.fd, 2);
  } else if (event.fd == in_.get()) {
    write_input();
  } else if (event.fd == terminal_.get()) {
    if ((event.revents & POLLOUT) != 0) write_input();
    // POLLHUP: every process has closed the terminal. It may be opened again, but a poll of it
    // would only spin: the rest is read at the end.
    if ((event.revents & (POLLIN | POLLHUP)) != 0 && !drain(event.fd, 1) &&
        (event.revents & POLLHUP) != 0) {
      terminal_.reset();
    }
  }
  for (auto& a : attachments_) {
    if (event.fd != a->io.get() && event.fd != a->err.get()) continue;
    const bool told = (event.revents & (POLLIN | POLLRDHUP | POLLHUP)) != 0;
    // Its end will be seen afterwards.
    if (event.fd == a->io.get() && told && !held_) {
      take_input(*a, (event.revents & POLLHUP) != 0);
    }
    push(*a);
  }
  drop_gone();
}

// False when nothing was read.
bool StdioHub::drain(int fd, int stream) {
  char bytes[65536];
  const ssize_t n = ::read(fd, bytes, sizeof bytes);
  if (n <= 0) return false;
  const std::string_view text(bytes, static_cast<size_t>(n));
  const absl::Status status = log_.append(stream, text, unix_ns());
  if (!status.ok() && !log_broken_) log_error("log: {}", message_of(status));
  log_broken_ = !status.ok();
  if (keeps_for_followers()) {
    std::string& kept = stream == 2 ? err_for_followers_ : out_for_followers_;
    kept += text;
    if (kept.size() > kMostForFollowers) kept.erase(0, kept.size() - kMostForFollowers);
  }
  for (auto& a : attachments_) {
    (stream == 2 ? a->pending_err : a->pending_io) += text;
    push(*a);
  }
  return true;
}

void StdioHub::take_input(Attachment& a, bool hung_up) {
  if (!pending_input_.empty() && !hung_up) return;
  char bytes[16384];
  const ssize_t n = a.input_open ? ::read(a.io.get(), bytes, sizeof bytes) : 0;
  if (n > 0) {
    if (in_ || terminal_) pending_input_.append(bytes, static_cast<size_t>(n));
    write_input();
    return;
  }
  if (n < 0 && errno == EAGAIN) return;
  // shutdown(2) by the client is end of file for the service; its disappearance is not.
  if (a.input_open && !hung_up) close_stdin();
  a.input_open = false;
  if (hung_up || n < 0) a.gone = true;
}

void StdioHub::write_input() {
  if (held_) return;
  const int fd = terminal_ ? terminal_.get() : in_.get();
  if (fd < 0) {
    pending_input_.clear();
    return;
  }
  while (!pending_input_.empty()) {
    const ssize_t n = ::write(fd, pending_input_.data(), pending_input_.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && errno == EAGAIN) return;
    if (n < 0) {
      pending_input_.clear();
      return;
    }
    pending_input_.erase(0, static_cast<size_t>(n));
  }
}

// The first has what was taken from anybody and not written.
void StdioHub::give_back_input() {
  for (auto& a : attachments_) {
    std::string input = std::exchange(pending_input_, {});
    // What is written from here on fails, and is not lost.
    ::shutdown(a->io.get(), SHUT_RD);
    char bytes[16384];
    for (ssize_t n = 0; (n = ::read(a->io.get(), bytes, sizeof bytes)) > 0;)
      input.append(bytes, static_cast<size_t>(n));
    [[maybe_unused]] const ssize_t n =
        ::send(a->returned.get(), input.data(), input.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
  }
}

void StdioHub::push(Attachment& a) {
  bool moved = false;
  for (auto [fd, pending] : {std::pair{&a.io, &a.pending_io}, std::pair{&a.err, &a.pending_err}}) {
    while (*fd && !pending->empty()) {
      const ssize_t n =
          ::send(fd->get(), pending->data(), pending->size(), MSG_NOSIGNAL | MSG_DONTWAIT);
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) {
        if (errno != EAGAIN) a.gone = true;
        break;
      }
      moved = true;
      pending->erase(0, static_cast<size_t>(n));
    }
  }
  const bool stuck = !a.pending_io.empty() || !a.pending_err.empty();
  if (!stuck) {
    a.stuck_since_ns = 0;
  } else if (moved || a.stuck_since_ns == 0) {
    a.stuck_since_ns = monotonic_ns();
  }
}

void StdioHub::drop_gone() {
  for (auto& a : attachments_) {
    if (a->stuck_since_ns != 0 && monotonic_ns() - a->stuck_since_ns > kStuck) a->gone = true;
  }
  std::erase_if(attachments_, [](const auto& a) { return a->gone; });
}

void StdioHub::finish() {
  if (out_) {
    while (drain(out_.get(), 1)) {
    }
    while (drain(err_.get(), 2)) {
    }
  }
  if (terminal_) {
    while (drain(terminal_.get(), 1)) {
    }
  }
  if (const absl::Status status = log_.flush(unix_ns()); !status.ok()) {
    log_error("log: {}", message_of(status));
  }
  if (held_) give_back_input();
  // What a client's socket did not take now goes with the socket's close: the log has it.
  attachments_.clear();
}

}  // namespace godwit::capsule
