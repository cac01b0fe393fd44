// What the kernel holds of a terminal that no call tells.
#ifndef GODWIT_RESOURCE_TERMINAL_LINE_DISCIPLINE_H_
#define GODWIT_RESOURCE_TERMINAL_LINE_DISCIPLINE_H_

#include <asm/termbits.h>

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/clock.h"
#include "kernel/kernel_memory.h"
#include "resource/terminal/terminal.pb.h"

namespace godwit::resource {

// Of one side.
struct TerminalSide {
  kernel::KernelAddress tty;
  uint64_t opens = 0;
  bool stopped = false;
  bool off = false;  // TCOOFF
  uint64_t packet_events = 0;
  int32_t foreground = 0;
  std::string buffer;  // read_buf, from its tail on
  std::vector<uint32_t> line_ends;
  std::string waiting;   // in flip buffers
  bool full = false;     // what waits will wait until somebody reads
  bool busy = false;     // being carried over right now
  bool echoing = false;  // echoes that have not gone out
  bool literal = false;
  bool erasing = false;
  uint32_t column = 0;
};

// `fd` of any side; [0] is the master's, [1] the slave's.
absl::StatusOr<std::array<TerminalSide, 2>> look_at_sides(int fd, bool is_master,
                                                          const kernel::KernelMemory& memory);
// The same when nothing is on its way between the two any more.
absl::StatusOr<std::array<TerminalSide, 2>> settled_sides(int fd, bool is_master,
                                                          const kernel::KernelMemory& memory,
                                                          Deadline deadline);

// What is written to the master, and with which settings of the slave, so that the slave's buffer
// becomes `input` with its line ends. Pieces are to settle one after the other.
struct InputPiece {
  unsigned char line_end = 0;  // c_cc[VEOL]; 0: none
  std::string bytes;
};
std::vector<InputPiece> pieces_of_input(const TerminalState& state, bool canonical);
// For them: `wanted` without everything that would change, echo or act upon a byte.
termios2 settings_for_input(const termios2& wanted);
bool is_canonical(const termios2& settings);

}  // namespace godwit::resource

#endif  // GODWIT_RESOURCE_TERMINAL_LINE_DISCIPLINE_H_
