// Output and input of a capsule's main process: pipes or a terminal on one side, the log and
// attached clients on the other. Part of the shim, one thread.
#ifndef GODWIT_CAPSULE_STDIO_HUB_H_
#define GODWIT_CAPSULE_STDIO_HUB_H_

#include <poll.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/unique_fd.h"
#include "capsule/log_file.h"

namespace godwit::capsule {

class StdioHub {
 public:
  // Pipes are made unless `tty`; one for stdin only when `interactive`.
  static absl::StatusOr<StdioHub> make(const std::string& log_path, bool tty, bool interactive);

  // The capsule's ends: stdin, stdout, stderr; -1 where there is none.
  int capsule_end(int stream) const;
  uint64_t inode(int stream) const;  // of the pipe, 0 if none
  int terminal() const { return terminal_.get(); }
  absl::Status set_terminal(UniqueFd master);
  absl::Status resize(unsigned rows, unsigned columns);
  void close_stdin() { in_.reset(); }
  // What clients send stays with them, from here on or not any more; finish() gives it back.
  void hold_input(bool hold) { held_ = hold; }
  // Of a replica: those who follow their session from the source get what came before they did.
  void expect_followers() { followed_ = true; }
  // It runs from now on: they come soon, or not at all.
  void begin_running();

  // A client's ends: one stream socket that carries input in and stdout (or the terminal) out;
  // without a terminal a second one with stderr; and one for what finish() gives back.
  absl::StatusOr<std::vector<UniqueFd>> attach();

  void add_polls(std::vector<pollfd>& polls) const;
  void handle(const pollfd& event);
  // What the dead left in the pipes; then clients see the end.
  void finish();

 private:
  struct Attachment {
    UniqueFd io;
    UniqueFd err;
    UniqueFd returned;
    std::string pending_io;
    std::string pending_err;
    bool input_open = true;
    int64_t stuck_since_ns = 0;
    bool gone = false;
  };

  explicit StdioHub(LogWriter log) : log_(std::move(log)) {}
  bool held_back() const;
  void give_back_input();
  bool drain(int fd, int stream);
  void take_input(Attachment& attachment, bool hung_up);
  void write_input();
  bool keeps_for_followers();
  static void push(Attachment& attachment);
  void drop_gone();

  LogWriter log_;
  bool log_broken_ = false;
  UniqueFd in_;  // ours, of the three pipes
  UniqueFd out_;
  UniqueFd err_;
  UniqueFd capsule_in_;  // theirs: the mover hands them to a restored process
  UniqueFd capsule_out_;
  UniqueFd capsule_err_;
  UniqueFd terminal_;
  std::string pending_input_;
  bool held_ = false;
  bool followed_ = false;
  int64_t followed_until_ns_ = 0;  // 0: for ever
  std::string out_for_followers_;
  std::string err_for_followers_;
  std::vector<std::unique_ptr<Attachment>> attachments_;
};

}  // namespace godwit::capsule

#endif  // GODWIT_CAPSULE_STDIO_HUB_H_
