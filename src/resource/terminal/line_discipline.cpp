// drivers/tty/n_tty.c and tty_buffer.c, by the kernel's own description of its structures (BTF).
#include "resource/terminal/line_discipline.h"

#include <ctime>
#include <utility>

#include "base/status.h"

namespace godwit::resource {
namespace {

using kernel::KernelAddress;
using kernel::KernelMemory;

constexpr size_t kBuffer = 4096;        // N_TTY_BUF_SIZE
constexpr size_t kMostWaiting = 65536;  // a port takes some 8 KiB

// Special characters of ours: VEOF and VLNEXT (termios(3)).
constexpr unsigned char kEndOfFile = 0x04;
constexpr unsigned char kLiteral = 0x16;

// Members of one structure, read one after the other; the first error stays.
class Reading {
 public:
  Reading(const KernelMemory& memory, KernelAddress at, std::string_view structure)
      : memory_(memory), at_(at), structure_(structure) {}
  uint64_t operator()(std::string_view path) {
    auto value = memory_.number(at_, structure_, path);
    if (!value.ok()) status_.Update(value.status());
    return value.value_or(0);
  }
  KernelAddress pointer(std::string_view path) { return {(*this)(path)}; }
  KernelAddress at(std::string_view path) {
    auto address = memory_.member(at_, structure_, path);
    if (!address.ok()) status_.Update(address.status());
    return address.value_or(KernelAddress{});
  }
  const absl::Status& status() const { return status_; }

 private:
  const KernelMemory& memory_;
  KernelAddress at_;
  std::string_view structure_;
  absl::Status status_;
};

absl::Status read_bytes(const KernelMemory& memory, KernelAddress from, std::string& to) {
  return memory.read(from, std::as_writable_bytes(std::span(to.data(), to.size())));
}

// The number of a struct pid in its own namespace: the capsule's, since nested ones are not
// carried.
absl::StatusOr<int32_t> number_of(const KernelMemory& memory, KernelAddress pid) {
  if (!pid) return 0;
  Reading of(memory, pid, "pid");
  const uint64_t level = of("level");
  GW_RETURN_IF_ERROR(of.status());
  GW_ASSIGN_OR_RETURN(const KernelAddress numbers, memory.member(pid, "pid", "numbers"));
  constexpr uint64_t kEach = 16;  // struct upid: a number and a pointer
  GW_ASSIGN_OR_RETURN(const uint64_t number, memory.number(numbers + kEach * level, "upid", "nr"));
  return static_cast<int32_t>(number);
}

absl::Status read_discipline(const KernelMemory& memory, KernelAddress data, TerminalSide& side) {
  if (!data) return absl::OkStatus();  // being closed: nothing is in it
  Reading n_tty(memory, data, "n_tty_data");
  const uint64_t head = n_tty("read_head");
  const uint64_t tail = n_tty("read_tail");
  side.full = n_tty("no_room") != 0;
  side.echoing = n_tty("echo_head") != n_tty("echo_tail");
  side.column = static_cast<uint32_t>(n_tty("column"));
  const KernelAddress buffer_at = n_tty.at("read_buf");
  const KernelAddress no_room_at = n_tty.at("no_room");
  const KernelAddress marks_at = n_tty.at("read_flags");
  GW_RETURN_IF_ERROR(n_tty.status());
  // lnext:1, erasing:1, ... stand between the two; BTF of bit fields is not read.
  if (buffer_at.value != no_room_at.value + 2)
    return make_error(absl::StatusCode::kUnimplemented, "struct n_tty_data is another one here");
  std::string bits(1, '\0');
  GW_RETURN_IF_ERROR(read_bytes(memory, no_room_at + 1, bits));
  side.literal = (bits[0] & 1) != 0;
  side.erasing = (bits[0] & 2) != 0;
  const uint64_t count = head - tail;
  if (count > kBuffer) return absl::UnavailableError("a terminal is being read");
  if (count == 0) return absl::OkStatus();
  std::string all(kBuffer, '\0');
  std::string marks(kBuffer / 8, '\0');
  GW_RETURN_IF_ERROR(read_bytes(memory, buffer_at, all));
  GW_RETURN_IF_ERROR(read_bytes(memory, marks_at, marks));
  for (uint64_t i = 0; i < count; ++i) {
    const size_t at = (tail + i) % kBuffer;
    side.buffer.push_back(all[at]);
    if ((static_cast<unsigned char>(marks[at / 8]) >> (at % 8) & 1) != 0)
      side.line_ends.push_back(static_cast<uint32_t>(i));
  }
  return absl::OkStatus();
}

// What is in flip buffers, and whether a worker is about to carry it over or does.
struct Waiting {
  std::string bytes;
  bool pending = false;
  bool carried = false;
  bool operator==(const Waiting&) const = default;
};

// Buffers from head on; what of each was given to the discipline already is left out.
absl::StatusOr<Waiting> read_waiting(const KernelMemory& memory, KernelAddress port) {
  Waiting waiting;
  Reading of_port(memory, port, "tty_port");
  waiting.pending = (of_port("buf.work.data") & 1) != 0;  // WORK_STRUCT_PENDING
  waiting.carried = of_port("buf.lock.owner") != 0;
  KernelAddress buffer = of_port.pointer("buf.head");
  GW_RETURN_IF_ERROR(of_port.status());
  while (buffer) {
    Reading of(memory, buffer, "tty_buffer");
    const uint64_t used = of("used");
    const uint64_t read = of("read");
    const bool with_flags = of("flags") != 0;
    const KernelAddress data = of.at("data");
    const KernelAddress next = of.pointer("next");
    GW_RETURN_IF_ERROR(of.status());
    if (used < read || waiting.bytes.size() + (used - read) > kMostWaiting)
      return absl::UnavailableError("a terminal is being written");
    if (with_flags && used > read)
      return absl::UnavailableError("a terminal has characters with errors");
    std::string bytes(used - read, '\0');
    if (!bytes.empty()) GW_RETURN_IF_ERROR(read_bytes(memory, data + read, bytes));
    waiting.bytes += bytes;
    buffer = next;
  }
  return waiting;
}

absl::StatusOr<TerminalSide> look_at(const KernelMemory& memory, KernelAddress tty) {
  TerminalSide side;
  side.tty = tty;
  Reading of(memory, tty, "tty_struct");
  side.opens = of("count");
  side.stopped = of("flow.stopped") != 0;
  side.off = of("flow.tco_stopped") != 0;
  side.packet_events = of("ctrl.pktstatus");
  const KernelAddress group = of.pointer("ctrl.pgrp");
  const KernelAddress data = of.pointer("disc_data");
  const KernelAddress port = of.pointer("port");
  GW_RETURN_IF_ERROR(of.status());
  GW_ASSIGN_OR_RETURN(side.foreground, number_of(memory, group));
  // Before the discipline and after it: what a worker carries over between would be in neither, or
  // in both.
  GW_ASSIGN_OR_RETURN(const Waiting before, read_waiting(memory, port));
  GW_RETURN_IF_ERROR(read_discipline(memory, data, side));
  GW_ASSIGN_OR_RETURN(Waiting waiting, read_waiting(memory, port));
  // The worker empties it as long as there is room.
  side.busy = before != waiting || waiting.carried || waiting.pending ||
              (!waiting.bytes.empty() && !side.full);
  side.waiting = std::move(waiting.bytes);
  return side;
}

}  // namespace

absl::StatusOr<std::array<TerminalSide, 2>> look_at_sides(int fd, bool is_master,
                                                          const KernelMemory& memory) {
  GW_ASSIGN_OR_RETURN(const KernelAddress file, memory.file(fd));
  GW_ASSIGN_OR_RETURN(const KernelAddress data, memory.pointer(file, "file", "private_data"));
  GW_ASSIGN_OR_RETURN(const KernelAddress tty, memory.pointer(data, "tty_file_private", "tty"));
  GW_ASSIGN_OR_RETURN(const KernelAddress other, memory.pointer(tty, "tty_struct", "link"));
  if (!other) return make_error(absl::StatusCode::kFailedPrecondition, "it has no other side");
  std::array<TerminalSide, 2> sides;
  GW_ASSIGN_OR_RETURN(sides[0], look_at(memory, is_master ? tty : other));
  GW_ASSIGN_OR_RETURN(sides[1], look_at(memory, is_master ? other : tty));
  return sides;
}

absl::StatusOr<std::array<TerminalSide, 2>> settled_sides(int fd, bool is_master,
                                                          const KernelMemory& memory,
                                                          Deadline deadline) {
  while (true) {
    auto sides = look_at_sides(fd, is_master, memory);
    if (sides.ok() && !(*sides)[0].busy && !(*sides)[1].busy) return sides;
    if (!sides.ok() && !absl::IsUnavailable(sides.status())) return sides;
    if (deadline.passed())
      return make_error(absl::StatusCode::kUnavailable,
                        "what was written to a terminal does not get to its other side");
    const timespec moment{.tv_sec = 0, .tv_nsec = 50'000};
    ::nanosleep(&moment, nullptr);
  }
}

bool is_canonical(const termios2& settings) {
  return (settings.c_lflag & ICANON) != 0 && (settings.c_lflag & EXTPROC) == 0;
}

termios2 settings_for_input(const termios2& wanted) {
  termios2 settings = wanted;
  // A change of ICANON or EXTPROC would forget line ends (n_tty_set_termios()), a change of IXON
  // let go what was stopped.
  settings.c_iflag = wanted.c_iflag & IXON;
  settings.c_oflag = 0;
  settings.c_lflag = wanted.c_lflag & (ICANON | EXTPROC);
  if (is_canonical(wanted)) settings.c_lflag |= IEXTEN;
  for (unsigned char& each : settings.c_cc) each = 0;  // none
  settings.c_cc[VLNEXT] = kLiteral;
  settings.c_cc[VEOF] = kEndOfFile;
  if (!is_canonical(wanted)) settings.c_cc[VMIN] = 1;
  return settings;
}

std::vector<InputPiece> pieces_of_input(const TerminalState& state, bool canonical) {
  std::vector<InputPiece> pieces(1);
  if (!canonical) {
    pieces[0].bytes = state.input();
    return pieces;
  }
  auto end = state.line_ends().begin();
  for (uint32_t i = 0; i < state.input().size(); ++i) {
    const auto byte = static_cast<unsigned char>(state.input()[i]);
    const bool ends = end != state.line_ends().end() && *end == i;
    if (ends) ++end;
    if (!ends) {
      const bool special = byte == '\n' || byte == kEndOfFile || byte == kLiteral ||
                           (pieces.back().line_end != 0 && byte == pieces.back().line_end);
      if (special) pieces.back().bytes.push_back(static_cast<char>(kLiteral));
      pieces.back().bytes.push_back(static_cast<char>(byte));
    } else if (byte == '\n') {
      pieces.back().bytes.push_back('\n');
    } else if (byte == 0) {
      pieces.back().bytes.push_back(static_cast<char>(kEndOfFile));
    } else {
      if (pieces.back().line_end != byte) pieces.push_back({byte, {}});
      pieces.back().bytes.push_back(static_cast<char>(byte));
    }
  }
  // Ends up as the discipline's own note that a literal comes.
  if (state.next_is_literal()) pieces.back().bytes.push_back(static_cast<char>(kLiteral));
  return pieces;
}

}  // namespace godwit::resource
