// Open file descriptions of terminals. The pairs themselves are made by the engine, before the
// processes that have one as their controlling terminal.
#include <asm/ioctls.h>
#include <fmt/format.h>
#include <sys/ioctl.h>
#include <sys/sysmacros.h>

#include "resource/file_description.h"
#include "resource/state_codec.h"
#include "resource/terminal/terminal.h"

namespace godwit::resource {
namespace {

// devices.txt: 5:0 is /dev/tty, 5:2 ptmx, 136 to 143 the slaves of 2^20 minor numbers each.
constexpr unsigned kTtyAux = 5;
constexpr unsigned kFirstSlave = 136;
constexpr unsigned kLastSlave = 143;

bool is_slave(dev_t device) { return major(device) >= kFirstSlave && major(device) <= kLastSlave; }

class TerminalKind final : public FileKind {
 public:
  std::string_view name() const override { return "terminal_file"; }
  bool recognise(const OpenFile& file) const override;
  bool needs_fdinfo() const override { return false; }
  absl::Status precheck(const OpenFile& file, const CaptureContext& context,
                        std::vector<Refusal>& refusals) const override;
  absl::StatusOr<std::string> capture(const OpenFile& file,
                                      const CaptureContext& context) const override;
  bool finishes(std::string_view) const override { return false; }
  bool early() const override { return true; }
  absl::StatusOr<UniqueFd> create(uint64_t id, std::string_view state,
                                  RestoreContext& context) const override;
  absl::StatusOr<bool> update(int fd, std::string_view before, std::string_view now,
                              RestoreContext& context) const override;
  absl::StatusOr<Check> finish(int, std::string_view, ImagePid, int, tracee::Batch&,
                               RestoreContext&) const override {
    return Check();
  }
  std::string describe(std::string_view state) const override;
};

absl::StatusOr<TerminalFileState> state_of(const OpenFile& file) {
  TerminalFileState state;
  state.set_flags(static_cast<uint32_t>(file.status_flags));
  state.set_path(file.link);
  unsigned device = 0;
  if (is_slave(file.stat.st_rdev)) {
    state.set_side(TerminalFileState::SIDE_SLAVE);
    // As many indexes as minor numbers of the first major: pty(7)'s limit is below.
    state.set_index(minor(file.stat.st_rdev));
    if (::ioctl(file.fd, TIOCGDEV, &device) != 0) {
      if (errno != EIO) return errno_status(errno, "ioctl(TIOCGDEV)");
      state.set_hung_up(true);
      if (state.path().ends_with(" (deleted)"))
        state.set_path(state.path().substr(0, state.path().size() - 10));
    }
    return state;
  }
  state.set_side(minor(file.stat.st_rdev) == 0 ? TerminalFileState::SIDE_CONTROLLING
                                               : TerminalFileState::SIDE_MASTER);
  if (::ioctl(file.fd, TIOCGDEV, &device) != 0) {
    if (errno != EIO) return errno_status(errno, "ioctl(TIOCGDEV)");
    state.set_hung_up(true);
    return state;
  }
  const auto index = terminal_of_device(device);
  if (!index)
    return make_error(absl::StatusCode::kFailedPrecondition, "{}: no pseudoterminal",
                      object_of(file));
  state.set_index(*index);
  return state;
}

}  // namespace

const FileKind& terminal_kind() {
  static const TerminalKind kind;
  return kind;
}

// The kernel's own encoding of a device number (new_encode_dev()): the low eight bits of the minor
// number, the major one, the rest of the minor one.
std::optional<uint32_t> terminal_of_device(uint32_t device) {
  const uint32_t high = (device >> 8) & 0xfff;
  if (high < kFirstSlave || high > kLastSlave) return std::nullopt;
  return (device & 0xff) | ((device >> 12) & 0xfff00);
}

bool TerminalKind::recognise(const OpenFile& file) const {
  if (!S_ISCHR(file.stat.st_mode) || (file.status_flags & O_PATH) != 0) return false;
  const dev_t device = file.stat.st_rdev;
  return is_slave(device) ||
         (major(device) == kTtyAux && (minor(device) == 0 || minor(device) == 2));
}

absl::Status TerminalKind::precheck(const OpenFile& file, const CaptureContext&,
                                    std::vector<Refusal>& refusals) const {
  const auto state = state_of(file);
  if (!state.ok()) {
    refuse(file, "fd.terminal", "a terminal of this machine's hardware",
           "run the service without one, or close the session that opened it", refusals);
    return absl::OkStatus();
  }
  if (state->hung_up() && state->side() == TerminalFileState::SIDE_CONTROLLING)
    refuse(file, "terminal.hung_up", "opened as /dev/tty, and the terminal was hung up since",
           "let the program close it, or restart it", refusals);
  return absl::OkStatus();
}

absl::StatusOr<std::string> TerminalKind::capture(const OpenFile& file,
                                                  const CaptureContext& context) const {
  std::vector<Refusal> refusals;
  GW_RETURN_IF_ERROR(precheck(file, context, refusals));
  GW_RETURN_IF_ERROR(refused_now(refusals));
  GW_ASSIGN_OR_RETURN(const TerminalFileState state, state_of(file));
  return state.SerializeAsString();
}

std::map<uint32_t, TerminalEnds> find_terminals(std::span<const OpenFile* const> files, int own) {
  std::map<uint32_t, TerminalEnds> found;
  for (const OpenFile* file : files) {
    const auto state = state_of(*file);
    if (!state.ok() || state->hung_up()) continue;
    TerminalEnds& ends = found[state->index()];
    (state->side() == TerminalFileState::SIDE_MASTER ? ends.master : ends.slave) = file->fd;
  }
  unsigned device = 0;
  if (own >= 0 && ::ioctl(own, TIOCGDEV, &device) == 0)
    if (const auto index = terminal_of_device(device)) {
      found[*index].master = own;
      found[*index].outside = true;
    }
  return found;
}

namespace {

constexpr int kNever = O_CREAT | O_EXCL | O_TRUNC | O_ASYNC | O_PATH;

// O_LARGEFILE, which glibc hides: open(2) sets it, TIOCGPTPEER does not.
constexpr uint32_t kLargeFile = 0100000;

// As it was opened: by its name, or by its master (4.13).
absl::StatusOr<UniqueFd> open_slave(const TerminalFileState& state, int master,
                                    RestoreContext& context) {
  const int flags = (static_cast<int>(state.flags()) & ~kNever) | O_NOCTTY | O_CLOEXEC;
  if ((state.flags() & kLargeFile) == 0) {
    UniqueFd peer(::ioctl(master, TIOCGPTPEER, flags));
    if (!peer) return errno_status(errno, "ioctl(TIOCGPTPEER)");
    return peer;
  }
  UniqueFd fd;
  GW_RETURN_IF_ERROR(context.in_capsule([&]() -> absl::Status {
    GW_ASSIGN_OR_RETURN(const UniqueFd place, kernel::open(state.path(), O_PATH));
    struct stat st {};
    if (::fstat(place.get(), &st) != 0)
      return errno_status(errno, "fstat(\"" + state.path() + "\")");
    if (!S_ISCHR(st.st_mode) || !is_slave(st.st_rdev) || minor(st.st_rdev) != state.index())
      return make_error(absl::StatusCode::kFailedPrecondition, "{}: not terminal {} here",
                        state.path(), state.index());
    GW_ASSIGN_OR_RETURN(fd, kernel::open(state.path(), flags));
    return absl::OkStatus();
  }));
  return fd;
}

// The master goes when all descriptions have been made, and takes the sides with it.
absl::StatusOr<UniqueFd> open_hung_up(const TerminalFileState& state, RestoreContext& context) {
  const std::string name = fmt::format("hung-up terminal {}", state.index());
  UniqueFd master = context.take(name);
  if (!master) {
    TerminalState pair;
    pair.set_index(state.index());
    GW_RETURN_IF_ERROR(context.in_capsule([&]() -> absl::Status {
      GW_ASSIGN_OR_RETURN(Terminal made, make_terminal(pair));
      master = std::move(made.master);
      return absl::OkStatus();
    }));
  }
  auto fd = open_slave(state, master.get(), context);
  context.stash(name, std::move(master));
  return fd;
}

absl::StatusOr<TerminalFileState> parse(std::string_view bytes) {
  GW_ASSIGN_OR_RETURN(auto state, parse_state<TerminalFileState>(bytes, "terminal_file"));
  if (state.side() < TerminalFileState::SIDE_MASTER ||
      state.side() > TerminalFileState::SIDE_CONTROLLING)
    return make_error(absl::StatusCode::kDataLoss, "terminal_file: no such side");
  return state;
}

}  // namespace

absl::StatusOr<UniqueFd> TerminalKind::create(uint64_t, std::string_view bytes,
                                              RestoreContext& context) const {
  GW_ASSIGN_OR_RETURN(const TerminalFileState state, parse(bytes));
  UniqueFd fd;
  if (state.hung_up() && state.side() == TerminalFileState::SIDE_SLAVE)
    return open_hung_up(state, context);
  const Terminal* pair = context.terminal(state.index());
  if (pair == nullptr || state.hung_up())
    return make_error(absl::StatusCode::kDataLoss, "terminal {} has no section", state.index());
  switch (state.side()) {
    case TerminalFileState::SIDE_MASTER: {
      // A master has one description.
      GW_ASSIGN_OR_RETURN(fd, kernel::duplicate(pair->master.get()));
      break;
    }
    case TerminalFileState::SIDE_SLAVE: {
      GW_ASSIGN_OR_RETURN(fd, open_slave(state, pair->master.get(), context));
      break;
    }
    default: {
      GW_ASSIGN_OR_RETURN(
          fd, context.open_controlling_terminal(
                  state.index(), (static_cast<int>(state.flags()) & ~kNever) | O_CLOEXEC));
      break;
    }
  }
  GW_RETURN_IF_ERROR(set_status_flags(fd.get(), static_cast<int>(state.flags())));
  return fd;
}

absl::StatusOr<bool> TerminalKind::update(int fd, std::string_view before_bytes,
                                          std::string_view now_bytes, RestoreContext&) const {
  GW_ASSIGN_OR_RETURN(const TerminalFileState before, parse(before_bytes));
  GW_ASSIGN_OR_RETURN(const TerminalFileState now, parse(now_bytes));
  if (before.side() != now.side() || before.index() != now.index() ||
      before.hung_up() != now.hung_up() || before.path() != now.path())
    return false;
  if (!now.hung_up()) GW_RETURN_IF_ERROR(set_status_flags(fd, static_cast<int>(now.flags())));
  return true;
}

std::string TerminalKind::describe(std::string_view bytes) const {
  const auto state = parse(bytes);
  if (!state.ok()) return "terminal (unreadable)";
  const char* side = state->side() == TerminalFileState::SIDE_MASTER  ? "master"
                     : state->side() == TerminalFileState::SIDE_SLAVE ? "slave"
                                                                      : "controlling";
  return fmt::format("{} side of terminal {}{}", side, state->index(),
                     state->hung_up() ? ", hung up" : "");
}

}  // namespace godwit::resource
