#include <asm/ioctls.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include "base/status.h"
#include "kernel/syscalls.h"
#include "resource/state_codec.h"
#include "resource/terminal/line_discipline.h"
#include "resource/terminal/terminal.h"

namespace godwit::resource {
namespace {

// The kernel's workers carry bytes from one side to the other.
constexpr absl::Duration kSettle = absl::Milliseconds(200);

absl::Status ask(int fd, unsigned long request, void* to, const char* name) {
  if (::ioctl(fd, request, to) == 0) return absl::OkStatus();
  return errno_status(errno, fmt::format("ioctl({}, {})", fd, name));
}

absl::StatusOr<bool> ask_flag(int fd, unsigned long request, const char* name) {
  int value = 0;
  GW_RETURN_IF_ERROR(ask(fd, request, &value, name));
  return value != 0;
}

absl::Status capture_settings(const TerminalEnds& ends, TerminalState& state) {
  // On either side they are the slave's.
  const int fd = ends.master >= 0 ? ends.master : ends.slave;
  unsigned device = 0;
  GW_RETURN_IF_ERROR(ask(fd, TIOCGDEV, &device, "TIOCGDEV"));
  const auto index = terminal_of_device(device);
  if (!index) return absl::FailedPreconditionError("no pseudoterminal");
  state.set_index(*index);
  termios2 settings{};
  GW_RETURN_IF_ERROR(ask(fd, TCGETS2, &settings, "TCGETS2"));
  state.set_settings(&settings, sizeof settings);
  termios2 locked{};
  GW_RETURN_IF_ERROR(ask(fd, TIOCGLCKTRMIOS, &locked, "TIOCGLCKTRMIOS"));
  state.set_locked_settings(&locked, sizeof locked);
  winsize size{};
  GW_RETURN_IF_ERROR(ask(fd, TIOCGWINSZ, &size, "TIOCGWINSZ"));
  state.set_rows(size.ws_row);
  state.set_columns(size.ws_col);
  state.set_width(size.ws_xpixel);
  state.set_height(size.ws_ypixel);
  if (ends.master >= 0) {
    GW_ASSIGN_OR_RETURN(const bool locked_pt, ask_flag(ends.master, TIOCGPTLCK, "TIOCGPTLCK"));
    GW_ASSIGN_OR_RETURN(const bool packets, ask_flag(ends.master, TIOCGPKT, "TIOCGPKT"));
    GW_ASSIGN_OR_RETURN(const bool alone, ask_flag(ends.master, TIOCGEXCL, "TIOCGEXCL"));
    state.set_pt_locked(locked_pt);
    state.set_packets(packets);
    state.set_master_exclusive(alone);
  }
  if (ends.slave >= 0) {
    GW_ASSIGN_OR_RETURN(const bool alone, ask_flag(ends.slave, TIOCGEXCL, "TIOCGEXCL"));
    state.set_exclusive(alone);
  }
  return absl::OkStatus();
}

absl::Status passing(const TerminalState& state, const char* what) {
  return make_error(absl::StatusCode::kUnavailable, "terminal {}: {}", state.index(), what);
}

absl::Status capture_content(const std::array<TerminalSide, 2>& sides, TerminalState& state) {
  const TerminalSide& master = sides[0];
  const TerminalSide& slave = sides[1];
  if (master.stopped) return passing(state, "its master's side is stopped (TCXONC)");
  if (slave.echoing) return passing(state, "an echo waits for room");
  if (slave.erasing) return passing(state, "a character is being erased");
  if (state.packets() && slave.packet_events != 0)
    return passing(state, "its master has a packet event to read");
  state.set_input(slave.buffer);
  for (const uint32_t end : slave.line_ends) state.add_line_ends(end);
  state.set_input_waiting(slave.waiting);
  state.set_next_is_literal(slave.literal);
  // Tabs count eight, and whether it is the first matters (ONOCR).
  state.set_column(slave.column < 16 ? slave.column : 8 + slave.column % 8);
  // Whoever has it outside goes on reading there.
  if (!state.outside()) state.set_output(master.buffer + master.waiting);
  if (!state.opened() && !state.output().empty())
    return passing(state, "it has an echo to read, and nobody has opened its slave yet");
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<TerminalState> capture_terminal(const TerminalEnds& ends, bool with_content,
                                               const kernel::KernelMemory& memory) {
  TerminalState state;
  state.set_outside(ends.outside);
  GW_RETURN_IF_ERROR(capture_settings(ends, state));
  const bool by_master = ends.master >= 0;
  const int fd = by_master ? ends.master : ends.slave;
  GW_ASSIGN_OR_RETURN(const auto sides,
                      with_content ? settled_sides(fd, by_master, memory, Deadline::in(kSettle))
                                   : look_at_sides(fd, by_master, memory));
  pollfd polled{ends.master, 0, 0};
  const bool ended = by_master && ::poll(&polled, 1, 0) == 1 && (polled.revents & POLLHUP) != 0;
  // The master counts as one (pty_common_install()).
  state.set_opened(sides[1].opens > 1 || ended);
  state.set_foreground(sides[1].foreground);
  state.set_flow(sides[1].off       ? TerminalState::FLOW_OFF
                 : sides[1].stopped ? TerminalState::FLOW_STOPPED
                                    : TerminalState::FLOW_GOES);
  if (with_content) GW_RETURN_IF_ERROR(capture_content(sides, state));
  return state;
}

absl::StatusOr<TerminalState> parse_terminal(std::string_view bytes) {
  GW_ASSIGN_OR_RETURN(auto state, parse_state<TerminalState>(bytes, "terminal"));
  constexpr uint32_t kMost = 1 << 20;  // minor numbers
  constexpr size_t kMostInput = 4096;  // N_TTY_BUF_SIZE
  constexpr size_t kMostWaiting = 65536;
  bool right = state.index() < kMost && state.settings().size() == sizeof(termios2) &&
               state.locked_settings().size() == sizeof(termios2) && state.rows() <= UINT16_MAX &&
               state.columns() <= UINT16_MAX && state.width() <= UINT16_MAX &&
               state.height() <= UINT16_MAX && state.column() < 16 && state.foreground() >= 0 &&
               state.flow() <= TerminalState::FLOW_OFF && state.flow() >= 0 &&
               state.input().size() <= kMostInput && state.input_waiting().size() <= kMostWaiting &&
               state.output().size() <= kMostInput + kMostWaiting;
  uint32_t next = 0;
  for (const uint32_t end : state.line_ends()) {
    right = right && end >= next && end < state.input().size();
    next = end + 1;
  }
  if (!right) return make_error(absl::StatusCode::kDataLoss, "terminal: values out of range");
  return state;
}

std::string describe_terminal(const TerminalState& state) {
  return fmt::format("/dev/pts/{}, {}x{}, {} bytes of input, {} of output", state.index(),
                     state.columns(), state.rows(),
                     state.input().size() + state.input_waiting().size(), state.output().size());
}

}  // namespace godwit::resource
