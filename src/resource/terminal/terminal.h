// Pseudoterminals (pty(7), ioctl_tty(2), termios(3)): pairs of a master and a slave, and the open
// file descriptions of both sides.
//
// Facts (Linux 6.18, drivers/tty). A master has one description; every open of ptmx makes another
// pair, with the lowest free index of its devpts. The index stays taken until both sides are
// closed. Only a session's leader can take a terminal as its controlling one (TIOCSCTTY), other
// processes have it by fork(2) alone, so it must exist before they do. What lies unread cannot be
// read without changing the terminal (reading echoes, wakes and unthrottles; a line that is not
// complete is shown to nobody), so it is taken from the kernel's memory
// (kernel/kernel_memory.h): the line discipline's buffer with its marks of line ends (struct
// n_tty_data), and what waits before it (struct tty_bufhead). Put back it is by writing, with the
// settings such that nothing is interpreted that was interpreted before.
#ifndef GODWIT_RESOURCE_TERMINAL_TERMINAL_H_
#define GODWIT_RESOURCE_TERMINAL_TERMINAL_H_

#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/unique_fd.h"
#include "kernel/kernel_memory.h"
#include "resource/resource.h"
#include "resource/terminal/terminal.pb.h"

namespace godwit::resource {

// The open file descriptions.
const FileKind& terminal_kind();

// N of /dev/pts/N by a device number as /proc/PID/stat and TIOCGDEV give it; nothing for another
// device.
std::optional<uint32_t> terminal_of_device(uint32_t device);

// What of a pair is at hand: borrowed descriptors, -1 for none.
struct TerminalEnds {
  int master = -1;
  int slave = -1;
  bool outside = false;  // the master is the node's
};

// The pairs of which `files` (of kind terminal) has something, by their index. `own`: the master of
// the service's own terminal, or -1. Sides that are hung up belong to no pair.
std::map<uint32_t, TerminalEnds> find_terminals(std::span<const OpenFile* const> files, int own);

// `with_content`: in the freeze. kUnavailable: it has not settled, or something passing is under
// way in it.
absl::StatusOr<TerminalState> capture_terminal(const TerminalEnds& ends, bool with_content,
                                               const kernel::KernelMemory& memory);

// A pair of a replica.
struct Terminal {
  UniqueFd master;
  UniqueFd slave;  // none while it was never opened at the source
  TerminalState state;
};

// In the capsule (the caller's mount namespace and root): /dev/pts/N, unlocked.
absl::StatusOr<Terminal> make_terminal(const TerminalState& state);
// Settings, size, owner and mode.
absl::Status set_terminal(Terminal& terminal, const TerminalState& state);
// The last: what lies unread, and what would be in the way before. `memory` may be null where
// nothing lies unread.
absl::Status complete_terminal(Terminal& terminal, const kernel::KernelMemory* memory);

absl::StatusOr<TerminalState> parse_terminal(std::string_view bytes);
std::string describe_terminal(const TerminalState& state);

}  // namespace godwit::resource

#endif  // GODWIT_RESOURCE_TERMINAL_TERMINAL_H_
