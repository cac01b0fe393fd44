#include <asm/ioctls.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "base/status.h"
#include "kernel/syscalls.h"
#include "resource/terminal/line_discipline.h"
#include "resource/terminal/terminal.h"

namespace godwit::resource {
namespace {

constexpr absl::Duration kSettle = absl::Seconds(2);
constexpr char kPtmx[] = "/dev/pts/ptmx";

absl::Status control(int fd, unsigned long request, const void* value, const char* name) {
  if (::ioctl(fd, request, value) == 0) return absl::OkStatus();
  return errno_status(errno, fmt::format("ioctl({}, {})", fd, name));
}

absl::Status set_flag(int fd, unsigned long request, bool on, const char* name) {
  const int value = on ? 1 : 0;
  return control(fd, request, &value, name);
}

template <typename T>
T copied(const std::string& bytes) {
  T value{};
  std::memcpy(&value, bytes.data(), std::min(bytes.size(), sizeof value));
  return value;
}

// Bytes into a side, while the kernel's workers carry them to the other one.
absl::Status write_all(int fd, std::string_view bytes, const char* what) {
  const Deadline deadline = Deadline::in(kSettle);
  while (!bytes.empty()) {
    // A buffer of the kernel's is given back whole when all of it was taken: small ones, so that
    // what found room once finds it again.
    constexpr size_t kPiece = 256;  // MIN_TTYB_SIZE
    const ssize_t n = ::write(fd, bytes.data(), std::min(bytes.size(), kPiece));
    if (n < 0 && errno != EAGAIN && errno != EINTR)
      return errno_status(errno, fmt::format("write({})", what));
    if (n > 0) bytes.remove_prefix(static_cast<size_t>(n));
    if (bytes.empty()) break;
    if (deadline.passed())
      return make_error(absl::StatusCode::kResourceExhausted, "{}: {} bytes find no room", what,
                        bytes.size());
    pollfd polled{fd, POLLOUT, 0};
    ::poll(&polled, 1, 1);
  }
  return absl::OkStatus();
}

// A description of ours for the time of writing, or O_NONBLOCK set for that time.
class NonBlocking {
 public:
  explicit NonBlocking(int fd) : fd_(fd), flags_(::fcntl(fd, F_GETFL)) {
    ::fcntl(fd_, F_SETFL, flags_ | O_NONBLOCK);
  }
  ~NonBlocking() { ::fcntl(fd_, F_SETFL, flags_); }
  NonBlocking(const NonBlocking&) = delete;
  NonBlocking& operator=(const NonBlocking&) = delete;

 private:
  int fd_;
  int flags_;
};

class Filling {
 public:
  Filling(Terminal& terminal, const kernel::KernelMemory* memory)
      : terminal_(terminal),
        state_(terminal.state),
        memory_(memory),
        settings_(copied<termios2>(terminal.state.settings())) {}

  absl::Status run() {
    const bool nothing = state_.input().empty() && state_.input_waiting().empty() &&
                         state_.output().empty() && !state_.next_is_literal() &&
                         state_.column() == 0 && state_.flow() != TerminalState::FLOW_STOPPED;
    if (nothing) return absl::OkStatus();
    if (memory_ == nullptr)
      return make_error(absl::StatusCode::kUnimplemented,
                        "something lies unread in it, and this kernel does not show what has been "
                        "put back (CONFIG_DEBUG_INFO_BTF, CAP_BPF)");
    const NonBlocking master(terminal_.master.get());
    if (terminal_.slave) {
      const NonBlocking slave(terminal_.slave.get());
      GW_RETURN_IF_ERROR(move_cursor());
      GW_RETURN_IF_ERROR(set(settings_for_input(settings_)));
      GW_RETURN_IF_ERROR(put_output());
    }
    GW_RETURN_IF_ERROR(put_input());
    if (state_.flow() == TerminalState::FLOW_STOPPED) GW_RETURN_IF_ERROR(stop());
    GW_RETURN_IF_ERROR(set(settings_));
    return write_all(terminal_.master.get(), state_.input_waiting(), "its input");
  }

 private:
  absl::Status set(const termios2& settings) {
    return control(terminal_.master.get(), TCSETS2, &settings, "TCSETS2");
  }

  absl::Status settle() {
    return settled_sides(terminal_.master.get(), true, *memory_, Deadline::in(kSettle)).status();
  }

  // The line discipline counts what is written; the blanks themselves are taken out again.
  absl::Status move_cursor() {
    if (state_.column() == 0) return absl::OkStatus();
    termios2 counting = settings_for_input(settings_);
    counting.c_oflag = OPOST;
    GW_RETURN_IF_ERROR(set(counting));
    std::string blanks(state_.column(), ' ');
    GW_RETURN_IF_ERROR(write_all(terminal_.slave.get(), blanks, "blanks"));
    GW_RETURN_IF_ERROR(settle());
    const ssize_t n = ::read(terminal_.master.get(), blanks.data(), blanks.size());
    if (n != static_cast<ssize_t>(state_.column()))
      return errno_status(n < 0 ? errno : EIO, "read(blanks)");
    return absl::OkStatus();
  }

  // First as much as the line discipline takes; what waits for it begins a buffer of its own then.
  absl::Status put_output() {
    constexpr size_t kTaken = 4095;  // of N_TTY_BUF_SIZE
    const std::string_view all = state_.output();
    const std::string_view taken = all.substr(0, kTaken);
    GW_RETURN_IF_ERROR(write_all(terminal_.slave.get(), taken, "its output"));
    if (taken.size() == all.size()) return absl::OkStatus();
    GW_RETURN_IF_ERROR(settle());
    return write_all(terminal_.slave.get(), all.substr(kTaken), "its output");
  }

  absl::Status put_input() {
    for (const InputPiece& piece : pieces_of_input(state_, is_canonical(settings_))) {
      if (piece.bytes.empty()) continue;
      termios2 settings = settings_for_input(settings_);
      if (is_canonical(settings_)) settings.c_cc[VEOL] = piece.line_end;
      GW_RETURN_IF_ERROR(set(settings));
      GW_RETURN_IF_ERROR(write_all(terminal_.master.get(), piece.bytes, "its input"));
      GW_RETURN_IF_ERROR(settle());
    }
    return absl::OkStatus();
  }

  absl::Status stop() {
    if ((settings_.c_iflag & IXON) == 0)
      return absl::DataLossError("terminal: stopped without IXON");
    constexpr char kStop = 0x13;
    termios2 settings = settings_for_input(settings_);
    settings.c_cc[VSTOP] = kStop;
    GW_RETURN_IF_ERROR(set(settings));
    GW_RETURN_IF_ERROR(write_all(terminal_.master.get(), {&kStop, 1}, "a stop character"));
    return settle();
  }

  Terminal& terminal_;
  const TerminalState& state_;
  const kernel::KernelMemory* memory_;
  termios2 settings_;
};

}  // namespace

absl::StatusOr<Terminal> make_terminal(const TerminalState& state) {
  Terminal terminal;
  // They are given the lowest free index: those below are held until it comes.
  std::vector<UniqueFd> below;
  while (!terminal.master) {
    GW_ASSIGN_OR_RETURN(UniqueFd master, kernel::open(kPtmx, O_RDWR | O_NOCTTY | O_CLOEXEC));
    unsigned index = 0;
    if (::ioctl(master.get(), TIOCGPTN, &index) != 0) return errno_status(errno, "ioctl(TIOCGPTN)");
    if (index > state.index())
      return make_error(absl::StatusCode::kFailedPrecondition,
                        "terminal {} is another one's here already", state.index());
    (index == state.index() ? terminal.master : below.emplace_back()) = std::move(master);
  }
  GW_RETURN_IF_ERROR(set_flag(terminal.master.get(), TIOCSPTLCK, false, "TIOCSPTLCK"));
  return terminal;
}

absl::Status set_terminal(Terminal& terminal, const TerminalState& state) {
  const int master = terminal.master.get();
  if (state.opened() && !terminal.slave) {
    // TIOCGPTPEER (4.13): the other side of this very terminal.
    terminal.slave.reset(::ioctl(master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC));
    if (!terminal.slave) return errno_status(errno, "ioctl(TIOCGPTPEER)");
  }
  if (terminal.slave) {
    if (::fchown(terminal.slave.get(), state.uid(), state.gid()) != 0)
      return errno_status(errno, "fchown(terminal)");
    if (::fchmod(terminal.slave.get(), state.mode() & 07777U) != 0)
      return errno_status(errno, "fchmod(terminal)");
  }
  const auto settings = copied<termios2>(state.settings());
  GW_RETURN_IF_ERROR(control(master, TCSETS2, &settings, "TCSETS2"));
  winsize size{};
  size.ws_row = static_cast<unsigned short>(state.rows());
  size.ws_col = static_cast<unsigned short>(state.columns());
  size.ws_xpixel = static_cast<unsigned short>(state.width());
  size.ws_ypixel = static_cast<unsigned short>(state.height());
  GW_RETURN_IF_ERROR(control(master, TIOCSWINSZ, &size, "TIOCSWINSZ"));
  terminal.state = state;
  return absl::OkStatus();
}

absl::Status complete_terminal(Terminal& terminal, const kernel::KernelMemory* memory) {
  const TerminalState& state = terminal.state;
  const int master = terminal.master.get();
  GW_RETURN_IF_ERROR(Filling(terminal, memory).run());
  if (state.flow() == TerminalState::FLOW_OFF && ::ioctl(terminal.slave.get(), TCXONC, TCOOFF) != 0)
    return errno_status(errno, "ioctl(TCXONC)");
  const auto locked = copied<termios2>(state.locked_settings());
  GW_RETURN_IF_ERROR(control(master, TIOCSLCKTRMIOS, &locked, "TIOCSLCKTRMIOS"));
  if (state.exclusive() && terminal.slave)
    GW_RETURN_IF_ERROR(control(terminal.slave.get(), TIOCEXCL, nullptr, "TIOCEXCL"));
  if (state.master_exclusive()) GW_RETURN_IF_ERROR(control(master, TIOCEXCL, nullptr, "TIOCEXCL"));
  GW_RETURN_IF_ERROR(set_flag(master, TIOCPKT, state.packets(), "TIOCPKT"));
  return set_flag(master, TIOCSPTLCK, state.pt_locked(), "TIOCSPTLCK");
}

}  // namespace godwit::resource
