// The user's terminal (termios(3), tty_ioctl(4)).
#ifndef GODWIT_CLI_TERMINAL_H_
#define GODWIT_CLI_TERMINAL_H_

#include <termios.h>

#include <string_view>

#include "api/godwit.pb.h"

namespace godwit::cli {

// All of it, or false when the reader has gone or the disk is full.
bool write_all(int fd, std::string_view bytes);

bool is_terminal(int fd);
// 0 by 0 when `fd` is no terminal.
api::WindowSize window_size(int fd);

// Raw mode while it lives: every key goes to the program at the other end.
class RawTerminal {
 public:
  explicit RawTerminal(int fd);
  ~RawTerminal();
  RawTerminal(const RawTerminal&) = delete;
  RawTerminal& operator=(const RawTerminal&) = delete;

 private:
  int fd_;
  bool changed_ = false;
  termios before_{};
};

}  // namespace godwit::cli

#endif  // GODWIT_CLI_TERMINAL_H_
